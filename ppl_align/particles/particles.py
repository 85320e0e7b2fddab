"""The record that everything moves: P executions of one program, as far as it has run.

Engines differ in which particles they keep, never in how: resampling, accepting, pooling, cutting into batches and
going back to a site are :meth:`Particles.take`, :meth:`Particles.where`, :meth:`Particles.concat` and
:meth:`Particles.before`. A new field is added here, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ppl_align.lm.completions import Completion, tensor_of
from ppl_align.lm.distribution import CompletionDistribution
from ppl_align.lm.matcher import Matcher
from ppl_align.particles.per_particle import PerParticle

Plates = tuple[str | None, ...]
"""The plates of a site by dimension, leftmost first; None where a dimension of size 1 lies between two plates."""


@dataclass(frozen=True)
class Site:
    """A latent that waits for a value; ``fn`` is its prior, already expanded over the particles.

    ``environment``: the world answers there (:func:`ppl_align.environment`); it is drawn from ``fn`` and from nothing
    else. ``fn`` is None after the particles have been permuted: only completions can be, run the program again."""

    name: str
    fn: Any
    environment: bool = False

    @property
    def is_completion(self) -> bool:
        return isinstance(self.fn, CompletionDistribution)


@dataclass(frozen=True, eq=False)
class Particles:
    """P = ``size`` particles. By site, one for each particle, nats on the CPU in float64:

    ``values``        [P, ...] of every latent decided so far, in the order in which they were
    ``log_prior``, ``log_proposal``  [P] log p and log q of what was drawn, by latent site
    ``token_log_proposal``  [P, K, T] log q of each token of the K texts of a completion that was decoded
    ``factors``       [P] log-factors and log-likelihoods
    ``log_upper``     by the same names: the largest value a log-factor can take; None where it is not known, [P] (+inf:
                      not known) where a weight that is drawn makes it another one for each particle
    ``rewards``       [P] raw r, NaN where a reward does not apply; ``scales``: nats per unit, [P] where they are drawn
                      (in a plate: the mean over its elements)
    ``sources``       the distribution of every completion that has a value, prompts of each particle included
    ``answers``       what functions that stand for the world said, a list of P

    And what is the same for all of them:

    ``log_lower``     by factor: the smallest value that is not a rejection; None where it is not known
    ``targets``       the mean that a reward is to have, where one is asked for (``moment_constraint``)
    ``prefix_closed``  by factor: a rejection of a prefix is one of the whole text
    ``environment``   the latents met, in order, at which the world answers
    ``constraints``   the matchers of the hard constraints met, by completion site
    ``plates``        of every latent met, those that it stands in; ``nesting``: as of the program
    ``pending``       the site where the program stopped, or None if it ran to its end
    """

    size: int
    values: dict[str, Tensor] = field(default_factory=dict)
    log_prior: dict[str, Tensor] = field(default_factory=dict)
    log_proposal: dict[str, Tensor] = field(default_factory=dict)
    token_log_proposal: dict[str, Tensor] = field(default_factory=dict)
    factors: dict[str, Tensor] = field(default_factory=dict)
    log_upper: dict[str, PerParticle | None] = field(default_factory=dict)
    rewards: dict[str, Tensor] = field(default_factory=dict)
    scales: dict[str, PerParticle] = field(default_factory=dict)
    sources: dict[str, CompletionDistribution] = field(default_factory=dict)
    answers: dict[str, list[Any]] = field(default_factory=dict)
    log_lower: dict[str, float | None] = field(default_factory=dict)
    targets: dict[str, float] = field(default_factory=dict)
    prefix_closed: dict[str, bool] = field(default_factory=dict)
    environment: tuple[str, ...] = ()
    constraints: dict[str, list[Matcher]] = field(default_factory=dict)
    plates: dict[str, Plates] = field(default_factory=dict)
    nesting: int = 0
    pending: Site | None = None

    @property
    def site(self) -> Site:
        """Where they wait: the site that is ``pending``, which there is."""
        assert self.pending is not None
        return self.pending

    # -- what they weigh -----------------------------------------------------------------------------------------------

    @property
    def log_potential(self) -> Tensor:
        """psi, the sum of ``factors``, [P] nats."""
        return self._sum(self.factors.values())

    def prefix_potential(self, floor: float) -> Tensor:
        """psi of a prefix: a factor of -inf becomes ``floor``, unless it is prefix-closed."""
        closed = self.prefix_closed
        return self._sum(
            value if closed.get(name) else torch.where(value.isneginf(), floor, value)
            for name, value in self.factors.items()
        )

    @property
    def total_log_prior(self) -> Tensor:
        """log p of everything drawn, [P] nats."""
        return self._sum(self.log_prior.values())

    @property
    def total_log_proposal(self) -> Tensor:
        """log q of everything drawn, [P] nats."""
        return self._sum(self.log_proposal.values())

    @property
    def log_ratio(self) -> Tensor:
        """log p - log q of everything drawn whose prior is known by now, [P] nats."""
        total = torch.zeros(self.size, dtype=torch.float64)
        for name, log_prior in self.log_prior.items():
            total = total + log_prior - self.log_proposal[name]
        return total

    @property
    def log_weight(self) -> Tensor:
        """psi + log p - log q, [P] nats: what they weigh for the posterior of the program, once it has run to its end.

        Where psi is -inf the rest does not matter (log p - log q of what both rule out is not a number)."""
        psi = self.log_potential
        return torch.where(psi.isneginf(), psi, psi + self.log_ratio)

    def _sum(self, parts: Any) -> Tensor:
        return sum(parts, torch.zeros(self.size, dtype=torch.float64))

    # -- where they come from ------------------------------------------------------------------------------------------

    @classmethod
    def of_draws(cls, draws: Mapping[str, Completion | Tensor], index: Tensor) -> Particles:
        """Those at ``index [P]``, flat, of the draws of a run by latent site [R, N, ...]; each where its LM is."""
        values = {}
        for name, value in draws.items():
            flat = tensor_of(value).flatten(0, 1)[index]
            source = value.source if isinstance(value, Completion) else None
            values[name] = flat if source is None else flat.to(source.lm.device)
        return cls(len(index), values)

    # -- which of them are kept ----------------------------------------------------------------------------------------

    def take(self, index: Tensor) -> Particles:
        """The particles at ``index [P']``, copies where it repeats."""
        groups: dict[str, Any] = {
            name: {site: _at(value, index) for site, value in getattr(self, name).items()} for name in _BY_PARTICLE
        }
        return replace(self, size=len(index), pending=_pending_at(self.pending, index), **groups)

    def repeat(self, copies: int) -> Particles:
        """``copies`` of each, next to each other."""
        return self.take(torch.arange(self.size).repeat_interleave(copies))

    def where(self, chosen: Tensor, other: Particles) -> Particles:
        """These where ``chosen [P]`` (bool), else the ones of ``other``: accepting."""
        own = torch.arange(self.size)
        return Particles.concat([self, other]).take(torch.where(chosen, own, self.size + own))

    @classmethod
    def concat(cls, parts: Sequence[Particles]) -> Particles:
        """Particles of one program that have come equally far, one batch after the other."""
        if len(parts) == 1:
            return parts[0]
        first, sizes = parts[0], [part.size for part in parts]
        groups: dict[str, Any] = {
            name: {site: _joined([getattr(part, name)[site] for part in parts], sizes) for site in getattr(first, name)}
            for name in _BY_PARTICLE
        }
        return replace(first, size=sum(sizes), pending=_pending_joined([part.pending for part in parts]), **groups)

    def before(self, sites: Collection[str]) -> Particles:
        """The same without the values of ``sites`` and without all that a run said: the program runs on from there."""
        kept = (self.values, self.log_prior, self.log_proposal, self.token_log_proposal)
        values, log_p, log_q, by_token = ({k: v for k, v in group.items() if k not in sites} for group in kept)
        return Particles(self.size, values, log_p, log_q, by_token)

    # -- how they grow -------------------------------------------------------------------------------------------------

    def write(
        self, site: str, value: Tensor, log_prior: Tensor, log_proposal: Tensor, by_token: Tensor | None = None
    ) -> Particles:
        """With a value [P, ...] for one more latent, its log p and log q [P], and log q ``by_token`` [P, K, T]."""
        tokens = {} if by_token is None else {site: by_token}
        return replace(
            self,
            values={**self.values, site: value},
            log_prior={**self.log_prior, site: log_prior},
            log_proposal={**self.log_proposal, site: log_proposal},
            token_log_proposal={**self.token_log_proposal, **tokens},
        )

    def replace(self, **fields: Any) -> Particles:
        """The same with other fields."""
        return replace(self, **fields)


_BY_PARTICLE = (
    "values",
    "log_prior",
    "log_proposal",
    "token_log_proposal",
    "factors",
    "log_upper",
    "rewards",
    "scales",
    "sources",
    "answers",
)
"""The fields with one value for each particle."""


def _at(value: Any, index: Tensor) -> Any:
    if isinstance(value, Tensor):
        return value[index.to(value.device)]
    if isinstance(value, CompletionDistribution):
        return value.with_index(value.index[index.to(value.index.device)])
    if isinstance(value, list):
        return [value[i] for i in index.tolist()]
    return value


def _pending_at(site: Site | None, index: Tensor) -> Site | None:
    if site is None:
        return None
    return replace(site, fn=_at(site.fn, index) if site.is_completion else None)


def _joined(values: Sequence[Any], sizes: Sequence[int]) -> Any:
    first = values[0]
    if isinstance(first, CompletionDistribution):
        return CompletionDistribution.joined(values)
    if isinstance(first, list):
        return [answer for value in values for answer in value]
    if any(isinstance(value, Tensor) for value in values):
        return torch.cat([_each(value, size) for value, size in zip(values, sizes, strict=True)])
    return first


def _each(value: Any, size: int) -> Tensor:
    return value if isinstance(value, Tensor) else torch.full((size,), value, dtype=torch.float64)


def _pending_joined(sites: Sequence[Site | None]) -> Site | None:
    first = sites[0]
    if first is None:
        return None
    return replace(first, fn=CompletionDistribution.joined([s.fn for s in sites if s]) if first.is_completion else None)


__all__ = ["Particles", "Plates", "Site"]
