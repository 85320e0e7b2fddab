"""Two small cases in which estimates of the evidence can be worked out by listing everything."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ppl_align.testing.oracle import Oracle


class ExactImportance(NamedTuple):
    """Importance sampling with N draws of the prior: E log Zhat, E log Zhat_c, and the law of what it delivers.

    ``delivered``, ``target``: log-probabilities of each *level* of the weight, [L]; within a level both laws are the
    prior's, so divergences between levels are divergences between texts."""

    lower: float
    upper: float
    delivered: Tensor
    target: Tensor


def importance(oracle: Oracle, num_particles: int) -> ExactImportance:
    """By listing the N-tuples of levels: L^N terms."""
    levels, where = ((oracle.log_potential * 1e9).round() / 1e9).unique(return_inverse=True)
    mass = torch.zeros(len(levels), dtype=torch.float64).index_add_(0, where, oracle.log_prior.exp())
    weight = levels.exp()
    target = mass * weight / (mass * weight).sum()
    others, chance = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    for _ in range(num_particles - 1):
        others = (others[:, None] + weight).reshape(-1)
        chance = (chance[:, None] * mass).reshape(-1)
    total = weight[:, None] + others  # the first particle is singled out: [L, L^(N-1)]
    estimate = (total / num_particles).log()
    first = chance * (weight[:, None] / total)
    return ExactImportance(
        float((mass[:, None] * chance * estimate).sum()),
        float((target[:, None] * chance * estimate).sum()),
        (num_particles * mass * first.sum(-1)).log(),
        target.log(),
    )


STAYS: dict[str, Callable[[float], float]] = {
    "multinomial": lambda share: share,
    "conditional systematic": lambda share: max(0.0, (2 * share - 1) / share),
    "plain systematic, slot 0 forced": lambda share: max(0.0, 2 * share - 1),
}
"""Two particles: the chance that slot 1 becomes a copy of the retained particle, which has this share of the weight."""


def two_steps(prefix: float, final: float, stays: Callable[[float], float]) -> float:
    """E[Z / Zhat_c] of conditional SMC with two particles on two coins; only the first one counts: heads weighs
    ``prefix`` when it is drawn and ``final`` at the end, tails 1."""
    first, last = (1.0, prefix), (1.0, final)
    z = (1 + final) / 2
    total = 0.0
    for kept, other in itertools.product((0, 1), repeat=2):
        chance = 0.5 * last[kept] / z * 0.5
        share, mean = first[kept] / (first[kept] + first[other]), (first[kept] + first[other]) / 2
        stay = 1.0 if kept == other else stays(share)  # equal weights are not resampled: nothing changes either way
        for ancestor, p in ((kept, stay), (other, 1 - stay)):
            estimate = mean * (last[kept] / first[kept] + last[ancestor] / first[ancestor]) / 2
            total += chance * p * z / estimate
    return total
