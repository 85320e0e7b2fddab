"""Which run represents the prior best, and what it says of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ppl_align.particles.weights import Weights
from ppl_align.posterior.prior import prior_log_weight

if TYPE_CHECKING:
    from ppl_align.posterior import Posterior


ENOUGH = 10.0
"""Effective draws of the prior below which a run does not speak of it."""


def best_view_of_prior(posteriors: Iterable[Posterior]) -> Posterior | None:
    """The run whose particles represent the prior best: an exact one, else the one with the largest ESS for p0.

    Particles that were resampled on the way cannot: what the prior often writes and the likelihood dislikes has died
    out, and no weight says how much of it. None where no other run has ``ENOUGH`` effective draws."""
    best, most = None, ENOUGH
    for posterior in posteriors:
        if posterior.exact:
            return posterior
        if not posterior.independent:
            continue
        effective = float(Weights(prior_log_weight(posterior)).pooled.ess)
        if effective > most:
            best, most = posterior, effective
    return best


def prior_mean(posterior: Posterior, values: Tensor) -> float | None:
    """E_p0[values] as this run sees it; None where a value is infinite (a rejection has no mean)."""
    w = torch.softmax(prior_log_weight(posterior).reshape(-1), 0)
    f = values.double().reshape(-1)
    if bool((f.isinf() & (w > 0)).any()):
        return None
    keep = f.isfinite() & (w > 0)
    return float((w[keep] * f[keep]).sum() / w[keep].sum()) if bool(keep.any()) else None
