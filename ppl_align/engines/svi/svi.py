"""Stochastic variational inference: KL-regularised RL, said in Pyro.

Maximises  ELBO(q) = E_q[log p(x, data) - log q(x)] = log Z - KL(q || p*)  over a trainable guide q, with Pyro's SVI.
In the words of RLHF: beta * ELBO = E_q[r] - beta KL(q || p0) (Korbak, Perez & Buckley 2022, arXiv:2205.11275).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pyro
import torch
from torch import Tensor

from ppl_align.core.errors import InputError
from ppl_align.core.validation import at_least, one_of
from ppl_align.engines.base import Engine, Task, all_dead
from ppl_align.engines.svi.elbo import LeaveOneOutELBO
from ppl_align.guides import markov
from ppl_align.guides.auto import BETWEEN, KINDS, AutoGuide
from ppl_align.guides.program import ProgramGuide
from ppl_align.particles.particles import Particles
from ppl_align.posterior import Posterior
from ppl_align.posterior.kind import Kind
from ppl_align.posterior.of_particles import of_particles
from ppl_align.program.explain import explaining
from ppl_align.program.record import Record
from ppl_align.program.subsamples import refuse_local_latents, refuse_loops, say_subsampled, whole_plates
from ppl_align.runner.infeasible import resample_infeasible
from ppl_align.runner.known_constraints import KnownConstraints, known_constraints, validate_constraints
from ppl_align.runner.runner import Runner


@dataclass(frozen=True)
class SVI(Engine):
    """Train a guide, then draw from it, each draw weighted by p*/q, so that the guide's error stays visible.

    ``num_steps``       steps of Adam          ``num_particles``   draws per step and per replicate of the result
    ``num_replicates``  independent sets of draws of the *one* trained guide
    ``learning_rate``   default: 1e-3 for networks (head, lora), 3e-2 for "markov", 1e-1 for the other table, latents
                        and a guide of your own
    ``guide``           "auto" (head where the LM has hidden states, else a table: per prefix where that is small, per
                        position and previous token where texts are long), "head", "lora", "table", "markov", or a Pyro
                        program with the model's arguments
    ``rank``            of the head or the adapters: the fewer draws to learn from, the lower

    A program with ``environment(...)`` sites is decided, not conditioned: the guide repeats these sites unchanged, so
    that the ELBO is J / beta = E[r] / beta - KL(policy || p0), and the draws are those of the policy, of equal weight
    (``target`` is "decision"). Under a hard constraint J is finite only for a policy that never breaks it: a text that
    turns out infeasible is drawn again from the same history, the world left as it is (resampling of infeasible
    completions, :mod:`ppl_align.runner.infeasible`). Where that does not help (a likelihood of zero for another reason,
    a guide of your own) it keeps its weight, J is -inf, and ``posterior.warnings`` says so.

    A plate with ``subsample_size=`` is trained on subsamples, and the weights are computed with the whole plate: one of
    ``posterior.warnings`` says so.

    ``posterior.guide`` is a ``proposal=`` for the other engines; ``posterior.history["loss"]`` is -ELBO per step,
    ``"loss_error"`` its standard error by the step's own draws.
    Raises ``RunError`` where the program's log-density is -inf on a draw: a hard rejection has no gradient.
    """

    num_steps: int = 60
    num_particles: int = 16
    num_replicates: int = 4
    learning_rate: float | None = None
    guide: str | Callable[..., Any] = "auto"
    rank: int = 4

    name: ClassVar[str] = "svi"

    def __post_init__(self) -> None:
        at_least(1, num_steps=self.num_steps, num_replicates=self.num_replicates, rank=self.rank)
        at_least(2, num_particles=self.num_particles)
        if self.learning_rate is not None and not 0 < self.learning_rate < float("inf"):
            raise InputError(f"learning_rate must be positive, got {self.learning_rate}")
        if not callable(self.guide):
            one_of("guide", self.guide, list(KINDS))

    def more(self, factor: int, first: Posterior | None) -> Engine | None:
        """More draws of the guide that ``first`` has trained."""
        if first is None or first.guide is None:
            return None
        return _Trained(**{**vars(self), "num_particles": factor * self.num_particles}, trained=first.guide)

    def _infer(self, task: Task) -> Posterior:
        guide: AutoGuide | ProgramGuide
        with whole_plates() as subsampled:
            constraints = known_constraints(task.program())
            nesting, environment = self._pilot(task, constraints, subsampled)
        kept: Collection[str] = ()
        if isinstance(self.guide, str):
            guide = AutoGuide(task.model, self.guide, self.rank)
            guide.nesting, guide.matchers = nesting, constraints.matchers
            kept = constraints.matchers
        else:
            guide = ProgramGuide(self.guide)
        errors: list[float] = []
        losses = self.train(task, guide, nesting, environment, kept, errors)
        history: dict[str, Any] = {"loss": torch.tensor(losses), "loss_error": torch.tensor(errors)}
        history |= {"warnings": [say_subsampled(subsampled)]} if subsampled else {}
        with whole_plates():
            return self._weigh(task, guide, nesting, environment, constraints, history)

    def _weigh(
        self,
        task: Task,
        guide: AutoGuide | ProgramGuide,
        nesting: int,
        environment: Sequence[str],
        constraints: KnownConstraints,
        history: dict[str, Any],
    ) -> Posterior:
        """Draws of the trained guide, weighted by p*/q."""
        program = task.program()
        program.nesting = nesting
        if isinstance(guide, ProgramGuide):
            guide.store = pyro.get_param_store().get_state()
            constraints = KnownConstraints()  # it draws whole values, within or not
        runner = Runner(program, guide, constraints, post_decode=resample_infeasible if environment else None)
        drawn = runner.finish(runner.start(self.num_replicates * self.num_particles))
        log_weight = drawn.log_weight.reshape(self.num_replicates, self.num_particles)
        if bool(log_weight.isneginf().all()):
            raise all_dead("at the end of the program", drawn, constraints.hint(drawn))
        if not drawn.environment:
            return of_particles(drawn, log_weight, Kind.WEIGHTED, steered=True, history=history, guide=guide)
        # The guide left the world alone: what it maximised is J, and q is the answer.
        policy = of_particles(
            drawn, torch.zeros_like(log_weight), Kind.POLICY, steered=True, history=history, guide=guide
        )
        return _noting_failures(policy, log_weight)

    def _pilot(
        self, task: Task, constraints: KnownConstraints, subsampled: dict[str, tuple[int, int]]
    ) -> tuple[int, Sequence[str]]:
        """Two draws from the prior: are the program's sites, plates and constraints as SVI needs them?

        Returns its plate nesting, and the sites at which the world answers."""
        program = task.program()
        with Record() as record:
            drawn = Runner(program).finish(Particles(2))
        refuse_loops(record.nodes, subsampled)
        validate_constraints(constraints, drawn)
        refuse_local_latents(drawn.plates, subsampled)
        return program.nesting, drawn.environment

    def train(
        self,
        task: Task,
        guide: Any,
        nesting: int,
        environment: Sequence[str] = (),
        kept: Collection[str] = (),
        errors: list[float] | None = None,
    ) -> list[float]:
        """Pyro's SVI, ``num_steps`` times; the loss of each step. ``environment``, ``kept``: see the ELBO.

        ``errors``: a list for the standard error of each."""
        settings: Any = lambda name: {"lr": self.rate_of(name), "clip_norm": 10.0}  # noqa: E731
        optimiser = pyro.optim.ClippedAdam(settings)
        elbo = LeaveOneOutELBO(self.num_particles, nesting, environment, kept)
        svi = pyro.infer.SVI(task.model, guide, optimiser, elbo)
        losses = []
        for step in range(self.num_steps):
            with explaining(task.model, nesting):
                losses.append(float(svi.step(*task.args, **task.kwargs)))
            task.progress(step + 1, self.num_steps, f"ELBO {-losses[-1]:.3f}")
        if errors is not None:
            errors += elbo.errors
        return losses

    def rate_of(self, parameter: str) -> float:
        """The learning rate of a parameter: networks want small steps, tables and latents large ones.

        The parts of a Markov guide, thousands that add up, are in between: steps of 0.1 are mostly noise to them."""
        if self.learning_rate is not None:
            return self.learning_rate
        own = parameter.replace(BETWEEN, ".")  # what stands between a site and the parameters of its guide
        if own.endswith(tuple(f".{part}" for part in markov.PARTS)):
            return 3e-2
        return 1e-3 if own.endswith((".left", ".right")) or ".lora_" in own else 1e-1


@dataclass(frozen=True)
class _Trained(SVI):
    """Draws of a guide that is there, ``trained`` by an earlier run."""

    trained: Any = None

    def _infer(self, task: Task) -> Posterior:
        with whole_plates() as subsampled:
            constraints = known_constraints(task.program())
            nesting, environment = self._pilot(task, constraints, subsampled)
            return self._weigh(task, self.trained, nesting, environment, constraints, {})


def _noting_failures(policy: Posterior, log_weight: Tensor) -> Posterior:
    """A policy with draws of likelihood zero has J = -inf: say so, and where it comes from."""
    dead = log_weight.isneginf()
    if not bool(dead.any()):
        return policy
    parts = {**policy.log_prior, **policy.factors}
    where = ", ".join(repr(name) for name, value in parts.items() if bool(value.isneginf().any()))
    line = (
        f"{float(dead.double().mean()):.1%} of the policy's draws have likelihood zero (at {where}): its J is -inf. "
        f"Use a finite penalty, or a guide that cannot go there"
    )
    return replace(policy, history={**policy.history, "warnings": [*policy.warnings, line]})
