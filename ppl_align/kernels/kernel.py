"""What a Markov kernel is: it moves particles at the end of a program, and leaves their law as it is.

With q the law that an engine draws from and W = log p0 + psi - log q the log-weight of a whole program, every kernel
leaves invariant, for any ``exponent`` e in (0, 1],

    q(x) exp(e W(x))

which is the posterior where e = 1, and for smaller e lies between what is drawn and the posterior (annealing). A kernel
with a proposal of its own does so at e = 1 only.

A new kernel is one file: a class with :meth:`Kernel.bind`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ppl_align.core.errors import InputError
from ppl_align.kernels.cuts import Cuts
from ppl_align.kernels.place import Place
from ppl_align.lm.restriction import Restriction
from ppl_align.particles.particles import Particles, Site
from ppl_align.runner.proposals import as_proposal
from ppl_align.runner.runner import Runner
from ppl_align.twists.hard_constraint import HardConstraint
from ppl_align.twists.lookahead import LearnedLookAhead
from ppl_align.twists.twist import Scene, Sum, Twist, parts_of


class Move(NamedTuple):
    """What was proposed to P particles, and what became of it.

    ``site``      from where on new values were drawn      ``cut``   [P] from which of its tokens on; -1: no move
    ``accepted``  bool [P]                                 ``rate``  [P] the probability of that"""

    site: str
    cut: Tensor
    accepted: Tensor
    rate: Tensor


class PrefixMove(NamedTuple):
    """A move of unfinished texts [P, K]: cut by the law ``cuts``, within ``window``; ``which(place)`` of their tokens,
    bool [P, K, T], are drawn anew."""

    cuts: Cuts
    window: tuple[int, int]
    which: Callable[[Place], Tensor]


class Mover(Protocol):
    """A kernel at work on one program. It may remember what it knows of states: one for each run of an engine."""

    def step(self, particles: Particles, exponent: Tensor | float = 1.0) -> tuple[Particles, list[Move]]:
        """Move each particle; ``exponent``: one for all, or one for each [P]. Moves in their order; none where the
        program has nothing that the kernel moves."""
        ...


class Kernel(ABC):
    """The configuration of a kernel, printable as engines are. ``proposal``, ``twist``: what it draws from, where that
    is not what the engine does."""

    proposal: Any = None
    twist: Any = None

    @abstractmethod
    def bind(self, runner: Runner, others: bool = False) -> Mover:
        """The kernel at work; ``runner``: how the engine draws; ``others``: kernels with other proposals move the same
        particles, whose ``log_proposal`` is then theirs."""

    def on_prefix(self, length: int) -> list[PrefixMove]:
        """Its moves on texts of which at most ``length`` tokens are written: for ``SMC(rejuvenate=...)``.

        Raises ``InputError`` if it moves whole programs only."""
        raise InputError(f"{self!r} moves whole programs only, and rejuvenate= wants moves of unfinished texts")

    @property
    def follows_engine(self) -> bool:
        """Does it draw from what the engine draws from?"""
        return self.proposal is None and self.twist is None


def runner_of(kernel: Kernel, runner: Runner) -> Runner:
    """How a kernel draws: as the engine does, or in its own way."""
    return runner if kernel.follows_engine else drawing(runner, kernel.proposal, kernel.twist)


def drawing(runner: Runner, proposal: Any, twist: Any) -> Runner:
    """The runner with tokens from ``proposal``, as they lean to ``twist``."""
    parts = twists_of(twist)
    return runner.drawing_from(as_proposal(proposal), Proposing(parts) if parts else None)


def twists_of(twist: Any) -> list[Twist]:
    """What ``twist=`` of a kernel was given. Raises ``InputError`` for one that only judges: it cannot propose."""
    parts = parts_of(twist, {"lookahead": LearnedLookAhead})
    for part in parts:
        if not part.proposes and not isinstance(part, LearnedLookAhead):
            raise InputError(
                f"{part!r} judges prefixes: where nothing is resampled on the way, a twist has to propose tokens "
                f"(Twist.next_token)"
            )
    return parts


class _Once(Twist):
    """What a twist learns before a completion is written, it learns once: every draw has one and the same law."""

    def __init__(self, learner: LearnedLookAhead) -> None:
        self.learner = learner
        self.learned: dict[str, Twist | None] = {}

    def at(self, scene: Scene) -> Twist | None:
        if scene.site.name not in self.learned:
            self.learned[scene.site.name] = self.learner.at(scene)
        return self.learned[scene.site.name]


def learned_once(parts: Sequence[Twist]) -> list[Twist]:
    """The same twists; those that learn do so the first time only."""
    return [_Once(part) if isinstance(part, LearnedLookAhead) else part for part in parts]


class Proposing:
    """Tokens lean to what twists know."""

    def __init__(self, parts: Sequence[Twist]) -> None:
        self.parts = learned_once(parts)

    def lean(self, site: Site, restriction: Restriction | None) -> Twist | None:
        scene = Scene(site, restriction)
        found = [part.at(scene) for part in (HardConstraint(), *self.parts)]
        known = [one for one in found if one is not None]
        return Sum(known) if known else None


def checked(moves: list[Move]) -> list[Move]:
    """Raises ``InputError`` if there was nothing to move."""
    if not moves:
        raise InputError("the kernel has nothing to move in this program: take SuffixMH(), or add it in a Cycle")
    return moves


def accept(old: Tensor, new: Tensor, correction: Tensor, exponent: Tensor | float) -> tuple[Tensor, Tensor]:
    """Metropolis-Hastings on log-weights [P] of whole programs: ``(accepted [P], rate [P])``.

    rate = min(1, exp(e (W' - W) + correction)), with the correction log c(x') / c(x) for how the move was chosen."""
    ratio = torch.where(new.isneginf(), -torch.inf, exponent * (new - old) + correction)
    ratio = torch.where(old.isneginf() & ~new.isneginf(), torch.inf, ratio)  # out of what has no weight
    rate = ratio.clamp_max(0.0).exp()
    return torch.rand(len(rate), dtype=torch.float64) < rate, rate


__all__ = [
    "Kernel",
    "Move",
    "Mover",
    "PrefixMove",
    "accept",
    "checked",
    "drawing",
    "runner_of",
    "twists_of",
]
