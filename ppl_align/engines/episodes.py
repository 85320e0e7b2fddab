"""A program played site by site, as an episode: turns of the agent and turns of the world, one after the other.

A *turn* is a run of sites of one kind. Histories are the values of all sites so far, [P, ...] by site, and are moved
on by drawing the sites of a turn from the prior. :class:`~ppl_align.engines.nested.Nested` plans with it, and
:mod:`ppl_align.engines.optimism` finds out what an agent that conditions gets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ppl_align.engines.constrained import foreseen, hold
from ppl_align.lm.decoding import Population
from ppl_align.program import Execution, Program, Site

if TYPE_CHECKING:
    from ppl_align.engines.base import Task


@dataclass
class Histories:
    """P partly played episodes. ``values`` by site [P, ...], ``log_prior`` and ``log_proposal`` by site [P]."""

    size: int
    values: dict[str, Tensor] = field(default_factory=dict)
    log_prior: dict[str, Tensor] = field(default_factory=dict)
    log_proposal: dict[str, Tensor] = field(default_factory=dict)

    def pick(self, index: Tensor) -> Histories:
        """The histories at ``index [P']``."""
        groups = (self.values, self.log_prior, self.log_proposal)
        return Histories(len(index), *({k: v[index.to(v.device)] for k, v in group.items()} for group in groups))

    @classmethod
    def joined(cls, parts: Sequence[Histories]) -> Histories:
        """Several of the same program and length, one after the other."""
        groups = ([part.values for part in parts], [p.log_prior for p in parts], [p.log_proposal for p in parts])
        whole = ({name: torch.cat([part[name] for part in group]) for name in group[0]} for group in groups)
        return cls(sum(part.size for part in parts), *whole)

    def repeated(self, copies: int) -> Histories:
        """``copies`` of each, next to each other."""
        return self.pick(torch.arange(self.size).repeat_interleave(copies))

    @property
    def log_ratio(self) -> Tensor:
        """log p - log q of everything drawn, [P]."""
        total = torch.zeros(self.size, dtype=torch.float64)
        for name, log_prior in self.log_prior.items():
            total = total + log_prior - self.log_proposal[name]
        return total


class Episodes:
    """Plays one program. Hard constraints confine what the agent draws (and are paid for in ``log_proposal``)."""

    def __init__(self, task: Task) -> None:
        self.program = Program(task.model, task.args, task.kwargs, 1)
        self.foreseen = foreseen(self.program)

    def look(self, histories: Histories) -> Execution:
        """Run the program on the histories: what it has said so far, and which site comes next."""
        self.program = self.program.with_particles(histories.size)
        execution = self.program.run(histories.values, draw=False)
        if execution.pending is None:
            hold(self.foreseen, execution)
        return execution

    def turn(self, histories: Histories) -> Histories:
        """Draw the sites of the next turn, whosever it is."""
        site = self.look(histories).pending
        kind = None if site is None else site.environment
        while site is not None and site.environment == kind:
            value, log_p, log_q = self._draw(site, histories.size)
            histories = Histories(
                histories.size,
                {**histories.values, site.name: value},
                {**histories.log_prior, site.name: log_p},
                {**histories.log_proposal, site.name: log_q},
            )
            site = self.look(histories).pending
        return histories

    def finish(self, histories: Histories) -> tuple[Histories, Execution]:
        """Draw all the rest from the prior."""
        while (execution := self.look(histories)).pending is not None:
            histories = self.turn(histories)
        return histories, execution

    def kinds(self) -> list[bool]:
        """Whose turn it is, from the first turn to the last (True: the world's), by one episode."""
        found: list[bool] = []
        histories = Histories(1)
        while (site := self.look(histories).pending) is not None:
            found.append(site.environment)
            histories = self.turn(histories)
        return found

    def _draw(self, site: Site, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """``(value [P, ...], log_prior [P], log_proposal [P])``."""

        def per_history(log_p: Tensor) -> Tensor:
            return log_p.detach().double().cpu().reshape(size, -1).sum(-1)

        if site.is_completion:
            population = Population(site.fn.within(self.foreseen.restriction(site))).run()
            tokens = population.tokens.reshape(*site.fn.batch_shape, site.fn.max_new_tokens)
            return tokens, per_history(population.log_p), per_history(population.log_q)
        value = site.fn.sample().detach()
        log_p = per_history(site.fn.log_prob(value))
        return value, log_p, log_p


def draw_by(log_weight: Tensor) -> Tensor:
    """One index per row in proportion to exp(log_weight): ``[P, A] -> [P]``."""
    return torch.multinomial((log_weight - log_weight.amax(-1, keepdim=True)).exp(), 1)[:, 0]
