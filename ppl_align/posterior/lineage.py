"""Error bars of particles that were resampled: how replicates differ, and what their first ancestors tell.

Replicates of one SMC run are independent, so the jackknife over R of them is right whatever happens within; with four
it has three degrees of freedom, and its bars are as often far too small as too large. Within a replicate, what descends
from one first particle is one draw (Chan & Lai, arXiv:1309.2918; Lee & Whiteley, arXiv:1509.00394; Olsson & Douc,
arXiv:1701.02002)::

    se^2 = sum over first particles of (sum of W_i psi_i over their living descendants - what is expected of each)^2

which knows more, as long as many of the first particles have descendants. Both are variances of the same estimate, so
they are pooled like variances of two samples, ``ANCESTORS_PER_DOF`` ancestors to a degree of freedom::

    s^2 = ((R - 1) jackknife^2 + nu ancestry^2) / (R - 1 + nu),    nu = ancestors / ANCESTORS_PER_DOF

with the *effective* ancestors 1 / sum W_a^2, W_a the weight of all that descends from a: of replicates whose weight is
next to nothing many first particles have descendants, and say nothing.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ppl_align.core.estimate import Estimate, of_replicates
from ppl_align.posterior.once import once
from ppl_align.posterior.result import Posterior

MIN_REPLICATES = 4
"""Fewer independent repeats say nothing usable about their own spread."""
FEWEST_ANCESTORS = 40
"""In all replicates: of fewer, neither estimate of the variance is to be trusted."""
FEWEST_EFFECTIVE_ANCESTORS = 10.0
ANCESTORS_PER_DOF = 10.0


@once
def ancestors_by_replicate(posterior: Posterior) -> list[int] | None:
    """How many of the first particles have living descendants, per replicate. None where nothing descends."""
    lineage = posterior.lineage
    if lineage is None:
        return None
    alive = posterior.log_weight.isfinite()
    return [len(row[keep].unique()) for row, keep in zip(lineage, alive, strict=True)]


@once
def effective_ancestors(posterior: Posterior) -> float | None:
    """1 / sum W_a^2 over the first particles of all replicates. None where nothing descends."""
    if posterior.lineage is None:
        return None
    return 1.0 / max(float((by_ancestor(posterior, posterior.weights) ** 2).sum()), 1e-300)


def enough_ancestors(posterior: Posterior) -> bool:
    """Do so many first particles have living descendants, and hold so much of the weight, that errors can be told?"""
    ancestors, effective = ancestors_by_replicate(posterior), effective_ancestors(posterior)
    if ancestors is None or effective is None:
        return True
    return sum(ancestors) >= FEWEST_ANCESTORS and effective >= FEWEST_EFFECTIVE_ANCESTORS


def more_ancestors(posterior: Posterior) -> float | None:
    """By what the particles have to grow for errors, twofold at least. None where nothing descends."""
    ancestors, effective = ancestors_by_replicate(posterior), effective_ancestors(posterior)
    if ancestors is None or effective is None:
        return None
    return max(FEWEST_ANCESTORS / max(sum(ancestors), 1), FEWEST_EFFECTIVE_ANCESTORS / effective, 2.0)


def by_ancestor(posterior: Posterior, parts: Tensor) -> Tensor:
    """``parts [R, N]`` of each particle, added up over what descends from the same first one; as they are where nothing
    descends."""
    lineage = posterior.lineage
    return parts if lineage is None else torch.zeros_like(parts).scatter_add_(1, lineage, parts)


def of_resampled(
    posterior: Posterior, value: float, left_out: Tensor, parts: Tensor, expected: float, stated: bool
) -> Estimate:
    """The estimate with both errors pooled. ``left_out [R]``: without each replicate; ``parts [R, N]``: what each
    particle adds to it, and each first particle with its descendants ``expected`` on average."""
    found, ancestors = of_replicates(value, left_out), effective_ancestors(posterior)
    if ancestors is not None and math.isfinite(found.dof):
        psi = by_ancestor(posterior, parts) - expected
        error = float((psi**2).sum().sqrt())
        skewness = float(((psi / error) ** 3).sum()) if error > 0 else 0.0
        nu = ancestors / ANCESTORS_PER_DOF
        dof = found.dof + nu
        pooled = math.sqrt((found.dof * found.standard_error**2 + nu * error**2) / dof)
        found = Estimate(value, pooled, dof, skewness)
    return found if stated else Estimate(value, found.standard_error, math.nan)
