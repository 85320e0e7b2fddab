"""The prior predictive of every reward, the variety of answers, and the probability of events the user names."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from ppl_align.errors import InputError
from ppl_align.inspection.pool import Pool
from ppl_align.inspection.weighted import Weighted
from ppl_align.posterior.estimates import Estimate
from ppl_align.program.environment import Seeds

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
NEVER_SEEN = 3.0
"""The rule of three: what n independent draws never showed has probability below 3/n, at 95%."""


@dataclass(frozen=True)
class PriorReward:
    """One reward on draws of the prior, in reward units; rejections (-inf) and None aside.

    ``applies``, ``rejected``: shares of the draws   ``ties``: share of the most frequent value
    ``scale``: nats per unit   ``nats``: standard deviation of the log-factor"""

    name: str
    mean: Estimate
    sd: float
    quantiles: tuple[float, ...]
    applies: float
    rejected: float
    ties: float
    scale: float

    @property
    def nats(self) -> float:
        return abs(self.scale) * self.sd


def prior_rewards(pool: Pool) -> list[PriorReward]:
    """Every reward of the program under its prior."""
    found = []
    for name, r in pool.rewards.items():
        kept = r[r.isfinite()]
        n = len(kept)
        if n == 0:
            nothing = (math.nan,) * len(QUANTILES)
            mean, sd, quantiles, ties = Estimate(math.nan, math.nan), math.nan, nothing, math.nan
        else:
            sd = float(kept.std()) if n > 1 else 0.0
            mean = Estimate(float(kept.mean()), sd / math.sqrt(n) if n > 1 else math.nan)
            quantiles = tuple(torch.quantile(kept, torch.tensor(QUANTILES, dtype=kept.dtype)).tolist())
            ties = float(torch.unique(kept, return_counts=True)[1].max()) / n
        applies, rejected = float((~r.isnan()).double().mean()), float(r.isneginf().double().mean())
        found.append(PriorReward(name, mean, sd, quantiles, applies, rejected, ties, pool.scales[name]))
    return found


@dataclass(frozen=True)
class Answers:
    """Entropies in nats; exp of them is the effective number of distinct answers (all latents jointly, by ids).

    ``distinct``: different ones among the draws of the pool"""

    prior_entropy: Estimate
    posterior_entropy: Estimate
    distinct: int


def answers(pool: Pool) -> Answers | None:
    """H(p0) = -E[log p0] and H(p*) = log Z - E_p*[log p0 + psi]; None where a latent is continuous.

    log p0 of each draw is known, so that entropies far above log N can be estimated from N draws."""
    if any(value.is_floating_point() and not _is_discrete(pool.sites[name]) for name, value in pool.values.items()):
        return None
    nothing = torch.zeros(pool.num_draws, dtype=torch.float64)
    log_prior = sum(pool.log_prior.values(), nothing)
    w = Weighted(pool.log_weight)
    prior = Weighted(nothing).mean(-log_prior)
    joint = torch.where(pool.log_weight.isfinite(), log_prior + pool.log_weight, 0.0)
    of_joint = w.mean(joint)
    value = max(w.log_evidence.value - of_joint.value, 0.0)
    influence = w.relative - 1 - w.relative * (joint - of_joint.value)
    error = float(influence.std()) / math.sqrt(pool.num_draws) if w.enough else math.nan
    said = [value for name, value in pool.values.items() if not isinstance(pool.sites[name], Seeds)]
    rows = torch.cat([value.reshape(pool.num_draws, -1).double() for value in said], 1)
    return Answers(prior, Estimate(value, error), len(torch.unique(rows, dim=0)))


def _is_discrete(fn: object) -> bool:
    try:
        return bool(fn.support.is_discrete)  # type: ignore[attr-defined]
    except (AttributeError, NotImplementedError):
        return False


@dataclass(frozen=True)
class Event:
    """Its probability before and after. ``hits``: draws of the pool in which it happened.

    Without a hit ``prior`` is 0 and ``prior_below`` what it is below at 95%; the posterior is then not known, except
    where the rewards are bounded: ``posterior_below`` (None: no such bound)."""

    name: str
    hits: int
    prior: Estimate
    posterior: Estimate
    prior_below: float | None
    posterior_below: float | None


def event(pool: Pool, name: str, happens: Callable[[str], bool]) -> Event:
    """Did it happen in one of the texts of a draw?

    Raises ``InputError`` where ``happens`` fails on a text."""
    if not pool.texts:
        raise InputError(f"event {name!r} is about texts, and the program has no completion")
    hit = torch.tensor([any(_ask(name, happens, text) for text in row) for row in _rows(pool)], dtype=torch.float64)
    w, n = Weighted(pool.log_weight), pool.num_draws
    hits, prior = int(hit.sum()), float(hit.mean())
    if hits == 0:
        below = min(NEVER_SEEN / n, 1.0)
        return Event(name, 0, Estimate(0.0, math.nan), Estimate(0.0, math.nan), below, _at_most(pool, w, below))
    error = math.sqrt(prior * (1 - prior) / n)
    return Event(name, hits, Estimate(prior, error), w.mean(hit), None, None)


def _at_most(pool: Pool, w: Weighted, prior: float) -> float | None:
    """p*(A) = E_p0[w 1_A] / Z <= p0(A) sup w / Z."""
    bounds = list(pool.log_upper.values())
    if any(bound is None for bound in bounds) or not w.alive:
        return None
    log_bound = sum(bound for bound in bounds if bound is not None)
    return min(1.0, prior * math.exp(min(log_bound - w.log_evidence.value, 700.0)))


def _rows(pool: Pool) -> list[list[str]]:
    return [[text for part in parts for text in part] for parts in zip(*pool.texts.values(), strict=True)]


def _ask(name: str, happens: Callable[[str], bool], text: str) -> bool:
    try:
        return bool(happens(text))
    except Exception as error:
        raise InputError(f"event {name!r} raised {type(error).__name__}: {error}, on the text {text!r}") from error


def events(pool: Pool, named: Mapping[str, Callable[[str], bool]]) -> list[Event]:
    """Every event by name."""
    return [event(pool, name, happens) for name, happens in named.items()]
