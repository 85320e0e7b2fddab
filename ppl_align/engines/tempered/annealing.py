"""One step of annealing, and the pilot that decides how many there are.

With q what is drawn, W = log p0 + psi - log q of whole programs, and exponents 0 = e_0 < e_1 < ... < e_K = 1, the
targets q(x) exp(e_k W(x)) lead from q to the posterior. From each to the next::

    reweight   w = exp((e_k - e_{k-1}) W)                Zhat *= mean of w
    resample   by w
    move       with a kernel that leaves q exp(e_k W) as it is

E[Zhat] = Z for any exponents and any numbers of moves that are fixed beforehand. They are: a population of its own, the
*pilot*, chooses them, and nothing else of it is used. (Chosen by the particles that are weighed, they leave a bias of
order 1/N: Beskos, Jasra, Kantas & Thiery 2016, arXiv:1306.6462.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ppl_align.core.errors import RunError
from ppl_align.kernels.kernel import Mover, checked
from ppl_align.particles.particles import Particles
from ppl_align.particles.resampling import ancestors_of
from ppl_align.particles.schemes import Resampler
from ppl_align.particles.weights import Weights, log_mean_exp

MAX_LEVELS = 200
"""Exponents that a pilot may want. More, and it would not arrive."""
_BISECTIONS = 60


class Level(NamedTuple):
    """The next ``exponent``, how often particles are moved there, and the ``correlation`` of W with what it was before,
    which the pilot saw after as many moves."""

    exponent: float
    num_moves: int
    correlation: float


class Population(NamedTuple):
    """R replicates of N ``particles`` [R * N] in equal weight at ``exponent``; ``log_evidence`` [R] nats so far;
    ``lineage`` [R, N]: which particle of the start each comes from."""

    particles: Particles
    exponent: float
    log_evidence: Tensor
    lineage: Tensor

    @classmethod
    def start(cls, particles: Particles, replicates: int) -> Population:
        lineage = torch.arange(particles.size // replicates).expand(replicates, -1)
        return cls(particles, 0.0, torch.zeros(replicates, dtype=torch.float64), lineage)

    @property
    def log_weight(self) -> Tensor:
        """W, [R, N] nats."""
        return self.particles.log_weight.reshape(self.lineage.shape)

    def increment(self, exponent: float) -> Tensor:
        """log w on the way to another exponent, [R, N] nats."""
        return torch.where(self.log_weight.isneginf(), -torch.inf, (exponent - self.exponent) * self.log_weight)

    def resampled(self, exponent: float, size: int, scheme: Resampler) -> Population:
        """At the next exponent, with ``size`` particles in each replicate."""
        log_weight = self.increment(exponent)
        ancestors = ancestors_of(log_weight, size, scheme)
        flat = (ancestors + torch.arange(len(ancestors))[:, None] * log_weight.shape[-1]).reshape(-1)
        evidence = self.log_evidence + log_mean_exp(log_weight)
        return Population(self.particles.take(flat), exponent, evidence, self.lineage.gather(-1, ancestors))

    def moved(self, mover: Mover) -> tuple[Population, float]:
        """After a step of the kernel, and the share of its moves that were accepted."""
        particles, moves = mover.step(self.particles, self.exponent)
        checked(moves)
        tried = sum(int((move.cut >= 0).sum()) for move in moves)
        return self._replace(particles=particles), sum(int(move.accepted.sum()) for move in moves) / max(tried, 1)

    @classmethod
    def pooled(cls, states: list[Population]) -> Population:
        """All states of the same chains, in equal weight (waste-free: Dau & Chopin 2022, arXiv:2011.02328)."""
        first = states[-1]
        replicates, size = first.lineage.shape
        steps = len(states)
        index = torch.arange(steps * replicates * size).reshape(steps, replicates, size).transpose(0, 1).reshape(-1)
        particles = Particles.concat([state.particles for state in states]).take(index)
        return first._replace(particles=particles, lineage=first.lineage.repeat(1, steps))


class Seen(NamedTuple):
    """Of one level: ``ess`` [R] before resampling, ``increment`` [R] of log Zhat, the share of moves ``accepted``."""

    ess: Tensor
    increment: Tensor
    accepted: float


def anneal(
    population: Population,
    levels: list[Level],
    mover: Mover,
    scheme: Resampler,
    waste_free: bool,
    progress: Callable[[int, int, str], None],
) -> tuple[Population, list[Seen]]:
    """Through given levels. ``waste_free``: all states of the chains go on, not the last ones only."""
    size, seen = population.lineage.shape[-1], []
    done, total = 0, sum(level.num_moves for level in levels)
    for exponent, num_moves, _ in levels:
        ess, before = Weights(population.increment(exponent)).ess, population.log_evidence
        population = population.resampled(exponent, size, scheme)
        increment, rates, states = population.log_evidence - before, [], [population]
        for _ in range(num_moves):
            population, rate = population.moved(mover)
            rates.append(rate)
            states.append(population)
            done += 1
            progress(done, total, f"moves, exponent {exponent:.2g}, {rate:.0%} accepted")
        if waste_free:
            population = Population.pooled(states)
        seen.append(Seen(ess, increment, sum(rates) / max(len(rates), 1)))
    return population, seen


def pilot(
    population: Population,
    mover: Mover,
    scheme: Resampler,
    ess_threshold: float,
    num_moves: int | None,
    max_moves: int,
    progress: Callable[[int, int, str], None],
) -> list[Level]:
    """Exponents, each as far from the last as leaves an ESS of ``ess_threshold`` * N, and moves at each: ``num_moves``,
    or until W is no longer what it was (its :func:`correlation` is ``CORRELATED``), ``max_moves`` at most.

    N is the number of particles alive; of those that the program rules out none are left after the first level.
    Raises ``RunError`` where the pilot does not arrive."""
    levels: list[Level] = []
    size = population.particles.size
    while population.exponent < 1:
        if len(levels) == MAX_LEVELS:
            raise RunError(
                f"after {MAX_LEVELS} exponents the pilot has come to {population.exponent:.2g} of 1: lower "
                f"ess_threshold, or take more particles"
            )
        exponent = next_exponent(population.log_weight.reshape(-1), population.exponent, ess_threshold)
        population = population.resampled(exponent, size, scheme)
        before, made, kept = population.particles.log_weight, 0, 1.0
        while made < (max_moves if num_moves is None else num_moves):
            population, _ = population.moved(mover)
            made, kept = made + 1, correlation(before, population.particles.log_weight)
            progress(round(100 * exponent), 100, f"pilot, exponent {exponent:.2g}")
            if num_moves is None and kept <= CORRELATED:
                break
        levels.append(Level(exponent, made, kept))
    return levels


def next_exponent(log_weight: Tensor, exponent: float, ess_threshold: float) -> float:
    """The largest e <= 1 at which exp((e - exponent) W) has an ESS of ``ess_threshold`` of those alive; W [N]."""
    alive = log_weight[log_weight.isfinite()]
    least = ess_threshold * len(alive)

    def enough(e: float) -> bool:
        return bool(Weights((e - exponent) * alive).ess >= least)

    if enough(1.0):
        return 1.0
    low, high = exponent, 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if enough(middle) else (low, middle)
    return high  # just beyond: two exponents are never the same


CORRELATED = 0.2
"""Of W with itself before the moves: it has forgotten what it was."""


def correlation(before: Tensor, after: Tensor) -> float:
    """Of W [N] with what it was; 0 where either is the same for all: there is nothing to remember."""
    pairs = torch.stack([before, after]) - torch.stack([before.mean(), after.mean()])[:, None]
    covariance = pairs @ pairs.T
    scale = float((covariance[0, 0] * covariance[1, 1]).sqrt())
    return float(covariance[0, 1]) / scale if scale > 0 else 0.0


__all__ = ["CORRELATED", "Level", "Population", "Seen", "anneal", "pilot"]
