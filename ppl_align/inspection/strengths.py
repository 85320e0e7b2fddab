"""How far each strength of the rewards takes the posterior from the prior: log Z, KL, E[r] and ESS over beta.

All strengths come from one pool (see :mod:`ppl_align.inspection.pool`): every beta of the program is multiplied by a
common factor c. By the chain rule for the log-partition function, with psi_r what the rewards say at c = 1,

    d log Z / d log c = -E_p*[psi_r],     d E_p*[f] / d log c = -Cov_p*(f, psi_r)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ppl_align.inspection.pool import Pool
from ppl_align.posterior.estimates import Estimate

FACTORS = tuple(2.0 ** (k / 4) for k in range(-16, 17))
"""Multiples of the betas as they are written, a sixteenth to sixteen times; beyond, where that is not wide enough."""
WIDEST = 2.0**24
SLIGHT = 0.1
"""Nats of KL below which a reward hardly changes what is written."""


@dataclass(frozen=True)
class Strength:
    """The target with every beta multiplied by ``factor``.

    ``moved``: KL(p*||p* at an infinite beta), nats: what rewards do beyond constraints, observations and rejections
    ``enough``: the pool has draws enough to state errors; otherwise ``log_evidence`` and ``kl`` are rather too low"""

    factor: float
    log_evidence: Estimate
    kl: Estimate
    moved: Estimate
    rewards: dict[str, Estimate]
    ess: float
    enough: bool


def strength(pool: Pool, factor: float) -> Strength:
    """The target at one multiple of the betas."""
    w = pool.weighted(pool.strength(factor))
    rewards = {name: w.mean(r) for name, r in pool.particles.rewards.items()}
    moved = w.gain(pool.tilt / factor, pool.weighted(pool.strength(math.inf)))
    return Strength(factor, w.log_evidence, w.kl, moved, rewards, w.ess, w.enough)


def strengths(pool: Pool) -> list[Strength]:
    """The grid, smallest beta first; a program without rewards has only itself.

    Longer where rewards still act at its end, or the pool still carries what they do at its beginning: betas may be far
    off the scale of r."""
    if not pool.chosen:
        return [strength(pool, 1.0)]
    found = [strength(pool, factor) for factor in FACTORS]
    if not pool.told_apart:
        return found
    while found[-1].moved.value >= SLIGHT and found[-1].factor < WIDEST:
        found.append(strength(pool, found[-1].factor * FACTORS[-1] / FACTORS[-2]))
    while found[0].enough and not _settled(found) and found[0].factor > 1 / WIDEST:
        found.insert(0, strength(pool, found[0].factor * FACTORS[0] / FACTORS[1]))
    return found


def _settled(found: list[Strength]) -> bool:
    """Do smaller betas change nothing any more? A reward of two values has then chosen the better one."""
    return found[0].moved.value >= SLIGHT and found[0].moved.value - found[1].moved.value < SLIGHT / 10


def useful_range(found: list[Strength]) -> tuple[float, float] | None:
    """Factors between which the pool is enough and the rewards move the posterior by ``SLIGHT`` nats; None: there are
    none. What observations and constraints do by themselves stays at any beta and does not count."""
    fit = [s.factor for s in found if s.enough and s.moved.value >= SLIGHT]
    return (min(fit), max(fit)) if fit else None


NOT_KNOWN = Estimate(math.nan, math.nan)


@dataclass(frozen=True)
class Sensitivity:
    """What one factor does. ``gain``: KL(p* || p* without it), nats; ``kl_without``, ``log_evidence_without`` of what
    is left (NaN for a constraint that the draws are confined to: none of them breaks it); ``per_log_beta``: d E[r] /
    d log beta when all betas grow together (None for what is no reward)."""

    name: str
    gain: Estimate
    kl_without: Estimate
    log_evidence_without: Estimate
    per_log_beta: Estimate | None


def sensitivities(pool: Pool) -> list[Sensitivity]:
    """Every factor of the program in turn, the weightiest first."""
    whole, tilt = pool.weighted(pool.psi), pool.tilt
    found = []
    for name, part in pool.particles.factors.items():
        if pool.confined and name in pool.constraints:
            found.append(Sensitivity(name, NOT_KNOWN, NOT_KNOWN, NOT_KNOWN, None))
            continue
        less = pool.weighted(pool.without(name))
        slope = None
        if name in pool.particles.rewards and pool.chosen:
            moved = whole.covariance(pool.particles.rewards[name], tilt)
            slope = Estimate(-moved.value, moved.standard_error)
        gain = whole.gain(part, less)
        found.append(Sensitivity(name, gain, less.kl, less.log_evidence, slope))
    return sorted(found, key=lambda s: -s.gain.value if math.isfinite(s.gain.value) else 0.0)


def log_evidence_slope(pool: Pool) -> Estimate:
    """d log Z / d log beta = -E_p*[psi_r], nats for each e-fold of beta."""
    mean = pool.weighted(pool.psi).mean(torch.where(pool.tilt.isneginf(), 0.0, pool.tilt))
    return Estimate(-mean.value, mean.standard_error)
