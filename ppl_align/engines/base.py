"""The contract of every engine: a frozen, printable configuration with one verb.

And what all of them say when every particle has weight zero: which factor killed them all, and what to try.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

from torch import Tensor

from ppl_align.core.cost import measure
from ppl_align.core.errors import AllDeadError, InputError
from ppl_align.core.progress import Report, reporting
from ppl_align.core.runs import is_top_level, run_memory
from ppl_align.core.seeds import isolated, mix
from ppl_align.engines.environment import optimism
from ppl_align.engines.rerun import refuse_undeclared
from ppl_align.particles.particles import Particles
from ppl_align.posterior import Posterior
from ppl_align.posterior.findings import with_findings
from ppl_align.posterior.origin import with_provenance
from ppl_align.program.compiled import Program
from ppl_align.runner.known_constraints import known_constraints
from ppl_align.runner.proposals import FromPrior, Proposal
from ppl_align.runner.runner import Runner

Progress = Report
"""``progress(done, total, note)``, called as the work goes on."""


@dataclass(frozen=True)
class Task:
    """What an engine is asked to do: a Pyro program with its arguments.

    ``retained``: values by latent site, [R, ...], that the first particle of each replicate must have
    (:class:`~ppl_align.engines.conditional.ConditionalSMC`)."""

    model: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    progress: Progress
    retained: Mapping[str, Tensor] | None = None

    @property
    def name(self) -> str:
        return getattr(self.model, "__name__", type(self.model).__name__)

    def program(self) -> Program:
        """The program as engines execute it."""
        return Program(self.model, self.args, self.kwargs)

    def runner(self, proposal: Proposal = FromPrior(), num_particles: int = 0, tests: bool = False) -> Runner:
        """What moves particles through it: drawn from ``proposal``, within its hard constraints; the first of every
        ``num_particles`` retained where the task says so. ``tests``: of :class:`~ppl_align.runner.runner.Runner`, for
        engines that need no more of weights than that they are unbiased."""
        program = self.program()
        known, retained = known_constraints(program), self.retained
        return Runner(program, proposal, known, self.progress, retained, num_particles, tests=tests)


@dataclass(frozen=True)
class Engine(ABC):
    """Subclasses are frozen dataclasses that implement ``_infer``; adding an engine is adding one file."""

    name: ClassVar[str]

    @property
    def texts_at_once(self) -> int:
        """How many texts it decodes at once, about: what several runs that share a batch are counted by."""
        return getattr(self, "num_particles", 1) * getattr(self, "num_replicates", 1)

    def more(self, factor: int, first: Posterior | None) -> Engine | None:
        """An engine for ``factor`` times as many particles of the same posterior, to be pooled with ``first``
        (:func:`~ppl_align.posterior.pooling.pooled`), a run of this one; None: with one in which all particles died.

        None where more of them would add nothing: the answer is exact, or the order of particles means something."""
        particles: int | None = getattr(self, "num_particles", None)
        if particles is None or (first is not None and (first.exact or first.kind.is_ordered)):
            return None
        larger: Any = {"num_particles": factor * particles}
        return replace(self, **larger)

    def run(
        self,
        model: Callable[..., Any],
        *args: Any,
        seed: int = 0,
        progress: bool | Progress | None = None,
        **kwargs: Any,
    ) -> Posterior:
        """Approximate the posterior of ``model(*args, **kwargs)``.

        ``progress``: True shows a bar on a terminal and in a notebook, and nothing elsewhere; a function is called
        with (done, total, note) as the work goes on.

        Same seed, same result (one build, one machine); different engines have different random streams, so that
        their runs are independent. The global RNG and Pyro's parameter store are untouched. What the run shows of the
        program is logged, except :func:`~ppl_align.core.runs.nested_run`.
        Raises ``InputError`` for what the user can mend, ``RunError`` for what went wrong on the way, ``ModelError``
        for a program that says something else when a few of the draws are executed again.
        """
        if not callable(model):
            raise InputError(f"the first argument of run() is a Pyro program (a function), got {type(model).__name__}")
        with reporting(progress, self.name) as report:
            return self._run(Task(model, args, dict(kwargs), report), seed)

    def _run(self, task: Task, seed: int) -> Posterior:
        with run_memory() as remarks, measure() as cost:
            with isolated(mix(seed, self.name)):
                posterior = self._infer(task)
                if is_top_level():
                    refuse_undeclared(task.model, task.args, task.kwargs, posterior)
            posterior = replace(posterior, engine=self.name, seed=seed, model=task.name, config=self.describe())
            posterior = with_provenance(posterior, task.model, task.args, task.kwargs)
            posterior = with_findings(posterior, getattr(self, "proposal", None))
            if is_top_level() and posterior.environment and posterior.kind.of_posterior:
                with isolated(mix(seed, "optimism")):
                    posterior = replace(posterior, optimism=optimism.measured(task, posterior))
        history = {**posterior.history, "warnings": [*posterior.warnings, *remarks]} if remarks else posterior.history
        return replace(posterior, cost=cost, history=history)

    @abstractmethod
    def _infer(self, task: Task) -> Posterior:
        """Do the work; ``run`` fills in cost, seed and names."""

    def describe(self) -> dict[str, Any]:
        """The configuration, JSON-able (objects by their printed name)."""
        plain = (int, float, str, bool, type(None))
        shallow = {f.name: getattr(self, f.name) for f in fields(self)}
        return {k: v if isinstance(v, plain) else _printed(v) for k, v in shallow.items()}


def _printed(value: Any) -> str:
    """The name of a function, else how an object prints itself; of a tuple, each part."""
    if isinstance(value, tuple):
        return f"({', '.join(map(_printed, value))})"
    return getattr(value, "__name__", repr(value))


def all_dead(where: str, particles: Particles, hint: str = "") -> AllDeadError:
    """The error for a population without weight, ``where`` in the program; ``hint``: what else may be the cause."""
    killers = [name for name, value in particles.factors.items() if bool(value.isneginf().all())]
    blame = f" ({killers[0]!r} is -inf for each of them)" if killers else ""
    return AllDeadError(
        f"every particle has weight zero {where}{blame}: no draw satisfies the program. Try more particles, more room "
        f"(max_new_tokens) if it can be met at all, a softer reward than -inf, or a proposal= that knows what is wanted"
        f"{hint}"
    )


__all__ = ["Engine", "Progress", "Task", "all_dead"]
