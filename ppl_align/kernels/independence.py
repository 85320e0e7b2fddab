"""Independence Metropolis-Hastings: draw the whole program anew, accept by the ratio of weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppl_align.kernels.cuts import Uniform
from ppl_align.kernels.kernel import Kernel, Move, PrefixMove, accept, runner_of, twists_of
from ppl_align.kernels.known import Known, Watching
from ppl_align.particles.particles import Particles
from ppl_align.runner.runner import Runner


@dataclass(frozen=True)
class IndependenceMH(Kernel):
    """rate = min(1, w(x') / w(x)) for an independent draw x' of the proposal, w its importance weight.

    It forgets where it is, which no suffix move does; it needs a proposal that comes close to the posterior.
    ``proposal``, ``twist``: as of :class:`~ppl_align.kernels.SuffixMH`.
    """

    proposal: Any = None
    twist: Any = None

    def __post_init__(self) -> None:
        twists_of(self.twist)

    def on_prefix(self, length: int) -> list[PrefixMove]:
        return [PrefixMove(Uniform(), (0, 1), lambda place: place.rest)]

    def bind(self, runner: Runner, others: bool = False) -> IndependenceMover:
        return IndependenceMover(self, runner, others)


class IndependenceMover:
    """:class:`IndependenceMH` at work."""

    def __init__(self, config: IndependenceMH, runner: Runner, others: bool) -> None:
        self.runner = runner_of(config, runner)
        self.watching = Watching(reads_entropy=False)
        self.known = Known(self.runner, others or not config.follows_engine, self.watching)

    def step(self, particles: Particles, exponent: Tensor | float = 1.0) -> tuple[Particles, list[Move]]:
        old = self.known.of(particles)
        new = self.runner.finish(self.runner.start(particles.size), self.watching)
        if self.known.remembers:
            self.known.learn(new)
        still = torch.zeros(particles.size, dtype=torch.float64)
        accepted, rate = accept(old.log_weight, new.log_weight, still, exponent)
        move = Move(next(iter(particles.values)), torch.zeros(particles.size, dtype=torch.long), accepted, rate)
        return new.where(accepted, old), [move]


__all__ = ["IndependenceMH"]
