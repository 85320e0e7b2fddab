"""Posterior expectations with standard errors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ppl_align.core.arviz_adapter import chain_stats
from ppl_align.core.errors import InputError
from ppl_align.core.estimate import (
    DRAWS_PER_DOF,
    FEWEST_EFFECTIVE,
    FEWEST_EXACT,
    FEWEST_PREDICTED,
    Estimate,
    of_influence,
)
from ppl_align.lm.completions import Completion
from ppl_align.posterior.constant import met_by_moves_only, unmet
from ppl_align.posterior.kind import Kind
from ppl_align.posterior.lineage import MIN_REPLICATES, enough_ancestors, of_resampled
from ppl_align.posterior.naming import length_of
from ppl_align.posterior.once import once
from ppl_align.posterior.prior import log_likelihood, log_prior
from ppl_align.posterior.result import Posterior

MIN_EFFECTIVE_DRAWS = 2.0
HEAVIEST = 0.5
STATED_RHAT = 1.05
EVEN = 0.5  # share of effective draws from which no tail is left that would matter


@once
def mean(posterior: Posterior, what: str | Callable[[Any], Any], of: str | None = None) -> Estimate:
    """See :meth:`ppl_align.Posterior.mean`."""
    return mean_of(posterior, _values(posterior, what, of))


def mean_of(posterior: Posterior, values: Tensor) -> Estimate:
    """The posterior expectation of ``values [R, N]``, as :meth:`ppl_align.Posterior.mean` has it."""
    weights = posterior.weights
    counts = values.isfinite() & (weights > 0)
    if bool((values.isinf() & (weights > 0)).any()):
        return Estimate(float((weights * values)[weights > 0].nansum()), math.nan)
    if not bool(counts.any()):
        return Estimate(math.nan, math.nan)
    w = torch.where(counts, weights, 0.0)
    f = torch.where(counts, values, 0.0)
    value = float((w * f).sum() / w.sum())
    if posterior.exact:
        return Estimate(value, 0.0)
    stated = bar_can_be_stated(posterior)
    if posterior.kind.is_ordered and bool(counts.all()):
        return _of_chains(posterior, w, f, value, stated)
    if not posterior.independent:
        return _of_resampled(posterior, w, f, value, stated)
    effective = float(posterior.importance_weights.only(counts).pooled.ess)
    if effective < MIN_EFFECTIVE_DRAWS:
        return Estimate(value, math.nan, math.nan)
    # Self-normalised importance sampling (Owen, eq. 9.9): psi_i = W_i (f_i - mean), W_i of mean 1.
    psi = (w / w.sum() * w.numel() * torch.where(counts, f - value, 0.0)).reshape(-1)
    return of_influence(value, psi, math.inf if posterior.draws_are_exact else effective, stated)


@once
def bar_can_be_stated(posterior: Posterior) -> bool:
    """Do the weights have an error that can be told from them? (What gate it takes is measured by ``make honesty``.)

    Exact draws: ``FEWEST_EXACT``. Of all others, not where a reward has never varied
    (:mod:`ppl_align.posterior.constant`), nor where only moves have met another value. Independent draws:
    ``FEWEST_PREDICTED`` effective draws as foretold, ``FEWEST_EFFECTIVE`` by the weights; of a proposal, weights whose
    variance is finite by their tail (:func:`heavy_tail`). Particles that were resampled: four replicates,
    and first ancestors enough (:func:`~ppl_align.posterior.lineage.enough_ancestors`). Markov chains: four of them; of
    what is averaged ``FEWEST_EFFECTIVE`` effective draws by their autocorrelation, an R-hat of at most ``STATED_RHAT``,
    and half of the chains have been on either side of the mean."""
    if posterior.exact:
        return True
    if posterior.draws_are_exact:
        return posterior.log_weight.numel() >= FEWEST_EXACT
    if posterior.kind is Kind.CONDITIONAL:  # one of its particles was not drawn by the engine: log Z lies too high
        return False
    if unmet(posterior) or met_by_moves_only(posterior):
        return False
    if posterior.independent:
        pooled = posterior.importance_weights.pooled
        enough = float(pooled.ess) >= FEWEST_EFFECTIVE and float(pooled.foretold_ess) >= FEWEST_PREDICTED
        return enough and heavy_tail(posterior) is None
    if len(posterior.log_weight) < MIN_REPLICATES:
        return False
    return enough_ancestors(posterior)


@once
def heavy_tail(posterior: Posterior) -> float | None:
    """k-hat of all weights pooled, where it says that a proposal's weights have no variance; None where it does not.

    The weights' variance is finite where Pareto k-hat is below 1/2, and only then has their mean a standard error.
    Weights of draws from the prior, or from within its hard constraints, are bounded where rewards are; weights of a
    proposal are large just where it hardly ever goes."""
    if not posterior.independent or posterior.draws_are_exact or not posterior.steered:
        return None
    pooled = posterior.importance_weights.pooled
    if float(pooled.ess) >= EVEN * posterior.log_weight.numel():
        return None
    k = float(pooled.pareto_k)
    return k if k > HEAVIEST else None


def _of_chains(posterior: Posterior, w: Tensor, f: Tensor, value: float, stated: bool) -> Estimate:
    """With the Monte Carlo standard error of ordered draws (MCSE, by their autocorrelation). Of chains too short for
    that, and of what never varies, as of any populations that are independent of each other."""
    found = chain_stats(f.numpy())
    if math.isnan(found.mcse):
        return _of_resampled(posterior, w, f, value, stated)
    dof = max(found.ess / DRAWS_PER_DOF, 1.0)
    stated = stated and found.ess >= FEWEST_EFFECTIVE and found.rhat <= STATED_RHAT and visits(f, value)
    return Estimate(value, found.mcse, dof if stated else math.nan)


def visits(f: Tensor, value: float) -> bool:
    """Have half of the chains, and four, been above and below ``value``? ``f`` [chains, states].

    Something rare that one chain has met once looks like much that is known well: its R-hat is small, its effective
    sample size large, and what the other chains will find when they get there is in neither."""
    both = (f > value).any(-1) & (f < value).any(-1)
    return int(both.sum()) >= max(MIN_REPLICATES, len(f) / 2)


def _of_resampled(posterior: Posterior, w: Tensor, f: Tensor, value: float, stated: bool) -> Estimate:
    """Particles of one replicate share ancestors: replicates are independent, and so are those first particles."""
    numerator, denominator = (w * f).sum(-1), w.sum(-1)
    rest = denominator.sum() - denominator
    if len(denominator) < MIN_REPLICATES or bool((rest <= 1e-12).any()):
        return Estimate(value, math.nan, math.nan)
    parts = torch.where(w > 0, w / w.sum() * (f - value), 0.0)
    return of_resampled(posterior, value, (numerator.sum() - numerator) / rest, parts, 0.0, stated)


def functionals(posterior: Posterior) -> dict[str, Tensor]:
    """The numbers of a posterior by column, each [R, N] float64: rewards, scalar latents, and what is built in.

    Built in: log_prior and log_likelihood (nats, all sites together) and lengths in tokens. No site hides them
    (:mod:`ppl_align.posterior.naming`)."""
    column, sites = posterior.columns, posterior.completions
    found = {column[name]: value for name, value in numbers_of_sites(posterior).items()}
    found |= {"log_prior": log_prior(posterior), "log_likelihood": log_likelihood(posterior)}
    for name, site in sites.items():
        lengths = site.lengths.double().reshape(*posterior.log_weight.shape, -1).sum(-1)
        found["length" if len(sites) == 1 else length_of(name)] = lengths
    return found


def numbers_of_sites(posterior: Posterior) -> dict[str, Tensor]:
    """Rewards and scalar latents by site, each [R, N] float64."""
    shape = posterior.log_weight.shape
    named = {name: r.double() for name, r in posterior.rewards.items()}
    return named | {name: z.double() for name, z in posterior.latents.items() if z.shape == shape}


def _values(posterior: Posterior, what: str | Callable[[Any], Any], of: str | None) -> Tensor:
    shape = posterior.log_weight.shape
    if isinstance(what, str):
        known = functionals(posterior) | numbers_of_sites(posterior)  # the program's own names come first
        if what in known and of is None:
            return known[what]
        if of is not None:
            raise InputError(f"mean({what!r}, of={of!r}): of= goes with a function")
        hint = " (it is not one number per particle: give a function)" if what in posterior.particles else ""
        raise InputError(f"mean({what!r}): no such number{hint}; there are {', '.join(known)}")
    if of is not None and of not in posterior.particles:
        raise InputError(f"mean(of={of!r}): no such site; there are {', '.join(posterior.particles)}")
    values = what(posterior.particles) if of is None else _each(what, of, posterior.particles[of], shape)
    values = torch.as_tensor(values).double()
    if values.shape != shape:
        raise InputError(
            f"mean(f): f must return one number per particle, shape {list(shape)}, got {list(values.shape)}; "
            "for a function of one text write mean(f, of=site)"
        )
    return values


def _each(f: Callable[[Any], Any], name: str, site: Completion | Tensor, shape: torch.Size) -> Tensor:
    if isinstance(site, Completion) and site.shape != shape:
        raise InputError(
            f"mean(f, of={name!r}): each particle has {list(site.shape[len(shape) :])} texts there, one for each "
            f"element of a plate: say how to sum them up, mean(lambda particles: ...) of shape {list(shape)}"
        )
    elements = site.texts() if isinstance(site, Completion) else list(site.reshape(-1, *site.shape[len(shape) :]))
    return torch.tensor([float(f(element)) for element in elements], dtype=torch.float64).reshape(shape)
