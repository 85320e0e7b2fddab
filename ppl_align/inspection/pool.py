"""Draws of the prior, and what the program says of each: everything ``inspect`` knows comes from these.

A draw x_i ~ p0 with log-potential psi_i = sum of the log-factors carries information on every other strength of the
rewards as well, since p_c ∝ p0 exp(psi_other + psi_rewards / c) needs nothing but another weight (umbrella of one
pool, Torrie & Valleau 1977). Few draws of the prior meet a hard constraint, so where a program has one the draws are
those of the prior confined to it, as engines draw, and p0 / q belongs to their weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ppl_align.core.cost import Cost, measure
from ppl_align.core.errors import InputError, ModelError
from ppl_align.diagnostics.bounded import upper_mean
from ppl_align.engines.ceiling import ceiling, is_known
from ppl_align.engines.constrained import Foreseen, hold
from ppl_align.inspection.weighted import Weighted
from ppl_align.lm.completions import Completion
from ppl_align.lm.decoding import Population
from ppl_align.lm.distribution import CompletionDistribution
from ppl_align.program import Execution, Program
from ppl_align.program.per_particle import PerParticle, joined
from ppl_align.program.record import Record

BATCH = 512
"""Particles decoded together at most: memory."""


@dataclass
class Pool:
    """N draws of the prior, or from within the hard constraints; tensors [N], float64, on the CPU.

    ``values``     every latent by site, in the order of the program, [N, ...]
    ``log_prior``, ``log_proposal``  of what was drawn, by latent site, nats (equal for draws of the prior)
    ``factors``    by factor or observed site, nats
    ``rewards``    raw r, NaN where it does not apply; ``scales``: nats per unit, [N] where they are drawn
    ``log_upper``  the largest value of each factor, nats, [N] where a weight is drawn; None where it is not known
    ``written``    by completion site: tokens and their distribution, of each batch
    ``sites``      the distribution of every latent site (as of the first batch)
    ``environment``  the latents at which the world answers
    ``constraints``  the factors that are hard constraints     ``expected``  those that the draws are confined to
    ``targets``    rewards whose weight is solved for (a moment constraint): no beta of theirs could be chosen
    """

    program: Program
    values: dict[str, Tensor] = field(default_factory=dict)
    log_prior: dict[str, Tensor] = field(default_factory=dict)
    log_proposal: dict[str, Tensor] = field(default_factory=dict)
    factors: dict[str, Tensor] = field(default_factory=dict)
    rewards: dict[str, Tensor] = field(default_factory=dict)
    scales: dict[str, PerParticle] = field(default_factory=dict)
    log_upper: dict[str, PerParticle | None] = field(default_factory=dict)
    written: dict[str, list[tuple[Tensor, CompletionDistribution]]] = field(default_factory=dict)
    sites: dict[str, Any] = field(default_factory=dict)
    environment: tuple[str, ...] = ()
    constraints: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    expected: Foreseen = field(default_factory=Foreseen)
    cost: Cost = field(default_factory=Cost)

    @property
    def num_draws(self) -> int:
        return self.program.num_particles

    @cached_property
    def texts(self) -> dict[str, list[list[str]]]:
        """By completion site, a list of texts for each draw (several where a plate holds several)."""
        return {name: [text for part in parts for text in _texts(*part)] for name, parts in self.written.items()}

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
    def told_apart(self) -> bool:
        """Is there a beta at which the rewards prefer one of the draws that they do not reject to another?"""
        kept = self.tilt[self.strength(math.inf).isfinite()]
        return len(kept) > 1 and bool((kept != kept[0]).any())

    @property
    def beta(self) -> float | None:
        """beta / weight of the only reward; None where there are several, it is wanted small, or it is drawn."""
        scales = [self.scales[name] for name in self.chosen]
        only = scales[0] if len(scales) == 1 else None
        return None if only is None or isinstance(only, Tensor) or only <= 0 else 1 / only

    @cached_property
    def log_bound(self) -> float | None:
        """The largest log-weight that the factors of the program can have, nats; None where it is not known."""
        if not all(is_known(bound) for bound in self.log_upper.values()):
            return None
        same = sum(bound for bound in self.log_upper.values() if bound is not None and not isinstance(bound, Tensor))
        drawn = [name for name, bound in self.log_upper.items() if isinstance(bound, Tensor)]
        try:
            return same + (ceiling(self.program, drawn) if drawn else 0.0)
        except InputError:
            return None

    @property
    def confined(self) -> bool:
        """Are these draws from within hard constraints?"""
        return bool(self.expected.readers)

    @property
    def total_log_prior(self) -> Tensor:
        """log p0 of each draw, all sites together, nats."""
        return self._sum(self.log_prior.values())

    @property
    def log_ratio(self) -> Tensor:
        """log p0 - log q of each draw, nats."""
        return self._sum(self.log_prior[name] - self.log_proposal[name] for name in self.log_prior)

    @property
    def psi(self) -> Tensor:
        """What the program says of each draw, as it is written, nats."""
        return self._total(self.factors)

    @property
    def log_weight(self) -> Tensor:
        """The log-weight of each draw for the target as it is written, nats."""
        return self.psi + self.log_ratio

    @property
    def unmet(self) -> list[str]:
        """Rewards that were the same on every draw, and not at their declared best: what they are for may not have been
        drawn."""
        return [name for name, r in self.rewards.items() if self._counts(name) and self._never_varied(name, r)]

    def _counts(self, name: str) -> bool:
        return bool((torch.as_tensor(self.scales[name]) != 0).any())

    def _never_varied(self, name: str, r: Tensor) -> bool:
        bound = self.log_upper.get(name)
        at_its_most = is_known(bound) and bool(
            (self.factors[name] >= torch.as_tensor(bound, dtype=torch.float64) - 1e-9).all()
        )
        return bool(((r == r[0]) | (r.isnan() & r[0].isnan())).all()) and not at_its_most

    @property
    def hidden(self) -> float:
        """The mass, under what was drawn from, that a region which no draw has met can have at most (95%)."""
        return 1 - 0.05 ** (1 / self.num_draws)

    @cached_property
    def log_evidence_upper(self) -> float | None:
        """log Z is at most this, nats (95%), by the declared bounds of all factors; None where one has none.

        p0/q of draws from within constraints is at most 1, so it is no part of the bound."""
        most = self.log_bound
        if most is None or not self.log_upper:
            return None
        return most + math.log(upper_mean((self.log_weight - most).clamp_max(0.0).exp()))

    def weighted(self, psi: Tensor) -> Weighted:
        """The draws, weighted for p0 exp(psi)."""
        return Weighted(psi, self.log_ratio, not self.unmet)

    @property
    def base(self) -> Weighted:
        """The draws as the prior would have them, given the hard constraints; rewards play no part."""
        return Weighted(self._total(self.constraints if self.confined else ()), self.log_ratio)

    @property
    def completions(self) -> dict[str, CompletionDistribution]:
        return {name: fn for name, fn in self.sites.items() if isinstance(fn, CompletionDistribution)}

    def strength(self, factor: float) -> Tensor:
        """psi with every beta multiplied by ``factor``, perhaps infinite; a rejection stays one."""
        return self.other + torch.where(self.tilt.isneginf(), self.tilt, self.tilt / factor)

    def without(self, name: str) -> Tensor:
        """psi as if there were no factor of this name."""
        return self._total(other for other in self.factors if other != name)

    def _total(self, names: Any) -> Tensor:
        return self._sum(self.factors[name] for name in names)

    def _sum(self, parts: Any) -> Tensor:
        return sum(parts, torch.zeros(self.num_draws, dtype=torch.float64))


def draw_pool(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    num_draws: int,
    progress: Callable[[int, int, str], None],
    expected: Foreseen = Foreseen(),
    at_once: int = BATCH,
) -> Pool:
    """``num_draws`` draws of the prior of a program, or from within the constraints that are ``expected``.

    ``at_once``: so many are decoded together at most. Raises ``ModelError`` where there is no latent to draw."""
    program, record = Program(model, args, kwargs, num_draws), Record()
    parts: list[Drawn] = []
    sites: dict[str, Any] = {}
    constraints: tuple[str, ...] = ()
    what = "draws from within" if expected.readers else "draws of the prior"
    with measure() as cost:
        for start in range(0, num_draws, at_once):
            batch = program.with_particles(min(at_once, num_draws - start))
            with record:
                drawn = complete(batch, {}, expected=expected)
            program.nesting = batch.nesting
            if not parts:
                factors = drawn.execution.factors
                sites = {name: record.nodes[name]["fn"] for name in drawn.values}
                constraints = tuple(name for name in factors if "constrains" in _notes(record.nodes[name]))
            parts.append(drawn)
            progress(start + batch.num_particles, num_draws, what)
    if not sites:
        raise ModelError("the program has no latent site: there is nothing to inspect; add a completion(...)")
    last = parts[-1].execution
    written = {name: [(part.values[name], part.execution.sources[name]) for part in parts] for name in last.sources}
    return Pool(
        program,
        values=joined([part.values for part in parts]),
        log_prior=joined([part.log_prior for part in parts]),
        log_proposal=joined([part.log_proposal for part in parts]),
        factors=joined([part.execution.factors for part in parts]),
        rewards=joined([part.execution.rewards for part in parts]),
        scales=joined([part.execution.scales for part in parts]),
        log_upper=joined([part.execution.log_upper for part in parts]),
        written=written,
        sites=sites,
        environment=tuple(last.environment),
        constraints=constraints,
        targets=tuple(last.targets),
        expected=expected,
        cost=cost,
    )


def _notes(node: Any) -> Any:
    return node["infer"].get("ppl_align", {})


def _texts(tokens: Tensor, source: CompletionDistribution) -> list[list[str]]:
    flat = Completion(tokens, source).texts()
    lanes = len(flat) // len(tokens)
    return [flat[i * lanes : (i + 1) * lanes] for i in range(len(tokens))]


@dataclass
class Drawn:
    """A program run to its end. ``log_prior``, ``log_proposal`` by site, of what was drawn; ``given`` [P]: log p0/q of
    the part of a completion that was not drawn but given (it belongs to neither)."""

    values: dict[str, Tensor]
    log_prior: dict[str, Tensor]
    log_proposal: dict[str, Tensor]
    given: Tensor
    execution: Execution

    @property
    def log_weight(self) -> Tensor:
        """psi + log p0/q of what was drawn, [P] nats."""
        ratio = sum((self.log_prior[name] - self.log_proposal[name] for name in self.log_prior), -self.given)
        return self.execution.log_potential + ratio


def complete(
    program: Program,
    values: Mapping[str, Tensor],
    site: str | None = None,
    prefix: Tensor | None = None,
    expected: Foreseen = Foreseen(),
) -> Drawn:
    """Run a program to its end: ``values`` are kept, all else is drawn from the prior, within what is ``expected``.

    ``prefix [P, plates..., t]``: how the completion ``site`` begins (``log_prior`` and ``log_proposal`` count it)."""
    drawn = Drawn(dict(values), {}, {}, torch.zeros(program.num_particles, dtype=torch.float64), Execution())
    while True:
        execution = program.run(drawn.values, draw=True)
        drawn.values |= execution.drawn
        drawn.log_prior |= execution.log_prior
        drawn.log_proposal |= execution.log_proposal
        if execution.pending is None:
            hold(expected, execution)
            drawn.execution = execution
            return drawn
        name, fn = execution.pending.name, execution.pending.fn
        population = Population(fn.within(expected.restriction(execution.pending)))
        if name == site and prefix is not None and prefix.shape[-1]:
            _write(population, prefix.reshape(-1, prefix.shape[-1]))
            drawn.given = _each(program, population.log_p - population.log_q)
        population.run()
        drawn.values[name] = population.tokens.reshape(*fn.batch_shape, fn.max_new_tokens)
        drawn.log_prior[name] = _each(program, population.log_p)
        drawn.log_proposal[name] = _each(program, population.log_q)


def _each(program: Program, lanes: Tensor) -> Tensor:
    """Sums over the lanes (plates) of each particle, [P]."""
    return lanes.reshape(program.num_particles, -1).sum(-1).cpu()


def _write(population: Population, tokens: Tensor) -> None:
    """Every particle writes these tokens [M, t] first; what they have in common is read once."""
    population.hold(torch.arange(len(tokens)), tokens)
    while population.t < tokens.shape[1] and not population.done:
        population.step()
        population.advance()
    population.held = None
