"""Pareto k-hat: how heavy the tail of importance weights is (Vehtari et al., arXiv:1507.02646).

The weights' variance is finite where k is below 1/2, and only then has their mean a standard error. Weights of draws
from the prior, or from within its hard constraints, are bounded where rewards are; weights of a proposal are large just
where it hardly ever goes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from ppl_align.posterior import arviz_adapter
from ppl_align.posterior.once import once
from ppl_align.posterior.prior import has_proposal

if TYPE_CHECKING:
    from ppl_align.posterior import Posterior

HEAVIEST = 0.5
EVEN = 0.5  # share of effective draws from which no tail is left that would matter
MIN_DRAWS_FOR_K = 25
MIN_TAIL_VALUES = 5
"""ArviZ fits no tail to fewer points; tied weights are one point however often they occur."""


def pareto_k_of(log_weight: Tensor) -> float | None:
    """k-hat of weights [N]; None where they are constant, heavily tied or fewer than 25.

    ArviZ would answer infinity (0.x) or raise (1.x) there, and a perfect run would read as a bad one."""
    values = log_weight.double().numpy()
    alive = np.sort(values[np.isfinite(values)])
    n = len(alive)
    if n < MIN_DRAWS_FOR_K:
        return None
    tail = alive[-int(np.ceil(min(0.2 * n, 3 * np.sqrt(n)))) - 1 :]
    # log-weights that should be equal may differ by rounding
    distinct = 1 + int((np.diff(tail) > 1e-9).sum())
    if distinct < max(MIN_TAIL_VALUES, len(tail) / 2):
        return None
    # weights of zero are draws like any other: they stay, far below the tail
    k = float(arviz_adapter.psislw(np.maximum(values, alive[-1] - 700.0))[1])
    return k if np.isfinite(k) else None


@once
def heavy_tail(posterior: Posterior) -> float | None:
    """k-hat of all weights pooled, where it says that a proposal's weights have no variance; None where it does not."""
    if not posterior.independent or posterior.draws_are_exact or not has_proposal(posterior):
        return None
    pooled = posterior.weights.reshape(-1)
    if float(1 / (pooled**2).sum()) >= EVEN * len(pooled):
        return None
    k = pareto_k_of(posterior.log_weight.reshape(-1))
    return k if k is not None and k > HEAVIEST else None
