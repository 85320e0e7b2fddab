"""Nested Monte Carlo: look ahead before each turn, let the agent choose and the world happen.

The best an agent can do in a random world is given by backward induction, with the logarithm of a mean of exponentials
where it is the agent's turn and a plain mean where it is the world's (:mod:`ppl_align.claims.interaction`)::

    agent:  V(h) = log E_p0[exp V(h, a)]     pi(a | h) = p0(a | h) exp(V(h, a) - V(h))
    world:  V(h) = E[V(h, o)]

Here both are averages over draws: ``num_actions`` from p0 at each turn of the agent, ``num_outcomes`` of the world's
answers after each of them, and so on to the end. One of the actions is drawn in proportion to exp V(h, a), the world
then answers *afresh* (the answers that the plan was made with favoured the chosen action: to play on from them would be
optimistic again), and the next turn is planned anew.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ppl_align.core.errors import AllDeadError, InputError
from ppl_align.core.validation import at_least
from ppl_align.engines.base import Engine, Task
from ppl_align.particles.particles import Particles
from ppl_align.particles.resampling import draw_by
from ppl_align.particles.weights import log_mean_exp
from ppl_align.posterior import Posterior
from ppl_align.posterior.kind import Kind
from ppl_align.posterior.of_particles import of_particles
from ppl_align.runner.known_constraints import known_constraints
from ppl_align.runner.runner import Runner


@dataclass(frozen=True)
class TreePlanner(Engine):
    """Draws from a policy that decides: the maximiser of J = E[r] - beta KL, the world left as it is.

    ``num_actions``     of the agent, drawn from the prior at each of its turns; completions are drawn whole
    ``num_outcomes``    answers of the world after each of them
    ``num_particles``   episodes of each replicate      ``num_replicates``  independent repeats
    ``max_histories``   refuse politely (``InputError``) to hold more histories than this: an episode needs
                        ``num_actions * num_outcomes`` of them per turn, to the power of its turns

    The agent sees every answer of the world before it speaks again, whether a prompt shows it or not: the policy is one
    of whole histories. Where the world keeps something to itself, that is too much (``ppl-align check`` says so), and
    ``SVI``, whose policies read prompts, is the engine to use.

    Episodes are independent, each with plans of its own. The policy converges to the optimum as both numbers grow. At
    a finite budget it is off both ways: few actions keep it near the prior (the value is too low: a concave function of
    a mean of few draws), few outcomes make it seek risk (the value is too high: an exponential of a noisy mean), by
    about half the variance of V over ``num_outcomes``. What it delivers is judged in fresh episodes, not by its plans:
    J of the result is a lower bound, in expectation, on J of the policy as it is.

    ``history["planned"]`` [R, N]: the value that each episode's first plan expected, nats. ``log_proposal`` counts
    the choice among the drawn actions, log q = log p0(a) + log(num_actions * w_a) with w_a the mean weight of the
    copies of a, which makes E[log q - log p0] an upper bound on the KL of the policy. ``target`` is "decision": weights
    are uniform, there is no log evidence.
    Raises ``InputError`` for a program without ``environment(...)``, where conditioning is the answer.
    Sources: Levine 2018 (arXiv:1805.00909); Rainforth et al. 2018 (arXiv:1709.06181) for the bias of nested averages.
    """

    num_actions: int = 4
    num_outcomes: int = 4
    num_particles: int = 8
    num_replicates: int = 4
    max_histories: int = 20_000

    name: ClassVar[str] = "nested"

    def __post_init__(self) -> None:
        at_least(2, num_actions=self.num_actions)
        at_least(1, num_outcomes=self.num_outcomes, num_particles=self.num_particles)
        at_least(1, num_replicates=self.num_replicates, max_histories=self.max_histories)

    def _infer(self, task: Task) -> Posterior:
        program = task.program()
        runner = Runner(program, constraints=known_constraints(program))
        _, turns = runner.turns(Particles(1))  # as one episode has them
        if not any(turns):
            raise InputError(
                "TreePlanner decides in a world that answers, and this program has no environment(...) site that is "
                "random: deciding and conditioning are the same here, use another engine"
            )
        self._check_size(turns)
        played, planned = Particles(self.num_replicates * self.num_particles), None
        for done, world in enumerate(turns):
            task.progress(done, len(turns), "the world answers" if world else "planning")
            if world:
                played = runner.turn(played)
            else:
                played, value = self._decide(runner, played, turns[done:])
                planned = value if planned is None else planned
        task.progress(len(turns), len(turns), "played")
        shape = (self.num_replicates, self.num_particles)
        history = {} if planned is None else {"planned": planned.reshape(shape)}
        log_weight = torch.zeros(shape, dtype=torch.float64)
        return of_particles(runner.look(played), log_weight, Kind.POLICY, history=history)

    def _decide(self, runner: Runner, played: Particles, turns: Sequence[bool]) -> tuple[Particles, Tensor]:
        """The agent's turn in each episode: one turn longer, and the values [P] of the plans."""
        grown, sites = played, list(played.values)
        for depth, world in enumerate(turns):
            grown = runner.turn(grown.repeat(self.num_outcomes if world else self.num_actions))
            if depth == 0:
                actions = grown  # [P * A]
        value = runner.look(grown).log_potential + grown.log_ratio  # p0 / q of all turns, where constraints confine
        for world in reversed(turns[1:]):
            each = value.reshape(-1, self.num_outcomes if world else self.num_actions)
            value = each.mean(-1) if world else log_mean_exp(each)
        scores = value.reshape(played.size, self.num_actions) - played.log_ratio[:, None]  # what is played is paid for
        if bool(scores.amax(-1).isneginf().any()):
            raise AllDeadError(
                "every action of a plan leads to a likelihood of zero in some answer of the world: use a finite "
                "penalty in place of -inf, or raise num_actions"
            )
        choice = draw_by(scores)
        where = torch.arange(played.size) * self.num_actions + choice
        chosen = actions.take(where)
        new = [value for name, value in actions.values.items() if name not in sites]
        said = torch.cat([value.reshape(actions.size, -1).double().cpu() for value in new], 1)
        weight = _per_copy(torch.softmax(scores, -1).reshape(-1), self.num_actions, said)
        first = next(name for name in chosen.values if name not in sites)
        log_choice = (weight[where] * self.num_actions).log()
        log_proposal = {**chosen.log_proposal, first: chosen.log_proposal[first] + log_choice}
        return chosen.replace(log_proposal=log_proposal), log_mean_exp(scores)

    def _check_size(self, turns: Sequence[bool]) -> None:
        start = turns.index(False) if False in turns else len(turns)
        leaves = math.prod(self.num_outcomes if world else self.num_actions for world in turns[start:])
        size = self.num_replicates * self.num_particles * leaves
        if size > self.max_histories:
            raise InputError(
                f"TreePlanner would play {size:,} histories ({leaves:,} for each of {self.num_replicates} x "
                f"{self.num_particles} episodes of {len(turns)} turns), more than max_histories={self.max_histories}: "
                f"lower num_actions, num_outcomes or num_particles, or use SVI"
            )


def _per_copy(weight: Tensor, num_actions: int, actions: Tensor) -> Tensor:
    """Weights [P * A] averaged over the copies of an action among the A of its plan; ``actions`` [P * A, d]."""
    plan = torch.arange(len(weight)) // num_actions
    same = torch.unique(torch.cat([plan[:, None].double(), actions], 1), dim=0, return_inverse=True)[1]
    total = torch.zeros_like(weight).index_add(0, same, weight)
    return total[same] / torch.bincount(same)[same]
