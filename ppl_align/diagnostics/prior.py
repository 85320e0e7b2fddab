"""What a run knows about the prior: the same particles, weighted for p0 instead of the posterior."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ppl_align.diagnostics import weights
from ppl_align.diagnostics.estimates import log_likelihood, log_prior

if TYPE_CHECKING:
    from ppl_align.posterior import Posterior


def prior_log_weight(posterior: Posterior) -> Tensor:
    """log-weights [R, N] under which the particles represent p0.

    log p0 - log q for independent draws; the posterior's weights without the likelihood otherwise (what the
    likelihood forbids is then missing)."""
    if posterior.independent and not posterior.exact and posterior.log_proposal is not None:
        return log_prior(posterior) - posterior.log_proposal
    if posterior.exact:
        return log_prior(posterior)
    without = posterior.log_weight - log_likelihood(posterior)
    return torch.where(posterior.log_weight.isfinite(), without, -torch.inf)


def drew_from_prior(posterior: Posterior) -> bool:
    """The particles are i.i.d. draws of p0 as they are."""
    if posterior.exact or not posterior.independent or posterior.log_proposal is None:
        return False
    log_weight = prior_log_weight(posterior)
    return bool((log_weight.abs() < 1e-3).all())


def best_view_of_prior(posteriors: Iterable[Posterior]) -> Posterior | None:
    """The run whose particles represent the prior best: an exact one, else the one with the largest ESS for p0.

    None where no run has two effective draws of it."""
    best, most = None, 2.0
    for posterior in posteriors:
        if posterior.exact:
            return posterior
        effective = float(weights.ess_by_replicate(prior_log_weight(posterior).reshape(1, -1)))
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
