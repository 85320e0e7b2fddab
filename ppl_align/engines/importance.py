"""Importance sampling: draw from the prior (or a guide), weigh by what the program says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ppl_align.engines.base import Engine, Task, at_least
from ppl_align.engines.constrained import foreseen
from ppl_align.engines.proposals import as_proposal
from ppl_align.engines.sweep import Sweep
from ppl_align.guides.program import ProgramGuide
from ppl_align.posterior import Posterior
from ppl_align.program import Program


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
        program = Program(task.model, task.args, task.kwargs, self.num_replicates * self.num_particles)
        shape = (self.num_replicates, self.num_particles)
        sweep = Sweep(program, *shape, as_proposal(self.proposal), task.progress, task.retained, foreseen(program))
        if isinstance(self.proposal, ProgramGuide):
            sweep.adopt(*self.proposal.draw(program))
        return sweep.posterior(sweep.run(), independent=True)
