"""log Z: the estimate, its spread, its price, and what follows from it. All in nats."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from scipy import stats
from torch import Tensor

from ppl_align.core.estimate import Estimate, of_influence
from ppl_align.particles.weights import log_mean_exp
from ppl_align.posterior.chains import chain_numbers
from ppl_align.posterior.estimates import MIN_REPLICATES, bar_can_be_stated, heavy_tail, numbers_of_sites
from ppl_align.posterior.kind import Kind
from ppl_align.posterior.lineage import effective_ancestors, of_resampled
from ppl_align.posterior.once import once
from ppl_align.posterior.prior import drew_from_prior, log_likelihood
from ppl_align.posterior.result import Posterior

FEW_DRAWS = 10
"""An expectation that rests on fewer draws than this is printed as a bound."""
_ROUNDING = 1e-12  # a relative variance below this is rounding: weights are constant


@once
def log_evidence(posterior: Posterior) -> float:
    """log of the mean of Zhat over replicates (Zhat is unbiased, log Zhat is not): a lower bound in expectation."""
    return float(log_mean_exp(posterior.log_evidence))


@once
def spread(posterior: Posterior) -> float | None:
    """Standard deviation of log Zhat_r over replicates. None for one replicate, an exact run or a dead replicate."""
    each = posterior.log_evidence
    if posterior.exact or len(each) < 2 or not bool(each.isfinite().all()):
        return None
    return float(each.std())


@once
def relative_variance(posterior: Posterior) -> float | None:
    """Var(Zhat_r) / Z^2 of *one replicate*.

    Independent draws: Zhat_r is a mean of N weights, so it is the relative variance of a weight over N, estimated
    from all R * N weights. SMC: from the replicates, None below four. Underestimates where a tail was not visited.
    Rejection: its weights say nothing, the draws it took do."""
    if posterior.exact or not posterior.kind.has_evidence:
        return None
    replicates, particles = posterior.log_weight.shape
    if posterior.tries is not None:
        return _relvar_of_waiting(posterior.tries.double(), particles)
    if posterior.independent:
        return None if posterior.log_weight.numel() < 2 else _relvar(posterior.log_weight.reshape(-1)) / particles
    return None if replicates < MIN_REPLICATES else _relvar(posterior.log_evidence)


def _relvar_of_waiting(num_draws: Tensor, wanted: int) -> float:
    """Of a = (N-1)/(n-1), n draws until N successes: a (1-a) / (n-2) is unbiased for its variance (Finney 1949)."""
    share = (wanted - 1) / (num_draws - 1)
    variance = share * (1 - share) / (num_draws - 2).clamp_min(1)  # n = 2 means a = 1, and a variance of 0
    return float(variance.mean() / share.mean() ** 2)


def _relvar(log_values: Tensor) -> float:
    values = (log_values - log_values.max()).exp()
    return float(values.var() / values.mean() ** 2)


def standard_error(posterior: Posterior) -> float | None:
    """Of the pooled log Z, by the delta method: sqrt(relvar(Zhat_r) / R). 0 when exact; None where unknown, and where
    the weights of a proposal have no variance (:func:`~ppl_align.posterior.estimates.heavy_tail`)."""
    if posterior.exact:
        return 0.0
    too_few = posterior.independent and float(posterior.importance_weights.pooled.ess) < 2
    if too_few or heavy_tail(posterior) is not None:
        return None
    relvar = relative_variance(posterior)
    return None if relvar is None else math.sqrt(relvar / len(posterior.log_weight))


@once
def log_z(posterior: Posterior) -> Estimate:
    """The pooled log Z with its error bar, nats; NaN for a decision.

    Independent draws: psi_i = W_i - 1 (:mod:`ppl_align.core.estimate`). Rejection: from the draws that it took.
    SMC: from replicates and ancestors (:mod:`ppl_align.posterior.lineage`); no error below four replicates."""
    value = log_evidence(posterior)
    if not posterior.kind.has_evidence or not math.isfinite(value):
        return Estimate(value, math.nan, math.nan)
    if posterior.exact or nothing_weighs(posterior):
        return Estimate(value, 0.0)
    stated = bar_can_be_stated(posterior)
    if posterior.tries is not None:
        error = standard_error(posterior)
        if error is None:
            return Estimate(value, math.nan, math.nan)
        return Estimate(value, error, math.inf if stated else math.nan)
    if posterior.independent:
        psi = posterior.weights.reshape(-1) * posterior.log_weight.numel() - 1
        return of_influence(value, psi, float(posterior.importance_weights.pooled.ess), stated)
    # log Z is the log of a mean over replicates: psi_i = W_i - 1 / n
    each = posterior.log_evidence
    if len(each) < MIN_REPLICATES or not bool(each.isfinite().all()):
        return Estimate(value, math.nan, math.nan)
    w = posterior.weights
    return of_resampled(posterior, value, _log_mean_of_others(each), w, 1 / w.numel(), stated)


def nothing_weighs(posterior: Posterior) -> bool:
    """Is the posterior the prior, by the program's own word: no factor, or none but rewards of weight 0?"""
    weightless = all(
        name in posterior.scales and not bool(torch.as_tensor(posterior.scales[name]).any())
        for name in posterior.factors
    )
    return weightless and drew_from_prior(posterior)


def _kl_of_resampled(posterior: Posterior, value: float, likelihood: Tensor, stated: bool) -> Estimate:
    """KL = E[l] - log Z: psi_i = W_i (l_i - E[l]) - (W_i - 1 / n), l the log-likelihood."""
    each, w = posterior.log_evidence, posterior.weights
    if len(each) < MIN_REPLICATES or not bool(each.isfinite().all()):
        return Estimate(value, math.nan, math.nan)
    z = (each - each.max()).exp()
    moments = (w * likelihood).sum(-1) * z.sum()
    left_out = (moments.sum() - moments) / (z.sum() - z) - _log_mean_of_others(each)
    parts = w * (likelihood - float((w * likelihood).sum())) - w
    return of_resampled(posterior, value, left_out, parts, -1 / w.numel(), stated)


def _log_mean_of_others(each: Tensor) -> Tensor:
    """log of the mean of exp(each [R]) without each, [R]."""
    z = (each - each.max()).exp()
    return ((z.sum() - z) / (len(each) - 1)).log() + each.max()


@once
def precision_per_1000_tokens(posterior: Posterior) -> float | None:
    """(1 / relvar(Zhat_r)) / (LM tokens of one replicate / 1000).

    LM tokens: rows through the network, decoded and scored, training included; one replicate's share is the
    total / R. Pooling R replicates divides relvar by R and multiplies tokens by R, so the number does not depend
    on how a budget is cut into replicates. Told from R replicates (SMC), 1 / relvar is (R-1) / (R-3) too large on
    average, which is taken out. None for three of them or fewer, where log Z has no error bar, where relvar is zero,
    and where no token was paid for."""
    found = _precision(posterior)
    return None if found is None else found[0]


def precision_interval(posterior: Posterior) -> tuple[float, float] | None:
    """A 95% interval of :func:`precision_per_1000_tokens`: (R-1) times the estimated over the true relvar is chi^2 with
    as many degrees of freedom as log Z has, R - 1 where relvar is that of R replicates."""
    found = _precision(posterior)
    dof = log_z(posterior).dof if posterior.independent else len(posterior.log_weight) - 1.0
    if found is None or not math.isfinite(dof):
        return None
    raw = found[1]
    return raw * float(stats.chi2.ppf(0.025, dof)) / dof, raw * float(stats.chi2.ppf(0.975, dof)) / dof


def _precision(posterior: Posterior) -> tuple[float, float] | None:
    """``(unbiased, 1 / relvar)``, per 1000 tokens of one replicate."""
    relvar, replicates = relative_variance(posterior), len(posterior.log_weight)
    tokens = (posterior.cost.lm_tokens + posterior.cost.scored_tokens) / replicates
    if relvar is None or relvar < _ROUNDING or tokens == 0 or not log_z(posterior).stated:
        return None
    raw = 1 / relvar / (tokens / 1000)
    if posterior.independent:
        return raw, raw
    return (raw * (replicates - 3) / (replicates - 1), raw) if replicates > 3 else None


def elbo(posterior: Posterior) -> float | None:
    """E_q[log p0 + log-likelihood - log q] of a trained guide, the mean log-weight of its draws. None for others.

    A lower bound of log Z; times beta, the objective of KL-regularised RL (arXiv:2205.11275). None for a decision,
    whose ELBO is J (:func:`ppl_align.posterior.policy.decision_value`) and approaches something else than log Z."""
    if posterior.losses is None or not posterior.kind.has_evidence:
        return None
    return float(posterior.log_weight.mean())


class KL(NamedTuple):
    """``value`` in nats; ``lower_bound``: the run cannot tell how much larger it is."""

    value: float
    lower_bound: bool


@once
def kl_to_prior(posterior: Posterior) -> KL:
    """KL(p* || p0) = E_p*[log-likelihood] - log Z, pooled.

    From n prior draws this is log n minus the entropy of the weights, so it can never exceed log n: once the
    weight sits on fewer than 10 draws (or descends from fewer than 10 effective ancestors) it is a lower bound. NaN
    for a decision, which is no estimate of p*."""
    if not posterior.kind.has_evidence:
        return KL(math.nan, False)
    w = posterior.weights
    likelihood = torch.where(w > 0, log_likelihood(posterior), 0.0)
    value = float((w * likelihood).sum()) - log_evidence(posterior)
    if posterior.exact:
        return KL(value, False)
    supporting = float(posterior.importance_weights.pooled.perplexity)
    ancestors = effective_ancestors(posterior)
    if ancestors is not None:
        supporting = min(supporting, ancestors)
    return KL(max(value, 0.0), supporting < FEW_DRAWS)


@once
def kl(posterior: Posterior) -> Estimate:
    """KL(p* || p0) with its error bar, nats; no bar where it is a lower bound.

    psi_i = W_i (l_i - E[l]) - (W_i - 1), l the log-likelihood. Exact draws know log Z from how long they waited."""
    value, lower_bound = kl_to_prior(posterior)
    if posterior.exact or not posterior.kind.has_evidence:
        return Estimate(value, 0.0 if posterior.exact else math.nan)
    if nothing_weighs(posterior):
        return Estimate(value, 0.0)
    stated = not lower_bound and bar_can_be_stated(posterior)
    w = posterior.weights
    likelihood = torch.where(w > 0, log_likelihood(posterior), 0.0)
    if not posterior.independent:
        return _kl_of_resampled(posterior, value, likelihood, stated)
    count = w.numel()
    mean = float((w * likelihood).sum())
    psi = (count * w * (likelihood - mean)).reshape(-1)
    effective = float(posterior.importance_weights.pooled.ess)
    if posterior.tries is not None:
        found, waiting = of_influence(value, psi, math.inf, stated), log_z(posterior)
        error = math.hypot(found.standard_error, waiting.standard_error)
        share = (found.standard_error / error) ** 3 if error > 0 else 0.0  # third moments add up
        dof = found.dof if found.standard_error > 0 else waiting.dof
        return Estimate(value, error, dof, found.skewness * share)
    return of_influence(value, psi - (count * w.reshape(-1) - 1), effective, stated)


@once
def rhat(posterior: Posterior, name: str) -> float | None:
    """Do replicates agree on E[name]? sqrt(1 + Var_r(mean_r) / mean_r(Var within r)), replicates as chains.

    Gelman & Rubin 1992, with weighted moments in place of a chain's. None for one replicate, for an exact run, for
    a trained guide (its replicates are draws of one guide and cannot disagree), a decision and for a constant.
    Markov chains: the rank-normalised split R-hat (:mod:`ppl_align.posterior.chains`)."""
    if posterior.kind is Kind.POLICY:
        return None
    if posterior.kind.is_ordered:
        found = chain_numbers(posterior)[name].stats.rhat
        return None if math.isnan(found) else found
    if posterior.exact or len(posterior.log_weight) < 2 or posterior.losses is not None:
        return None
    f = numbers_of_sites(posterior)[name]
    w = torch.where(f.isfinite(), posterior.importance_weights.normalised, 0.0)
    total = w.sum(-1, keepdim=True)
    if bool((total <= 0).any()):
        return None
    w, f = w / total, torch.where(f.isfinite(), f, 0.0)
    means = (w * f).sum(-1, keepdim=True)
    within = float((w * (f - means) ** 2).sum(-1).mean())
    return math.sqrt(1 + float(means.var()) / within) if within > 1e-12 else None
