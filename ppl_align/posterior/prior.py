"""What prior and likelihood say of the particles, all sites together; the same particles weighted for the prior."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from ppl_align.particles.weights import Weights
from ppl_align.posterior.once import once
from ppl_align.posterior.result import Posterior

ENOUGH = 10.0
"""Effective draws of the prior below which a run does not speak of it."""


@once
def log_prior(posterior: Posterior) -> Tensor:
    """log p0 of everything drawn, [R, N] nats."""
    return _total(posterior, posterior.log_prior)


@once
def log_likelihood(posterior: Posterior) -> Tensor:
    """Sum of all factors (r / beta and observed sites), [R, N] nats."""
    return _total(posterior, posterior.factors)


def _total(posterior: Posterior, parts: Mapping[str, Tensor]) -> Tensor:
    return sum((part.double() for part in parts.values()), torch.zeros_like(posterior.log_weight))


@once
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


@once
def drew_from_prior(posterior: Posterior) -> bool:
    """The particles are i.i.d. draws of p0 as they are."""
    if posterior.exact or not posterior.independent or posterior.log_proposal is None:
        return False
    log_weight = prior_log_weight(posterior)
    return bool((log_weight.abs() < 1e-3).all())


def prior_mean(posterior: Posterior, values: Tensor) -> float | None:
    """E_p0[values] as this run sees it; None where a value is infinite (a rejection has no mean)."""
    w = torch.softmax(prior_log_weight(posterior).reshape(-1), 0)
    f = values.double().reshape(-1)
    if bool((f.isinf() & (w > 0)).any()):
        return None
    keep = f.isfinite() & (w > 0)
    return float((w[keep] * f[keep]).sum() / w[keep].sum()) if bool(keep.any()) else None


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
