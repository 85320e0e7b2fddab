"""A few draws from the prior of a program, and the means to ask it again about them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from ppl_align.core.cost import measure
from ppl_align.core.runs import aside, remembered, run_memory
from ppl_align.core.seeds import mix
from ppl_align.engines.base import isolated
from ppl_align.lints.influence import Influence
from ppl_align.lm.completions import Completion
from ppl_align.lm.decoding import Population
from ppl_align.lm.distribution import CompletionDistribution
from ppl_align.program import Execution, Program
from ppl_align.program.record import Record

DRAWS = 32
WORLD, REWARDS = "answers of the world", "answers of rewards"
"""The parts of a run's memory (``program/environment.py``, ``rewards/cache.py``) that may outlast a single asking."""


class Glance:
    """``num_draws`` draws of the prior and what the program says of them.

    ``values``     every latent by site, [P, ...]        ``execution``  the run of the program on them
    ``nodes``      every site, Pyro's message of it         ``cost``       of drawing them
    ``answers``    what the world and rewards have answered so far, by part of a run's memory

    The random numbers come from ``seed`` alone, and the global ones are left as they are."""

    def __init__(
        self, model: Callable[..., Any], args: Any = (), kwargs: Any = None, seed: int = 0, num_draws: int = DRAWS
    ) -> None:
        self.model, self.seed = model, seed
        self.program = Program(model, tuple(args), dict(kwargs or {}), num_draws)
        record = Record()
        self.values: dict[str, Tensor] = {}
        self._asked = 0
        self.answers: dict[str, dict[Any, Any]] = {WORLD: {}, REWARDS: {}}
        with isolated(mix(seed, "glance")), measure() as self.cost, run_memory(), aside(), record:
            self._remember(self.answers)
            while True:
                self.execution: Execution = self.program.run(self.values, draw=True)
                self.values |= self.execution.drawn
                if self.execution.pending is None:
                    break
                name, fn = self.execution.pending.name, self.execution.pending.fn
                tokens = Population(fn).run().tokens
                self.values[name] = tokens.reshape(*fn.batch_shape, fn.max_new_tokens)
        self.nodes: Mapping[str, Any] = record.nodes

    @property
    def num_draws(self) -> int:
        return self.program.num_particles

    @property
    def completions(self) -> dict[str, CompletionDistribution]:
        """The prior of every completion that is not observed, the world's included."""
        return {name: source for name, source in self.execution.sources.items() if name in self.values}

    @property
    def latents(self) -> list[str]:
        """Latents that are neither completions nor the world's answers."""
        world = set(self.execution.environment)
        return [name for name in self.values if name not in self.completions and name not in world]

    def texts(self, site: str) -> list[str]:
        """The texts of a completion, flat."""
        return Completion(self.values[site], self.completions[site]).texts()

    @cached_property
    def influence(self) -> Influence:
        """What depends on the value of a latent."""
        return Influence(self)

    def ask(
        self,
        values: Mapping[str, Tensor] | None = None,
        rows: Tensor | slice | None = None,
        draw: bool = False,
        known: Collection[str] = (WORLD,),
    ) -> Execution:
        """Run the program again, on its own draws or on other ``values``.

        ``rows``: some of the particles only, in this order. ``draw``: latents without a value are drawn anew.
        ``known``: whose answers so far are remembered. By default the world's: what is asked about is the program, and
        functions that stand for the world may be dear.
        Raises ``ModelError`` where the program then has other sites."""
        values = dict(self.values if values is None else values)
        size = self.num_draws
        if rows is not None:
            values = {name: value[rows] for name, value in values.items()}
            size = len(torch.arange(self.num_draws)[rows])
        self._asked += 1
        with isolated(mix(self.seed, f"glance {self._asked}")), run_memory(), aside():
            self._remember(known)
            return self.program.with_particles(size).run(values, draw=draw)

    def _remember(self, parts: Collection[str]) -> None:
        for part in parts:
            remembered(part, partial(self.answers.__getitem__, part))
