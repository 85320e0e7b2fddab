"""Importance sampling: draw from the prior (or a guide), weigh by what the program says."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from ppl_align.core.validation import at_least
from ppl_align.engines.base import Engine, Task, all_dead
from ppl_align.posterior import Posterior
from ppl_align.posterior.kind import Kind
from ppl_align.posterior.of_particles import of_particles
from ppl_align.runner.proposals import as_proposal


@dataclass(frozen=True)
class ImportanceSampling(Engine):
    """Self-normalised importance sampling.

    Zhat = (1/N) sum_i p(x_i) exp(psi(x_i)) / q(x_i),  x_i ~ q.  With q = prior the weight is exp(psi): observed
    sites and factors only, and the LM never scores its own draws again. Under hard constraints (``constrain``) q is
    confined to what they allow, and the weight carries the mass that is left out at each step.

    ``num_particles``   draws of each replicate, N
    ``num_replicates``  independent repeats, R (four or more for error bars)
    ``proposal``        None (the prior), a trained guide, another LM, or a function ``Rows -> log_q [rows, V]``
    """

    num_particles: int = 64
    num_replicates: int = 4
    proposal: Any = None

    name: ClassVar[str] = "importance"

    def __post_init__(self) -> None:
        at_least(1, num_particles=self.num_particles, num_replicates=self.num_replicates)
        as_proposal(self.proposal)

    def _infer(self, task: Task) -> Posterior:
        shape = (self.num_replicates, self.num_particles)
        runner = task.runner(as_proposal(self.proposal), self.num_particles, tests=True)
        particles = runner.finish(runner.start(math.prod(shape)))
        log_weight = particles.log_weight.reshape(shape)
        if bool(log_weight.isneginf().all()):
            raise all_dead("at the end of the program", particles, runner.constraints.hint(particles))
        return of_particles(particles, log_weight, Kind.WEIGHTED, steered=self.proposal is not None)
