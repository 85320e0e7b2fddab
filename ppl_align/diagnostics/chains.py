"""What speaks against Markov chains, and what can vouch for them.

They have no log Z to be held against, so they are judged by each other and by the rewards of other runs:

* chains that have never moved, fewer than four of them, an R-hat above 1.1, fewer than ten effective draws: no trust;
* an E[r] significantly off that of a run with evidence which nothing speaks against: one of both misses something;
* R-hat above 1.01, fewer than 400 effective draws of bulk or tails (:mod:`ppl_align.posterior.chains`): not believed.

Whatever they say of themselves, chains cannot show that they have reached all modes: they are believed where a run with
evidence is believed beside them, both agree, and chains know E[r] to 30% of what that run says conditioning has moved.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from ppl_align.core.estimate import Estimate, exceeds
from ppl_align.core.printed import is_rounding, say_z
from ppl_align.posterior.chains import effective_draws, furthest_apart, stuck_chains
from ppl_align.posterior.constant import constant_reward
from ppl_align.posterior.doubts import OF_THE_SHIFT, shift_level, shift_of, too_wide
from ppl_align.posterior.evidence import FEW_DRAWS
from ppl_align.posterior.kind import Kind
from ppl_align.posterior.lineage import MIN_REPLICATES
from ppl_align.posterior.result import Posterior

SIGNIFICANT = 3.0  # standard errors
APART = 1.1  # R-hat: fewer than five effective draws in half a chain


def complaints_of_chains(run: Posterior, others: Mapping[str, Posterior]) -> list[str]:
    """One line each, gravest first. ``others``: runs with evidence that nothing speaks against."""
    return list(_complaints(run, others))


def _complaints(run: Posterior, others: Mapping[str, Posterior]) -> Iterator[str]:
    chains, still = len(run.log_weight), stuck_chains(run)
    if still:
        yield f"{still} of its {chains} chains {'has' if still == 1 else 'have'} never moved"
    if chains < MIN_REPLICATES:
        yield (
            f"{chains} chain{'s' if chains > 1 else ''} cannot be held against each other, it takes {MIN_REPLICATES}"
        )
    apart = furthest_apart(run)
    if apart is not None and apart[1] > APART and still < chains:
        yield f"its chains disagree on {apart[0]} (R-hat {apart[1]:.2f})"
    if effective_draws(run) < FEW_DRAWS:
        yield f"{effective_draws(run):.1f} effective draws in all"
    for name, other in others.items():
        off = None if other.exact else _disagreement(run, other)
        if off is not None:
            yield f"E[{off[0]}] is {off[1]} from that of {name}: one of both misses part of the posterior"


def _disagreement(run: Posterior, other: Posterior) -> tuple[str, str] | None:
    """The first reward in whose mean they differ significantly, and by how much."""
    for name in run.rewards:
        own, its = run.mean(name), other.mean(name)
        if not its.stated or math.isnan(own.standard_error):
            continue
        gap = abs(own.value - its.value)
        known = own if own.stated else Estimate(own.value, own.standard_error)
        if exceeds(gap, known, its, errors=SIGNIFICANT) and not is_rounding(gap, own.value):
            return name, say_z(gap / math.hypot(known.standard_error, its.standard_error))
    return None


def chains_only(runs: Sequence[Posterior]) -> bool:
    """Are there none but Markov chains?"""
    return all(run.kind is Kind.CHAIN for run in runs)


def vouches_for_chains(run: Posterior, chains: Posterior) -> bool:
    """Does it estimate log Z, so that it may know of modes that no chain has reached, and do they tell E[r] so well
    that this would show? To 30% of what conditioning has moved it, as of every run that is believed."""
    if not run.kind.has_evidence:
        return False
    return not any(_is_wide(chains, run, name) for name in chains.rewards)


def _is_wide(chains: Posterior, run: Posterior, name: str) -> bool:
    if constant_reward(chains, name) is not None or run.exact:
        return False
    moved = shift_of(run, name) if name in run.rewards else None
    level = shift_level(chains.log_weight.numel())
    return moved is not None and too_wide("", chains.mean(name), OF_THE_SHIFT * moved[0], "", level=level) is not None


__all__ = ["chains_only", "complaints_of_chains", "vouches_for_chains"]
