"""Why a number is printed as ``5.672 ± ?``: what is missing for a standard error, and what to do about it."""

from __future__ import annotations

import math
from collections.abc import Mapping

from ppl_align.core.estimate import FEWEST_EXACT, FEWEST_PREDICTED
from ppl_align.core.printed import say_draws
from ppl_align.posterior import evidence
from ppl_align.posterior.chains import chain_settings
from ppl_align.posterior.constant import unmet
from ppl_align.posterior.estimates import HEAVIEST, MIN_REPLICATES, Estimate, heavy_tail
from ppl_align.posterior.kind import Kind
from ppl_align.posterior.policy import decision_value
from ppl_align.posterior.result import Posterior

BETTER_PROPOSAL = "take a proposal= that fits better (a guide: train it longer), or give it to SMC"


def unstated(posterior: Posterior) -> list[str]:
    """One line for each reason for which numbers of this run have no error bar; empty where all have one."""
    names: dict[str, list[str]] = {}
    for name, estimate in _estimates(posterior).items():
        if not estimate.stated:
            names.setdefault(_why(posterior, name, estimate), []).append(name)
    return [f"no standard error of {', '.join(of)}: {why}" for why, of in names.items()]


def unstated_of(runs: Mapping[str, Posterior]) -> list[str]:
    """The same for several runs; those that say the same share a line."""
    who: dict[str, list[str]] = {}
    for name, run in runs.items():
        for line in unstated(run):
            who.setdefault(line, []).append(name)
    return [f"± ?: {', '.join(names)} {'has' if len(names) == 1 else 'have'} {line}" for line, names in who.items()]


def _estimates(posterior: Posterior) -> dict[str, Estimate]:
    """What is printed with an error, by the name it is printed under."""
    found = {f"E[{name}]": posterior.mean(name) for name in posterior.rewards}
    j = decision_value(posterior)
    if j is not None:
        return found | {"J": j}
    if posterior.kind.has_evidence and all(estimate.stated for estimate in found.values()):  # else they say it
        found["log Z"] = evidence.log_z(posterior)
    return found


def _why(posterior: Posterior, name: str, estimate: Estimate) -> str:
    replicates = posterior.log_weight.shape[0]
    if math.isnan(estimate.value):
        return "the reward applies to none of the draws that count"
    if math.isinf(estimate.value):
        return "draws that count have an infinite value"
    if name == "J":
        return "a single episode says nothing of its own spread; num_replicates=4 gives one"
    if estimate.standard_error == 0:
        return "it is the same on all draws, which says nothing of draws that were not made"
    if posterior.kind is Kind.CONDITIONAL:
        return "a draw of the posterior was put among its particles, so its log Z lies too high: it is a bound"
    never = [] if posterior.draws_are_exact else unmet(posterior)
    if never and math.isfinite(estimate.standard_error):
        return f"the reward {never[0]!r} is the same on all draws, which says nothing of draws that were not made"
    if posterior.draws_are_exact and math.isfinite(estimate.standard_error):
        return f"fewer than {FEWEST_EXACT} draws say nothing of their own error; take more num_particles"
    k = heavy_tail(posterior)
    if k is not None:
        return (
            f"its weights have no variance, so heavy is their tail (Pareto k {k:.2f}, more than {HEAVIEST:g}): "
            f"its proposal hardly ever writes what weighs most; {BETTER_PROPOSAL}"
        )
    if posterior.independent and math.isfinite(estimate.standard_error):
        few, remedy = float(posterior.importance_weights.pooled.foretold_ess), "take more num_particles"
        if posterior.target == "decision":
            return f"from {posterior.log_weight.numel()} episodes nobody knows the error; {remedy}"
        return (
            f"its weights foretell {say_draws(few)}, and from fewer than {FEWEST_PREDICTED:.0f} nobody knows "
            f"the error; {remedy}, or a proposal= that fits better"
        )
    if posterior.independent:
        return "fewer than 2 effective draws carry the weight; take more num_particles, or a proposal= that fits better"
    if posterior.kind.is_ordered:
        chains, states = chain_settings(posterior)
        if replicates < MIN_REPLICATES:
            some = f"{replicates} chains are" if replicates > 1 else "a single chain is"
            return f"{some} too few to be held against each other; {chains}={MIN_REPLICATES} is enough"
        return f"its states resemble each other too much for an error; take more {states}"
    if replicates < MIN_REPLICATES:
        several = f"{replicates} populations are" if replicates > 1 else "a single population is"
        return (
            f"its particles depend on each other, and {several} too few to tell how far the next one would differ; "
            f"num_replicates={MIN_REPLICATES} gives one"
        )
    if math.isfinite(estimate.standard_error):
        return "its particles descend from too few of the first ones; take more num_particles"
    return "one population carries all the weight, so the others cannot tell its error; take more num_particles"
