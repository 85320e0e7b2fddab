"""Markov chain Monte Carlo: chains that walk through texts, each step of which leaves the posterior as it is.

Where importance sampling would need exp(KL) draws, a chain needs steps; but it estimates no evidence, and that it has
arrived it cannot show itself. Chains are *ordered* draws: R-hat between them, and their effective sample sizes by the
autocorrelation, are what ArviZ makes of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from ppl_align.core.errors import InputError
from ppl_align.core.validation import at_least
from ppl_align.engines.base import Engine, Task, all_dead
from ppl_align.kernels.kernel import Kernel, Move, checked
from ppl_align.kernels.suffix import SuffixMH
from ppl_align.particles.particles import Particles
from ppl_align.posterior import Posterior
from ppl_align.posterior.kind import Kind
from ppl_align.posterior.of_particles import of_particles
from ppl_align.posterior.selection import draws_of
from ppl_align.runner.runner import Runner

_ROUNDS = 12
"""Rounds of draws, each twice as large, for states of positive weight to begin with."""


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
    num_samples: int = 64
    num_warmup: int = 64
    thinning: int = 1
    init: Posterior | None = None

    name: ClassVar[str] = "mcmc"

    def __post_init__(self) -> None:
        at_least(1, num_chains=self.num_chains, num_samples=self.num_samples, thinning=self.thinning)
        at_least(0, num_warmup=self.num_warmup)
        if not isinstance(self.kernel, Kernel):
            raise InputError(f"kernel= takes a kernel, such as SuffixMH(), got {type(self.kernel).__name__}")
        if self.init is not None and not isinstance(self.init, Posterior):
            raise InputError(f"init= takes a Posterior, whose draws chains begin in, got {type(self.init).__name__}")

    def _infer(self, task: Task) -> Posterior:
        runner = task.runner()
        particles, moves = self._begun(runner), Moves()
        mover = self.kernel.bind(runner)
        states: list[Particles] = []
        total = self.num_warmup + self.num_samples * self.thinning
        for step in range(1, total + 1):
            particles, made = mover.step(particles)
            moves.note(checked(made, self.kernel))
            if step > self.num_warmup and (step - self.num_warmup) % self.thinning == 0:
                states.append(particles)
            task.progress(step, total, f"steps of chains, {moves.accepted:.0%} accepted")
        chains, samples = self.num_chains, len(states)
        index = torch.arange(chains * samples).reshape(samples, chains).T.reshape(-1)
        log_weight = torch.zeros(chains, samples, dtype=torch.float64)
        history = moves.history(self.num_warmup)
        return of_particles(
            Particles.concat(states).take(index), log_weight, Kind.CHAIN, log_proposal=None, history=history
        )

    def _begun(self, runner: Runner) -> Particles:
        """Where chains begin, all of positive weight."""
        if self.init is not None:
            particles = runner.given(draws_of(self.init, self.num_chains))
            if bool(particles.log_weight.isneginf().any()):
                raise InputError("a draw of init= has weight zero in this program: it is no draw of its posterior")
            return particles
        found: list[Particles] = []
        missing, size = self.num_chains, self.num_chains
        for _ in range(_ROUNDS):
            drawn = runner.finish(runner.start(size))
            alive = drawn.log_weight.isfinite().nonzero()[:missing, 0]
            found.append(drawn.take(alive))
            missing -= len(alive)
            if not missing:
                return Particles.concat([part for part in found if part.size])
            size = min(2 * size, 64 * self.num_chains)
        raise all_dead("where its chains begin", drawn, runner.constraints.hint(drawn))


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
