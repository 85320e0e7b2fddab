"""A few draws from the prior of a program, and the means to ask it again about them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from ppl_align.core.cost import measure
from ppl_align.core.runs import nested_run, remembered, run_memory
from ppl_align.core.seeds import isolated, mix
from ppl_align.lints.influence import Influence
from ppl_align.lm.completions import Completion
from ppl_align.lm.distribution import CompletionDistribution
from ppl_align.particles.particles import Particles
from ppl_align.program.compiled import Program
from ppl_align.program.record import Record
from ppl_align.runner.runner import Runner

DRAWS = 32
WORLD, REWARDS = "answers of the world", "answers of rewards"
"""The parts of a run's memory (``program/environment.py``, ``rewards/cache.py``) that may outlast a single asking."""


class PriorSample:
    """``num_draws`` draws of the prior and what the program says of them.

    ``particles``  at the end of the program
    ``nodes``      every site, Pyro's message of it         ``cost``       of drawing them
    ``answers``    what the world and rewards have answered so far, by part of a run's memory

    The random numbers come from ``seed`` alone, and the global ones are left as they are."""

    def __init__(
        self, model: Callable[..., Any], args: Any = (), kwargs: Any = None, seed: int = 0, num_draws: int = DRAWS
    ) -> None:
        self.model, self.seed = model, seed
        self.program = Program(model, args, kwargs)
        record = Record()
        self._asked = 0
        self.answers: dict[str, dict[Any, Any]] = {WORLD: {}, REWARDS: {}}
        with isolated(mix(seed, "sample")), measure() as self.cost, run_memory(), nested_run(), record:
            self._remember(self.answers)
            self.particles = Runner(self.program, keep_scores=False).finish(Particles(num_draws))
        self.nodes: Mapping[str, Any] = record.nodes

    @property
    def num_draws(self) -> int:
        return self.particles.size

    @property
    def values(self) -> Mapping[str, Tensor]:
        """Every latent by site, [P, ...]."""
        return self.particles.values

    @property
    def completions(self) -> dict[str, CompletionDistribution]:
        """The prior of every completion that is not observed, the world's included."""
        return {name: prior for name, prior in self.particles.sources.items() if name in self.values}

    @property
    def latents(self) -> list[str]:
        """Latents that are neither completions nor the world's answers."""
        world = set(self.particles.environment)
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
    ) -> Particles:
        """Run the program again, on its own draws or on other ``values``.

        ``rows``: some of the particles only, in this order. ``draw``: latents without a value are drawn anew.
        ``known``: whose answers so far are remembered. By default the world's: what is asked about is the program, and
        functions that stand for the world may be dear.
        Raises ``ModelError`` where the program then has other sites."""
        particles = Particles(self.num_draws, dict(self.values if values is None else values))
        if rows is not None:
            particles = particles.take(torch.arange(self.num_draws)[rows])
        self._asked += 1
        with isolated(mix(self.seed, f"sample {self._asked}")), run_memory(), nested_run():
            self._remember(known)
            return self.program.run(particles, draw=draw)

    def _remember(self, parts: Collection[str]) -> None:
        for part in parts:
            remembered(part, partial(self.answers.__getitem__, part))
