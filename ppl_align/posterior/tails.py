"""A proposal whose weights have no variance: its estimates have no error bar.

The weights' variance is finite where Pareto k-hat is below 1/2, and only then has their mean a standard error. Weights
of draws from the prior, or from within its hard constraints, are bounded where rewards are; weights of a proposal are
large just where it hardly ever goes.
"""

from __future__ import annotations

from ppl_align.posterior.once import once
from ppl_align.posterior.prior import has_proposal
from ppl_align.posterior.result import Posterior

HEAVIEST = 0.5
EVEN = 0.5  # share of effective draws from which no tail is left that would matter


@once
def heavy_tail(posterior: Posterior) -> float | None:
    """k-hat of all weights pooled, where it says that a proposal's weights have no variance; None where it does not."""
    if not posterior.independent or posterior.draws_are_exact or not has_proposal(posterior):
        return None
    pooled = posterior.importance_weights.pooled
    if float(pooled.ess) >= EVEN * posterior.log_weight.numel():
        return None
    k = float(pooled.pareto_k)
    return k if k > HEAVIEST else None
