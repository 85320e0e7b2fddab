"""Tempered sequential Monte Carlo: whole texts, led from what is drawn to the posterior."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch

from ppl_align.core.errors import InputError
from ppl_align.core.progress import silent
from ppl_align.core.runs import is_top_level
from ppl_align.core.validation import at_least, one_of
from ppl_align.engines.base import Engine, Task, all_dead
from ppl_align.engines.tempered.annealing import CORRELATED, Level, Population, Seen, anneal, pilot
from ppl_align.kernels.kernel import Kernel, drawing, twists_of
from ppl_align.kernels.suffix import SuffixMH
from ppl_align.particles.resampling import EQUAL
from ppl_align.posterior import Posterior
from ppl_align.posterior.kind import Kind
from ppl_align.posterior.of_particles import of_particles
from ppl_align.runner.proposals import ProposesValues, as_proposal
from ppl_align.runner.runner import Runner

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TemperedSMC(Engine):
    """Particles are drawn whole, then tempered: reweighted a little, resampled, moved by a kernel, until they are draws
    of the posterior. For targets many nats away whose unfinished texts do not tell how good they will be.

    ``num_particles``   particles of each population, N       ``num_replicates``  independent populations, R
    ``kernel``          what moves them (:mod:`ppl_align.kernels`); it draws as the engine does
    ``num_moves``       steps of the kernel at each exponent; None: as many as W needs to forget what it was, found by
                        the pilot, ``max_moves`` at most
    ``ess_threshold``   the next exponent is as far as leaves an ESS of this share of the particles
    ``waste_free``      all states of the kernel's steps go on, not the last ones only: N * (moves + 1) in the end
    ``resampling``      as for SMC
    ``proposal``        what is drawn, as for importance sampling       ``twist``  what its tokens lean to: "lookahead",
                        or a twist that proposes tokens

    A pilot of N particles chooses exponents and numbers of moves; its tokens are on the bill. E[Zhat] = Z.
    ``history``, at each exponent: ``exponent``, ``num_moves``, ``move_correlation`` (of W with what it was before them,
    in the pilot), ``move_accepted``, ``ess``, ``log_evidence_increment``; ``lasting``: the largest such correlation.
    Sources: Del Moral, Doucet & Jasra 2006; Dau & Chopin 2022 (arXiv:2011.02328).
    """

    num_particles: int = 64
    num_replicates: int = 4
    kernel: Kernel = field(default_factory=SuffixMH)
    num_moves: int | None = None
    max_moves: int = 32
    ess_threshold: float = 0.7
    waste_free: bool = False
    resampling: str = "systematic"
    proposal: Any = None
    twist: Any = None

    name: ClassVar[str] = "tempered"

    def __post_init__(self) -> None:
        at_least(2, num_particles=self.num_particles)
        at_least(1, num_replicates=self.num_replicates, max_moves=self.max_moves)
        if self.num_moves is not None:
            at_least(1, num_moves=self.num_moves)
        if not 0 < self.ess_threshold < 1:
            raise InputError(
                f"ess_threshold is a share of the particles, above 0 and below 1: got {self.ess_threshold:g}"
            )
        one_of("resampling", self.resampling, list(EQUAL))
        if not isinstance(self.kernel, Kernel):
            raise InputError(f"kernel= takes a kernel, such as SuffixMH(), got {type(self.kernel).__name__}")
        if not self.kernel.follows_engine:
            raise InputError(
                "the kernel of TemperedSMC draws as the engine does: give proposal= and twist= to TemperedSMC"
            )
        twists_of(self.twist)
        if isinstance(as_proposal(self.proposal), ProposesValues):
            raise InputError(
                "this guide proposes whole values, and kernels redraw tokens: use one that proposes tokens"
            )

    def _infer(self, task: Task) -> Posterior:
        runner = drawing(replace(task, progress=silent).runner(), self.proposal, self.twist)
        scheme = EQUAL[self.resampling]
        levels = self._levels(task, runner)
        self._say_what_lasts(levels)
        mover = self.kernel.bind(runner)
        start = self._drawn(runner, self.num_replicates)
        population, seen = anneal(start, levels, mover, scheme, self.waste_free, task.progress)
        log_weight = population.log_evidence[:, None].expand(population.lineage.shape)
        if bool(log_weight.isneginf().all()):
            raise all_dead("at the end of the program", start.particles, runner.constraints.hint(start.particles))
        return of_particles(
            population.particles,
            log_weight.clone(),
            Kind.RESAMPLED,
            log_proposal=None,
            steered=self.proposal is not None or self.twist is not None,
            history=_history(levels, seen, population),
        )

    def _levels(self, task: Task, runner: Runner) -> list[Level]:
        mover, scheme = self.kernel.bind(runner), EQUAL[self.resampling]
        population = self._drawn(runner, 1)
        if bool(population.log_weight.isneginf().all()):
            raise all_dead("in the pilot", population.particles, runner.constraints.hint(population.particles))
        return pilot(population, mover, scheme, self.ess_threshold, self.num_moves, self.max_moves, task.progress)

    def _say_what_lasts(self, levels: list[Level]) -> None:
        """Moves that leave particles where they were lead nowhere: log Zhat is then too low more often than not."""
        lasting = [level for level in levels if level.correlation > CORRELATED]
        if lasting and self.num_moves is None and is_top_level():
            worst = max(lasting, key=lambda level: level.correlation)
            log.warning(
                "at %d of %d exponents the moves leave much as it was (at %.2g log-weights correlate by %.2f with what "
                "they were %d moves before): raise max_moves (%d), take more particles or another kernel",
                len(lasting), len(levels), worst.exponent, worst.correlation, worst.num_moves, self.max_moves,
            )  # fmt: skip

    def _drawn(self, runner: Runner, replicates: int) -> Population:
        return Population.start(runner.finish(runner.start(replicates * self.num_particles)), replicates)


def _history(levels: list[Level], seen: list[Seen], population: Population) -> dict[str, Any]:
    ess = torch.stack([level.ess for level in seen])
    return {
        "exponent": torch.tensor([level.exponent for level in levels], dtype=torch.float64),
        "num_moves": torch.tensor([level.num_moves for level in levels]),
        "move_correlation": torch.tensor([level.correlation for level in levels], dtype=torch.float64),
        "lasting": max(level.correlation for level in levels),
        "move_accepted": torch.tensor([level.accepted for level in seen], dtype=torch.float64),
        "ess": ess,
        "resampled": torch.ones(ess.shape, dtype=torch.bool),
        "log_evidence_increment": torch.stack([level.increment for level in seen]),
        "step": torch.arange(1, len(levels) + 1),
        "lineage": population.lineage,
    }


__all__ = ["TemperedSMC"]
