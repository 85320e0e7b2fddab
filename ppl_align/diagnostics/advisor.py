"""The line that closes a comparison: which run to believe, and why. Rules, computed, in the order of trust.

1. an exact answer settles it;
2. evidence: a run whose log Z lies significantly below another's has missed what the other has seen
   (every log Zhat is a lower bound in expectation), and replicates must agree;
3. a reward that is the same on every draw of one run and varies in another: the first has missed the rest;
4. support: how many draws, and how many first ancestors, the answer rests on;
5. exact draws of another run (Rejection): do they reach where this one has never been?
6. only then weights: k-hat. Weight ESS and k-hat never make a run good, they can only make it bad;
7. a run is called sound only if it has seen enough (:mod:`ppl_align.posterior.doubts`), and if something independent
   confirms it: enough replicates, or another sound engine. The replicates of a trained guide, or of any proposal,
   confirm nothing, nor does another run with a proposal: what a proposal never writes, none of them sees. Markov chains
   have no log Z to be held against (:mod:`ppl_align.diagnostics.chains`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from ppl_align.core.arviz_adapter import GOOD_K
from ppl_align.core.estimate import Estimate, critical, exceeds
from ppl_align.core.printed import is_rounding, say_z
from ppl_align.diagnostics import decisions, exact_draws
from ppl_align.diagnostics.blind_spots import blind_spot
from ppl_align.diagnostics.chains import chains_only, complaints_of_chains, vouches_for_chains
from ppl_align.diagnostics.collapse import collapsed
from ppl_align.diagnostics.remedies import (
    CHAINS_ALONE,
    what_to_do,
    what_would_confirm,
    what_would_tell,
    what_would_vouch,
)
from ppl_align.posterior.estimates import MIN_REPLICATES
from ppl_align.posterior.evidence import FEW_DRAWS
from ppl_align.posterior.kind import Kind
from ppl_align.posterior.once import once
from ppl_align.posterior.prior import drew_from_prior
from ppl_align.posterior.result import Posterior
from ppl_align.posterior.run_summary import summary_of
from ppl_align.posterior.table import identity

SIGNIFICANT = 3.0  # standard errors
WIDE_SPREAD = 1.0  # nats between replicates: Zhat varies by a factor of e, averages follow the luckiest one
BAD_RHAT = 1.1  # variance between replicates a fifth of that within: fewer than five independent draws each
UNKNOWN_ERROR = 1.0  # nats, for a log Z whose error cannot be estimated
WORTH_SWITCHING = 2.0  # times the precision per token, before another engine is worth a mention
NEGLIGIBLE = 0.05  # nats: a difference in log Z that matters to nobody, however significant
CAVEAT = "No diagnostic here can see a mode that no run has visited."


@dataclass(frozen=True)
class Advice:
    """``verdict``: one line. ``reasons``: what it rests on, one line each. ``standing``: how far to trust it all.

    ``use``: the run that the verdict names, where it is sound. ``confirmed``: all runs that have seen enough and that
    something independent of them confirms. ``remedy``: what to do, where it is not sound (one of the reasons)."""

    verdict: str
    reasons: tuple[str, ...]
    standing: Literal["sound", "unconfirmed", "unsound"]
    use: str | None = None
    confirmed: tuple[str, ...] = ()
    remedy: str | None = None

    def __str__(self) -> str:
        return "\n".join([self.verdict, *(f"  - {reason}" for reason in self.reasons)])


def best_run(runs: Mapping[str, Posterior]) -> str:
    """The run that stands for the posterior: exact, else exact draws, else the most precise log Z without a gap.

    A run that is known to have missed part of the target is the last resort: its error looks smallest. Of runs that
    decide, the one with the largest J, where none conditions."""
    conditioned, decided = decisions.split(runs)
    if not conditioned:
        return decisions.best(decided)
    runs = conditioned
    for name, run in runs.items():
        if run.exact:
            return name
    drawn = exact_draws.source(runs)
    if drawn is not None and _few_draws(runs[drawn]) is None:
        return drawn
    level = {name: run for name, run in runs.items() if _shortfall(run, runs) is None}
    candidates = {name: run for name, run in level.items() if blind_spot(run, runs) is None} or level
    candidates = {name: run for name, run in candidates.items() if not collapsed(run, runs)} or candidates

    def rank(name: str) -> tuple[float, float]:
        told = summary_of(candidates[name])
        error, log_z = told.standard_error, told.log_evidence
        return (math.inf if error is None else error, math.inf if math.isnan(log_z) else -log_z)

    return min(candidates, key=rank)


def advise(runs: Mapping[str, Posterior], best: str) -> Advice:
    """A verdict over the runs of one comparison; ``best`` from :func:`best_run`.

    Runs that decide are judged by their J, those that condition by what is above."""
    conditioned, decided = decisions.split(runs)
    if not decided:
        return _of_conditioned(runs, best)
    act, confirmed = decisions.verdict(runs)
    notes = tuple(f"{name}: {note}." for name, run in decided.items() for note in _notes(run))
    if not conditioned:
        if confirmed:
            return Advice(act, notes, "sound")
        remedy = what_would_confirm(decided)
        return Advice(act, (*notes, remedy), "unconfirmed", remedy=remedy)
    explain = _of_conditioned(conditioned, best)
    standing = "unconfirmed" if explain.standing == "sound" and not confirmed else explain.standing
    return Advice(
        f"{act} To explain: {explain.verdict}",
        (decisions.questions(runs), *notes, *explain.reasons),
        standing,
        remedy=explain.remedy,
    )


def _of_conditioned(runs: Mapping[str, Posterior], best: str) -> Advice:
    found = {name: complaints(run, runs) for name, run in runs.items()}
    reasons = [f"{name}: {'; '.join(problems)}." for name, problems in found.items() if problems]
    reasons += [f"{name}: {note}." for name, run in runs.items() for note in _notes(run)]
    sound = [name for name, problems in found.items() if not problems]
    if runs[best].exact:
        sampled = [name for name in sound if not runs[name].exact]
        agree = f" {decisions.listed(sampled)} agree{'s' if len(sampled) == 1 else ''} with it." if sampled else ""
        return Advice(f"The exact answer is here ({best}): use it.{agree}", tuple(reasons), "sound", best)
    if not sound:
        first = found[best][0]
        remedy = what_to_do(runs[best])
        verdict = f"No run can be trusted: {first} ({best}, the best of them)."
        return Advice(verdict, (*reasons, remedy, _caveat(runs)), "unsound", remedy=remedy)
    doubted = {name: summary_of(runs[name]).doubts for name in sound}
    reasons += [f"{name}: {doubted[name][0].reason}." for name in sound if doubted[name]]
    believed = [name for name in sound if not doubted[name]]
    confirmed = [name for name in believed if _is_confirmed(runs[name], sound, believed, runs)]
    if not confirmed:
        verdict = f"Nothing speaks against {decisions.listed(sound)}, but nothing confirms it either."
        alone = [runs[name] for name in believed]
        weighed = {name: found for name, found in doubted.items() if found and not runs[name].kind.is_ordered}
        if believed and not (weighed and chains_only(alone)):
            remedy = what_would_vouch(alone)
        else:  # what would vouch for chains is here already, with too few draws
            remedy = what_would_tell(runs, weighed if believed else doubted)
        notes = tuple(dict.fromkeys((*reasons, remedy, _caveat(runs))))
        return Advice(verdict, notes, "unconfirmed", remedy=remedy)
    use, verdict = _choice(runs, confirmed)
    return Advice(verdict, (*reasons, _caveat(runs)), "sound", use, tuple(confirmed))


def _caveat(runs: Mapping[str, Posterior]) -> str:
    """What all of this may still have missed."""
    if chains_only(list(runs.values())):
        return CHAINS_ALONE
    name = exact_draws.source(runs)
    if name is None:
        return CAVEAT
    most, total = 100 * exact_draws.unreached(runs[name]), runs[name].log_weight.numel()
    return f"A region named beforehand that {name}'s {total} exact draws all miss holds less than {most:.2g}% (at 95%)."


def _is_confirmed(run: Posterior, sound: list[str], believed: list[str], runs: Mapping[str, Posterior]) -> bool:
    """By its own replicates, or by a sound run of another engine (sound runs agree on log Z within their errors).
    Chains by one that has seen enough itself: sound chains agree with it on each E[r]."""
    if run.draws_are_exact:  # nothing could confirm it better
        return True
    if run.kind is Kind.CHAIN:  # chains that started alike may all be on their way still
        return any(vouches_for_chains(runs[name], run) for name in believed)
    if not run.steered and len(run.log_weight) >= MIN_REPLICATES:
        return True
    others = [runs[name] for name in sound if runs[name] is not run]
    others = [o for o in others if o.kind is not Kind.CHAIN or any(o is runs[name] for name in believed)]
    return any(not o.steered if run.steered else o.steered or o.engine != run.engine for o in others)


def _choice(runs: Mapping[str, Posterior], sound: list[str]) -> tuple[str, str]:
    """Which run to use, and why."""
    precision = {name: summary_of(runs[name]).precision or 0.0 for name in sound}
    leader = max(sound, key=lambda name: precision[name])
    if all(runs[name].kind is Kind.CHAIN for name in sound):  # one with evidence vouches for them, and is doubted
        leader = max(sound, key=lambda name: summary_of(runs[name]).effective_draws)
    plain = [name for name in sound if drew_from_prior(runs[name])]
    drawn = [name for name in sound if runs[name].draws_are_exact]
    if not plain and drawn:
        use = drawn[0]
        return use, f"Use {use}: its {runs[use].log_weight.numel()} draws come from the posterior itself."
    if not plain:
        why = "the only run without a complaint" if len(sound) == 1 else "the most precise of the sound runs per token"
        return leader, f"Use {leader}: {why}."
    simple = max(plain, key=lambda name: precision[name])
    draws = summary_of(runs[simple]).effective_draws
    verdict = f"Importance sampling is enough here ({simple}: {draws:,.0f} effective draws in all)"
    if leader != simple and precision[simple] and precision[leader] > WORTH_SWITCHING * precision[simple]:
        gain = precision[leader] / precision[simple]
        return simple, f"{verdict}; {leader} is {gain:.1f} times as precise per token."
    return simple, verdict + "."


def complaints(run: Posterior, runs: Mapping[str, Posterior]) -> list[str]:
    """What speaks against a run, gravest first; empty for a sound one."""
    if run.exact:
        return []
    if run.draws_are_exact:  # they miss nothing, whatever its log Z happens to be
        found = [_disagreement_with_exact(run, runs), _few_draws(run)]
        return [problem for problem in found if problem is not None]
    if run.kind is Kind.CHAIN:
        others = {
            name: other for name, other in runs.items() if other.kind.has_evidence and not complaints(other, runs)
        }
        found = [*complaints_of_chains(run, others), _disagreement_with_exact(run, runs), _unseen(run, runs)]
        return [problem for problem in found if problem is not None]
    spot = blind_spot(run, runs)
    found = [_shortfall(run, runs), *collapsed(run, runs), None if spot is None else str(spot)]
    found += [_disagreement_with_exact(run, runs), _unseen(run, runs), _few_draws(run), _replicates(run)]
    k = summary_of(run).pareto_k if run.independent else None
    if k is not None and k > GOOD_K:
        found.append(f"k-hat {k:.2f} is above {GOOD_K}, its error bars are too small")
    if not run.independent and len(run.log_weight) < MIN_REPLICATES:
        found.append(f"{len(run.log_weight)} replicate(s) give no error bars, it takes {MIN_REPLICATES}")
    return [problem for problem in found if problem is not None]


def _shortfall(run: Posterior, runs: Mapping[str, Posterior]) -> str | None:
    """Is there a run whose log Z lies significantly above this one's? If one is exact, it alone decides."""
    others = {name: other for name, other in runs.items() if other.exact} or runs
    own, own_error = summary_of(run).log_evidence, _error(run)
    worst: tuple[float, str] | None = None
    for name, other in others.items():
        gap = summary_of(other).log_evidence - own
        noise = critical(own_error, _error(other), errors=SIGNIFICANT)
        if other is not run and gap > max(noise, NEGLIGIBLE) and (worst is None or gap > worst[0]):
            worst = gap, name
    if worst is None:
        return None
    return f"log Z is {worst[0]:.2g} nats below {worst[1]}, so it misses part of the posterior"


def _error(run: Posterior) -> Estimate:
    """log Z with its standard error, and the degrees of freedom that go with it."""
    found = summary_of(run).log_z
    if math.isnan(found.standard_error):
        return Estimate(found.value, UNKNOWN_ERROR)
    return found if found.stated else Estimate(found.value, found.standard_error)


def _disagreement_with_exact(run: Posterior, runs: Mapping[str, Posterior]) -> str | None:
    exact = next((other for other in runs.values() if other.exact), None)
    if exact is None:
        return None
    gap = summary_of(run).log_evidence - summary_of(exact).log_evidence
    if gap > max(critical(_error(run), errors=SIGNIFICANT), NEGLIGIBLE):
        return f"log Z is {gap:.2g} nats above the exact one"
    for name in run.rewards:
        found = summary_of(run).rewards[name]
        value, error = found
        off = abs(value - summary_of(exact).rewards[name].value)
        known = found if found.stated else Estimate(value, error)
        if error > 0 and exceeds(off, known, errors=SIGNIFICANT) and not is_rounding(off, value):
            return f"E[{name}] is {say_z(off / error)} from the exact one"
    return None


def _unseen(run: Posterior, runs: Mapping[str, Posterior]) -> str | None:
    name = exact_draws.source(runs)
    if name is None:
        return None
    missed = exact_draws.unseen(run, runs[name])
    if not missed.significant:
        return None
    return (
        f"{name}'s exact draws reach a region that it never visited: {missed.share:.0%} of them weigh more than "
        "anything it saw"
    )


@once
def _few_draws(run: Posterior) -> str | None:
    if run.draws_are_exact:
        few = run.log_weight.numel()
        return f"{few} exact draw{'s' if few > 1 else ''} in all" if few < FEW_DRAWS else None
    if summary_of(run).perplexity < FEW_DRAWS:
        share = 0.99 if completions_carrying(run, 0.99) < FEW_DRAWS else 0.9
        carrying = completions_carrying(run, share)
        much = "all" if share > 0.9 else f"{share:.0%} of the"
        return f"{much} weight on {carrying} completion{'s' if carrying > 1 else ''}"
    effective = summary_of(run).effective_draws
    if effective < FEW_DRAWS:
        return f"{effective:.1f} effective draws in all"
    ancestors = summary_of(run).ancestors
    if ancestors is not None and sum(ancestors) < FEW_DRAWS:
        return f"all particles descend from {sum(ancestors)} of the first ones"
    return None


def completions_carrying(run: Posterior, share: float) -> int:
    """The fewest distinct completions that hold ``share`` of the pooled weight."""
    ids = torch.as_tensor(identity(run, latents=False))
    mass = torch.zeros(int(ids.max()) + 1, dtype=torch.float64).index_add(0, ids, run.weights.reshape(-1))
    cumulative = mass.sort(descending=True).values.cumsum(0)
    return int((cumulative < share * float(cumulative[-1])).sum()) + 1


def _replicates(run: Posterior) -> str | None:
    spread = summary_of(run).spread
    if spread is not None and spread > WIDE_SPREAD:
        return f"log Z spreads by {spread:.2g} nats over its {len(run.log_weight)} replicates"
    if run.kind.has_evidence and not bool(run.log_evidence.isfinite().all()):
        return "a replicate died: everything it drew is forbidden"
    for name, rhat in summary_of(run).rhats.items():
        if rhat > BAD_RHAT:
            return f"its replicates disagree on E[{name}] (R-hat {rhat:.2f})"
    return None


def _notes(run: Posterior) -> list[str]:
    moved = run.kind is Kind.WEIGHTED and run.log_proposal is None  # where nobody knows what they were drawn from
    if run.resampled is not None and not bool(run.resampled.any()) and not moved:
        return ["it never resampled, so it is importance sampling under another name", *run.warnings]
    return list(run.warnings)
