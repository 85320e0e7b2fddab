"""Draws of the prior, and what the program says of each: everything ``inspect`` knows comes from these.

A draw x_i ~ p0 with log-potential psi_i = sum of the log-factors carries information on every other strength of the
rewards as well, since p_c ∝ p0 exp(psi_other + psi_rewards / c) needs nothing but another weight (umbrella of one
pool, Torrie & Valleau 1977).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ppl_align.completions import Completion
from ppl_align.cost import Cost, measure
from ppl_align.errors import ModelError
from ppl_align.lm.decoding import Population
from ppl_align.lm.distribution import CompletionDistribution
from ppl_align.program import Execution, Program
from ppl_align.program.record import Record

BATCH = 512
"""Particles decoded together at most: memory."""


@dataclass
class Pool:
    """N draws of the prior; tensors [N], float64, on the CPU.

    ``values``     every latent by site, in the order of the program, [N, ...]
    ``log_prior``  by latent site, nats     ``factors``  by factor or observed site, nats
    ``rewards``    raw r, NaN where it does not apply; ``scales``: nats per unit
    ``log_upper``  the largest value of each factor, nats; None where it is not known
    ``texts``      by completion site, a list of texts for each draw (several where a plate holds several)
    ``sites``      the distribution of every latent site (as of the first batch)
    ``environment``  the latents at which the world answers
    ``constraints``  the factors that are hard constraints: engines draw from within them, this pool does not
    ``targets``    rewards whose weight is solved for (a moment constraint): no beta of theirs could be chosen
    """

    program: Program
    values: dict[str, Tensor] = field(default_factory=dict)
    log_prior: dict[str, Tensor] = field(default_factory=dict)
    factors: dict[str, Tensor] = field(default_factory=dict)
    rewards: dict[str, Tensor] = field(default_factory=dict)
    scales: dict[str, float] = field(default_factory=dict)
    log_upper: dict[str, float | None] = field(default_factory=dict)
    texts: dict[str, list[list[str]]] = field(default_factory=dict)
    sites: dict[str, Any] = field(default_factory=dict)
    environment: tuple[str, ...] = ()
    constraints: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    cost: Cost = field(default_factory=Cost)

    @property
    def num_draws(self) -> int:
        return self.program.num_particles

    @property
    def tilt(self) -> Tensor:
        """psi_rewards: what all rewards that have a beta say together, nats."""
        return self._total(self.chosen)

    @property
    def other(self) -> Tensor:
        """psi_other: observations, constraints and raw factors, nats."""
        return self._total(name for name in self.factors if name not in self.chosen)

    @property
    def chosen(self) -> list[str]:
        """The rewards whose beta somebody chose."""
        return [name for name in self.rewards if name not in self.targets]

    @property
    def beta(self) -> float | None:
        """beta / weight of the only reward; None where there are several, or it is wanted small."""
        scales = [self.scales[name] for name in self.chosen]
        return 1 / scales[0] if len(scales) == 1 and scales[0] > 0 else None

    @property
    def log_weight(self) -> Tensor:
        """psi, nats: the log-weight of each draw for the target as it is written."""
        return self._total(self.factors)

    @property
    def completions(self) -> dict[str, CompletionDistribution]:
        return {name: fn for name, fn in self.sites.items() if isinstance(fn, CompletionDistribution)}

    def strength(self, factor: float) -> Tensor:
        """psi with every beta multiplied by ``factor``; a rejection stays one."""
        return self.other + self.tilt / factor

    def without(self, name: str) -> Tensor:
        """psi as if there were no factor of this name."""
        return self._total(other for other in self.factors if other != name)

    def _total(self, names: Any) -> Tensor:
        return sum((self.factors[name] for name in names), torch.zeros(self.num_draws, dtype=torch.float64))


def draw_pool(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    num_draws: int,
    progress: Callable[[int, int, str], None],
) -> Pool:
    """``num_draws`` draws of the prior of a program. Raises ``ModelError`` where there is no latent to draw."""
    program, record = Program(model, args, kwargs, num_draws), Record()
    parts: list[tuple[dict[str, Tensor], dict[str, Tensor], Execution]] = []
    sites: dict[str, Any] = {}
    constraints: tuple[str, ...] = ()
    with measure() as cost:
        for start in range(0, num_draws, BATCH):
            batch = program.with_particles(min(BATCH, num_draws - start))
            with record:
                values, log_prior, execution = complete(batch, {})
            program.nesting = batch.nesting
            if not parts:
                sites = {name: record.nodes[name]["fn"] for name in values}
                constraints = tuple(name for name in execution.factors if "constrains" in _notes(record.nodes[name]))
            parts.append((values, log_prior, execution))
            progress(start + batch.num_particles, num_draws, "draws of the prior")
    if not sites:
        raise ModelError("the program has no latent site: there is nothing to inspect; add a completion(...)")
    values, log_prior, factors, rewards = (
        {name: torch.cat([group[name] for group in groups]) for name in groups[0]}
        for groups in (
            [v for v, _, _ in parts],
            [p for _, p, _ in parts],
            [e.factors for _, _, e in parts],
            [e.rewards for _, _, e in parts],
        )
    )
    last = parts[-1][2]
    texts = {name: [row for v, _, e in parts for row in _texts(v[name], e.sources[name])] for name in last.sources}
    world = tuple(last.environment)
    known = (factors, rewards, last.scales, last.log_upper, texts)
    return Pool(program, values, log_prior, *known, sites, world, constraints, tuple(last.targets), cost)


def _notes(node: Any) -> Any:
    return node["infer"].get("ppl_align", {})


def _texts(tokens: Tensor, source: CompletionDistribution) -> list[list[str]]:
    flat = Completion(tokens, source).texts()
    lanes = len(flat) // len(tokens)
    return [flat[i * lanes : (i + 1) * lanes] for i in range(len(tokens))]


def complete(
    program: Program, values: Mapping[str, Tensor], site: str | None = None, prefix: Tensor | None = None
) -> tuple[dict[str, Tensor], dict[str, Tensor], Execution]:
    """Run a program to its end: ``values`` are kept, all else is drawn from the prior.

    ``prefix [P, plates..., t]``: how the completion ``site`` begins. Returns all values, log p0 of what was drawn
    (of a prefixed completion: the prefix included), and what the program says."""
    values, log_prior = dict(values), dict[str, Tensor]()
    size = program.num_particles
    while True:
        execution = program.run(values, draw=True)
        values |= execution.drawn
        log_prior |= execution.log_prior
        if execution.pending is None:
            return values, log_prior, execution
        name, fn = execution.pending.name, execution.pending.fn
        population = Population(fn)
        if name == site and prefix is not None and prefix.shape[-1]:
            _write(population, prefix.reshape(-1, prefix.shape[-1]))
        population.run()
        values[name] = population.tokens.reshape(*fn.batch_shape, fn.max_new_tokens)
        log_prior[name] = population.log_p.reshape(size, -1).sum(-1).cpu()


def _write(population: Population, tokens: Tensor) -> None:
    """Every particle writes these tokens [M, t] first; what they have in common is read once."""
    population.hold(torch.arange(len(tokens)), tokens)
    while population.t < tokens.shape[1] and not population.done:
        population.step()
        population.advance()
    population.held = None
