"""Markov chain Monte Carlo: chains that walk through texts, each step of which leaves the posterior as it is.

Where importance sampling would need exp(KL) draws, a chain needs steps; but it estimates no evidence, and that it has
arrived it cannot show itself. Chains are *ordered* draws: R-hat between them, and their effective sample sizes by the
autocorrelation, are what ArviZ makes of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ppl_align.core.errors import InputError
from ppl_align.core.progress import silent
from ppl_align.engines.base import Engine, Task
from ppl_align.engines.chains import begun, check_chains, of_chains
from ppl_align.kernels.kernel import Kernel, Move, checked
from ppl_align.kernels.suffix import SuffixMH
from ppl_align.particles.particles import Particles
from ppl_align.posterior import Posterior


@dataclass(frozen=True)
class MCMC(Engine):
    """``num_chains`` Markov chains in one batch, over whole programs.

    ``kernel``       what moves them (:mod:`ppl_align.kernels`)
    ``num_samples``  states kept of each chain, N       ``num_warmup``   steps before the first of them
    ``thinning``     steps from one to the next         ``init``         a posterior whose draws they begin in; None:
                     draws of the prior that the program does not rule out

    There is no log Z. ``history``: for each move, ``cut`` and ``accepted`` [moves, chains], and ``move_site``. In a
    world that answers (``environment``) chains condition, as SMC does. Source: Metropolis et al. 1953; Hastings 1970.
    """

    kernel: Kernel = field(default_factory=SuffixMH)
    num_chains: int = 16
    num_samples: int = 256
    num_warmup: int = 64
    thinning: int = 1
    init: Posterior | None = None

    name: ClassVar[str] = "mcmc"

    def __post_init__(self) -> None:
        check_chains(self.num_chains, self.num_samples, self.num_warmup, self.thinning, self.init)
        if not isinstance(self.kernel, Kernel):
            raise InputError(f"kernel= takes a kernel, such as SuffixMH(), got {type(self.kernel).__name__}")

    def _infer(self, task: Task) -> Posterior:
        runner = replace(task, progress=silent).runner()
        mover = self.kernel.bind(runner)
        particles, moves = begun(runner, self.init, self.num_chains), Moves()
        states: list[Particles] = []
        total = self.num_warmup + self.num_samples * self.thinning
        for step in range(1, total + 1):
            particles, made = mover.step(particles)
            moves.note(checked(made))
            if step > self.num_warmup and (step - self.num_warmup) % self.thinning == 0:
                states.append(particles)
            task.progress(step, total, f"steps of chains, {moves.accepted:.0%} accepted")
        return of_chains(states, moves.history(self.num_warmup))


class Moves:
    """What became of all moves of a run."""

    def __init__(self) -> None:
        self.sites: list[str] = []
        self.cuts: list[Tensor] = []
        self.outcomes: list[Tensor] = []

    def note(self, made: list[Move]) -> None:
        for move in made:
            self.sites.append(move.site)
            self.cuts.append(move.cut)
            self.outcomes.append(move.accepted)

    @property
    def accepted(self) -> float:
        """Share of the moves so far."""
        tried = sum(int((cut >= 0).sum()) for cut in self.cuts)
        return sum(int(yes.sum()) for yes in self.outcomes) / max(tried, 1)

    def history(self, num_warmup: int) -> dict[str, Any]:
        return {
            "cut": torch.stack(self.cuts),
            "accepted": torch.stack(self.outcomes),
            "move_site": list(self.sites),
            "num_warmup": num_warmup,
        }


__all__ = ["MCMC"]
