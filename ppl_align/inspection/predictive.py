"""The prior predictive of every reward, the variety of answers, and the probability of events the user names."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_align.core.errors import InputError
from ppl_align.core.estimate import standard_error
from ppl_align.inspection.pool import Pool
from ppl_align.inspection.weighted import Weighted
from ppl_align.posterior.estimates import Estimate
from ppl_align.program.environment import Seeds
from ppl_align.program.log_bounds import is_discrete

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
NEVER_SEEN = 3.0
"""The rule of three: what n independent draws never showed has probability below 3/n, at 95%."""


@dataclass(frozen=True)
class PriorReward:
    """One reward under the prior (given the hard constraints), in reward units; rejections (-inf) and None aside.

    ``applies``, ``rejected``: shares of the draws   ``ties``: share of the most frequent value
    ``scale``: nats per unit (where it is drawn, its mean)   ``nats``: standard deviation of the log-factor"""

    name: str
    mean: Estimate
    sd: float
    quantiles: tuple[float, ...]
    applies: float
    rejected: float
    ties: float
    scale: float
    nats: float


def prior_rewards(pool: Pool) -> list[PriorReward]:
    """Every reward of the program under its prior, given the hard constraints."""
    found, w = [], pool.base
    for name, r in pool.particles.rewards.items():
        kept = r.isfinite() & (w.relative > 0)
        if bool(kept.any()):
            mean, sd = w.mean(r), math.sqrt(max(w.covariance(r, r).value, 0.0))
            quantiles = tuple(w.quantiles(r, torch.tensor(QUANTILES)).tolist())
            share = w.relative[kept] / w.relative[kept].sum()
            values, which = torch.unique(r[kept], return_inverse=True)
            ties = float(torch.zeros_like(values).index_add(0, which, share).max())
        else:
            nothing = (math.nan,) * len(QUANTILES)
            mean, sd, quantiles, ties = Estimate(math.nan, math.nan), math.nan, nothing, math.nan
        scale, nats = _strength(pool, name, sd)
        applies, rejected = (float((w.relative * which).mean()) for which in (~r.isnan(), r.isneginf()))
        found.append(PriorReward(name, mean, sd, quantiles, applies, rejected, ties, scale, nats))
    return found


def _strength(pool: Pool, name: str, sd: float) -> tuple[float, float]:
    """What a unit of a reward is worth, and the standard deviation of its log-factor, both nats."""
    scale = pool.particles.scales[name]
    if not isinstance(scale, Tensor):
        return scale, abs(scale) * sd
    factor = pool.particles.factors[name].masked_fill(~pool.particles.rewards[name].isfinite(), math.nan)
    return float(scale.mean()), math.sqrt(max(pool.base.covariance(factor, factor).value, 0.0))


@dataclass(frozen=True)
class Answers:
    """Entropies in nats; exp of them is the effective number of distinct answers (all latents jointly, by ids).

    ``distinct``: different ones among the draws of the pool. ``at_least``: the entropies are lower bounds, since a
    function of the world answers by random numbers of its own (they count for neither of the three)"""

    prior_entropy: Estimate
    posterior_entropy: Estimate
    distinct: int
    at_least: bool = False


def answers(pool: Pool, prior: Pool) -> Answers | None:
    """H(p0) = -E[log p0] and H(p*) = log Z - E_p*[log p0 + psi]; None where a latent is continuous.

    log p0 of each draw is known, so that entropies far above log N can be estimated from N draws. ``prior``: draws of
    the prior itself. A seed has log p0 = 0 by definition: what is then estimated is the entropy of all else, less what
    the history and the likelihood tell of the seed, which is never negative."""
    if any(
        value.is_floating_point() and not is_discrete(pool.sites[name]) for name, value in pool.particles.values.items()
    ):
        return None
    w, log_prior = pool.weighted(pool.psi), pool.particles.total_log_prior
    before = prior.base.mean(-prior.particles.total_log_prior)
    joint = torch.where(pool.psi.isfinite(), log_prior + pool.psi, 0.0)
    of_joint = w.mean(joint)
    value = max(w.log_evidence.value - of_joint.value, 0.0)
    influence = w.relative - 1 - w.relative * (joint - of_joint.value)
    error = standard_error(influence) if w.enough else math.nan
    said = [name for name, fn in pool.sites.items() if not isinstance(fn, Seeds)]
    return Answers(before, Estimate(value, error), pool.distinct(said), len(said) < len(pool.sites))


@dataclass(frozen=True)
class Event:
    """Its probability before and after. ``hits``: draws of the pool in which it happened.

    Draws in which it never happened bound its probability from above, at 95%, and draws in which it always did from
    below: ``prior_bound``, ``posterior_bound`` (None: it is an estimate; NaN: nothing is known, for weights may be
    large where no draw is)."""

    name: str
    hits: int
    prior: Estimate
    posterior: Estimate
    prior_bound: float | None
    posterior_bound: float | None


def event(pool: Pool, prior: Pool, name: str, happens: Callable[[str], bool]) -> Event:
    """Did it happen in one of the texts of a draw? ``prior``: draws of the prior itself, perhaps the same.

    Raises ``InputError`` where ``happens`` fails on a text."""
    if not pool.texts:
        raise InputError(f"event {name!r} is about texts, and the program has no completion")
    hit = _hits(pool, name, happens)
    before = hit if prior is pool else _hits(prior, name, happens)
    share, n, w = float(before.mean()), prior.num_draws, pool.weighted(pool.psi)
    rare = min(NEVER_SEEN / n, 1.0)
    prior_bound = rare if share == 0 else 1 - rare if share == 1 else None
    estimate = Estimate(share, math.sqrt(share * (1 - share) / n) if prior_bound is None else math.nan)
    posterior, posterior_bound = w.mean(hit), None
    if w.alive and posterior.value in (0.0, 1.0):
        most = math.nan if pool.confined or prior_bound is None else _at_most(pool, w, rare)
        posterior_bound = most if posterior.value == 0 else 1 - most
        posterior = Estimate(posterior.value, math.nan)
    return Event(name, int(hit.sum()), estimate, posterior, prior_bound, posterior_bound)


def _hits(pool: Pool, name: str, happens: Callable[[str], bool]) -> torch.Tensor:
    rows = zip(*pool.texts.values(), strict=True)  # of each draw the texts, by site
    found = [any(_ask(name, happens, text) for texts in row for text in texts) for row in rows]
    return torch.tensor(found, dtype=torch.float64)


def _at_most(pool: Pool, w: Weighted, prior: float) -> float:
    """p*(A) = E_p0[w 1_A] / Z <= p0(A) sup w / Z; NaN where w has no known bound, or this one says nothing."""
    if pool.log_bound is None:
        return math.nan
    most = prior * math.exp(min(pool.log_bound - w.log_evidence.value, 700.0))
    return most if most < 1 else math.nan


def _ask(name: str, happens: Callable[[str], bool], text: str) -> bool:
    try:
        return bool(happens(text))
    except Exception as error:
        raise InputError(f"event {name!r} raised {type(error).__name__}: {error}, on the text {text!r}") from error
