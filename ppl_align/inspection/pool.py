"""Draws of the prior, and what the program says of each: everything ``inspect`` knows comes from these.

A draw x_i ~ p0 with log-potential psi_i = sum of the log-factors carries information on every other strength of the
rewards as well, since p_c ∝ p0 exp(psi_other + psi_rewards / c) needs nothing but another weight (umbrella of one
pool, Torrie & Valleau 1977). Few draws of the prior meet a hard constraint, so where a program has one the draws are
those of the prior confined to it, as engines draw, and p0 / q belongs to their weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ppl_align.core.cost import Cost, measure
from ppl_align.core.errors import InputError, ModelError
from ppl_align.engines.rejection.ceiling import ceiling, is_known
from ppl_align.inspection.weighted import Weighted
from ppl_align.lm.completions import Completion
from ppl_align.lm.distribution import CompletionDistribution
from ppl_align.particles.particles import Particles
from ppl_align.posterior.bounded import upper_mean
from ppl_align.program.compiled import Program
from ppl_align.program.notes import notes_of
from ppl_align.program.record import Record
from ppl_align.runner.known_constraints import KnownConstraints
from ppl_align.runner.runner import Runner

BATCH = 512
"""Particles decoded together at most: memory."""


@dataclass
class Pool:
    """N draws of the prior, or from within the hard constraints; tensors [N], float64, on the CPU.

    ``particles``  at the end of the program
    ``sites``      the distribution of every latent site (as of the first batch)
    ``constraints``  the factors that are hard constraints     ``known``  those that the draws are confined to
    """

    program: Program
    particles: Particles
    sites: dict[str, Any] = field(default_factory=dict)
    constraints: tuple[str, ...] = ()
    known: KnownConstraints = field(default_factory=KnownConstraints)
    cost: Cost = field(default_factory=Cost)

    @property
    def num_draws(self) -> int:
        return self.particles.size

    @cached_property
    def texts(self) -> dict[str, list[list[str]]]:
        """By completion site, a list of texts for each draw (several where a plate holds several)."""
        return {name: _texts(self.particles.values[name], prior) for name, prior in self.particles.sources.items()}

    @property
    def tilt(self) -> Tensor:
        """psi_rewards: what all rewards that have a beta say together, nats."""
        return self._total(self.chosen)

    @property
    def other(self) -> Tensor:
        """psi_other: observations, constraints and raw factors, nats."""
        return self._total(name for name in self.particles.factors if name not in self.chosen)

    @property
    def chosen(self) -> list[str]:
        """The rewards whose beta somebody chose."""
        return [name for name in self.particles.rewards if name not in self.particles.targets]

    @property
    def told_apart(self) -> bool:
        """Is there a beta at which the rewards prefer one of the draws that they do not reject to another?"""
        kept = self.tilt[self.strength(math.inf).isfinite()]
        return len(kept) > 1 and bool((kept != kept[0]).any())

    @property
    def beta(self) -> float | None:
        """beta / weight of the only reward; None where there are several, it is wanted small, or it is drawn."""
        scales = [self.particles.scales[name] for name in self.chosen]
        only = scales[0] if len(scales) == 1 else None
        return None if only is None or isinstance(only, Tensor) or only <= 0 else 1 / only

    @cached_property
    def log_bound(self) -> float | None:
        """The largest log-weight that the factors of the program can have, nats; None where it is not known."""
        if not all(is_known(bound) for bound in self.particles.log_upper.values()):
            return None
        same = sum(
            bound for bound in self.particles.log_upper.values() if bound is not None and not isinstance(bound, Tensor)
        )
        drawn = [name for name, bound in self.particles.log_upper.items() if isinstance(bound, Tensor)]
        try:
            return same + (ceiling(self.program, drawn) if drawn else 0.0)
        except InputError:
            return None

    @property
    def confined(self) -> bool:
        """Are these draws from within hard constraints?"""
        return bool(self.known.matchers)

    @property
    def log_ratio(self) -> Tensor:
        """log p0 - log q of each draw, nats."""
        return self.particles.log_ratio

    @property
    def psi(self) -> Tensor:
        """What the program says of each draw, as it is written, nats."""
        return self.particles.log_potential

    @property
    def log_weight(self) -> Tensor:
        """The log-weight of each draw for the target as it is written, nats."""
        return self.psi + self.log_ratio

    @property
    def unmet(self) -> list[str]:
        """Rewards that were the same on every draw, and not at their declared best: what they are for may not have been
        drawn."""
        counts = {name: bool(torch.as_tensor(scale).any()) for name, scale in self.particles.scales.items()}
        return [name for name, r in self.particles.rewards.items() if counts[name] and self._never_varied(name, r)]

    def _never_varied(self, name: str, r: Tensor) -> bool:
        bound = self.particles.log_upper.get(name)
        at_its_most = is_known(bound) and bool(
            (self.particles.factors[name] >= torch.as_tensor(bound, dtype=torch.float64) - 1e-9).all()
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
        if most is None or not self.particles.log_upper:
            return None
        return most + math.log(upper_mean((self.log_weight - most).clamp_max(0.0).exp()))

    def weighted(self, psi: Tensor) -> Weighted:
        """The draws, weighted for p0 exp(psi)."""
        return Weighted(psi, self.log_ratio, not self.unmet)

    @property
    def base(self) -> Weighted:
        """The draws as the prior would have them, given the hard constraints; rewards play no part."""
        return Weighted(self._total(self.constraints if self.confined else ()), self.log_ratio)

    def distinct(self, sites: Sequence[str]) -> int:
        """How many of the draws differ at these sites."""
        values = (self.particles.values[name].reshape(self.num_draws, -1).double().cpu() for name in sites)
        return len(torch.cat(list(values), -1).unique(dim=0))

    @property
    def completions(self) -> dict[str, CompletionDistribution]:
        return {name: fn for name, fn in self.sites.items() if isinstance(fn, CompletionDistribution)}

    def strength(self, factor: float) -> Tensor:
        """psi with every beta multiplied by ``factor``, perhaps infinite; a rejection stays one."""
        return self.other + torch.where(self.tilt.isneginf(), self.tilt, self.tilt / factor)

    def without(self, name: str) -> Tensor:
        """psi as if there were no factor of this name."""
        return self._total(other for other in self.particles.factors if other != name)

    def _total(self, names: Any) -> Tensor:
        return sum((self.particles.factors[name] for name in names), torch.zeros(self.num_draws, dtype=torch.float64))


def draw_pool(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    num_draws: int,
    progress: Callable[[int, int, str], None],
    known: KnownConstraints = KnownConstraints(),
    at_once: int = BATCH,
) -> Pool:
    """``num_draws`` draws of the prior of a program, or from within the constraints that are ``known``.

    ``at_once``: so many are decoded together at most. Raises ``ModelError`` where there is no latent to draw."""
    program, record = Program(model, args, kwargs), Record()
    # keep_scores: an engine that enumerates has to ask for them.
    runner = Runner(program, constraints=known, keep_scores=False, tests=True)
    parts: list[Particles] = []
    sites: dict[str, Any] = {}
    constraints: tuple[str, ...] = ()
    what = "draws from within" if known.matchers else "draws of the prior"
    with measure() as cost:
        for start in range(0, num_draws, at_once):
            with record:
                drawn = runner.finish(Particles(min(at_once, num_draws - start)))
            if not parts:
                sites = {name: record.nodes[name]["fn"] for name in drawn.values}
                constraints = tuple(name for name in drawn.factors if notes_of(record.nodes[name]).constrains)
            parts.append(drawn)
            progress(start + drawn.size, num_draws, what)
    if not sites:
        raise ModelError("the program has no latent site: there is nothing to inspect; add a completion(...)")
    return Pool(program, Particles.concat(parts), sites, constraints, known, cost)


def _texts(tokens: Tensor, prior: CompletionDistribution) -> list[list[str]]:
    flat = Completion(tokens, prior).texts()
    batch = len(flat) // len(tokens)
    return [flat[i * batch : (i + 1) * batch] for i in range(len(tokens))]
