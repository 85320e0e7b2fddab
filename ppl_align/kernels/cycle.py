"""Several kernels, one after the other: what each leaves as it is, all of them do."""

from __future__ import annotations

from torch import Tensor

from ppl_align.core.errors import InputError
from ppl_align.kernels.kernel import Kernel, Move, Mover, PrefixMove
from ppl_align.particles.particles import Particles
from ppl_align.runner.runner import Runner


class Cycle(Kernel):
    """``Cycle(SuffixMH(), IndependenceMH(guide))``: one step is a step of each, in that order."""

    def __init__(self, *kernels: Kernel) -> None:
        if not kernels or not all(isinstance(kernel, Kernel) for kernel in kernels):
            raise InputError("Cycle(...) takes kernels, such as SuffixMH(), one argument each")
        self.kernels = kernels

    def __repr__(self) -> str:
        return f"Cycle({', '.join(map(repr, self.kernels))})"

    def bind(self, runner: Runner, others: bool = False) -> _Cycling:
        others = others or (len(self.kernels) > 1 and not self.follows_engine)
        return _Cycling([kernel.bind(runner, others) for kernel in self.kernels])

    def on_prefix(self, length: int) -> list[PrefixMove]:
        return [move for kernel in self.kernels for move in kernel.on_prefix(length)]

    @property
    def follows_engine(self) -> bool:
        return all(kernel.follows_engine for kernel in self.kernels)


class _Cycling:
    def __init__(self, movers: list[Mover]) -> None:
        self.movers = movers

    def step(self, particles: Particles, exponent: Tensor | float = 1.0) -> tuple[Particles, list[Move]]:
        moves: list[Move] = []
        for mover in self.movers:
            particles, made = mover.step(particles, exponent)
            moves += made
        return particles, moves


__all__ = ["Cycle"]
