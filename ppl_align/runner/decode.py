"""Particles that are writing their next completion: the record of what is known so far, and its decoding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ppl_align.lm.base import LM
from ppl_align.lm.decoding import Population, TokenProposal
from ppl_align.lm.leaning import Lean
from ppl_align.lm.restriction import Restriction
from ppl_align.lm.score_cache import leave_scores
from ppl_align.particles.particles import Particles, Site


class Decode:
    """``particles`` [P] whose pending site is decoded, K = 1 or more texts each (plates of the program).

    ``population``  the P * K texts; whoever observes the decoding reads it, and changes it by :meth:`take` only"""

    def __init__(
        self,
        particles: Particles,
        restriction: Restriction | None = None,
        proposal: TokenProposal | LM | None = None,
        lean: Lean | None = None,
    ) -> None:
        assert particles.pending is not None
        self.particles = particles
        self.population = Population(particles.pending.fn.within(restriction), proposal, lean=lean)
        self.texts = len(self.population.row) // particles.size

    @property
    def site(self) -> Site:
        """The completion, with the prompts of the particles as they are now."""
        assert self.particles.pending is not None
        return self.particles.pending

    def begin_with(self, where: Tensor, tokens: Tensor, length: Tensor | int) -> None:
        """Particles ``where [m]`` write the first ``length`` (of each, [m]) of ``tokens [m, plates..., T]``."""
        texts = (where[:, None] * self.texts + torch.arange(self.texts)).reshape(-1)
        first = torch.as_tensor(length).expand(len(where)).repeat_interleave(self.texts)
        self.population.hold(texts, tokens.reshape(len(texts), -1), first)

    def take(self, index: Tensor) -> None:
        """Go on with the particles at ``index [P]``: resampling."""
        self.particles = self.particles.take(index)
        self.population.resample((index[:, None] * self.texts + torch.arange(self.texts)).reshape(-1))

    @property
    def t(self) -> int:
        """Tokens drawn so far."""
        return self.population.t

    @property
    def alive(self) -> Any:
        """bool [P]: some of its texts are still being written."""
        return self.population.alive.reshape(self.particles.size, -1).any(-1)

    @property
    def log_prior(self) -> Tensor:
        """log p of the tokens so far, [P] nats."""
        return self.per_particle(self.population.log_p)

    @property
    def log_proposal(self) -> Tensor:
        """log q of the tokens so far, [P] nats."""
        return self.per_particle(self.population.log_q)

    @property
    def log_ratio(self) -> Tensor:
        """log p - log q of the tokens so far, [P] nats."""
        return self.per_particle(self.population.log_p - self.population.log_q)

    def per_particle(self, value: Tensor) -> Tensor:
        """Sums over the texts of each particle: [P * K] -> [P]."""
        return value.reshape(self.particles.size, -1).sum(-1).cpu()

    def prefix(self, width: int) -> Tensor:
        """The tokens drawn so far as the program sees them: [P, plates..., width], padded."""
        return self.population.tokens[:, :width].reshape(*self.site.fn.batch_shape, width)

    def leave_scores(self, width: int) -> None:
        """log p0 of what was drawn, for a power prior that asks for it."""
        log_p = self.population.log_p.reshape(self.site.fn.batch_shape)
        leave_scores(self.site.name, self.site.fn, self.prefix(width), log_p)

    def written(self) -> Particles:
        """The particles with the finished completion among their values."""
        tokens = self.prefix(self.site.fn.max_new_tokens)
        return self.particles.write(self.site.name, tokens, self.log_prior, self.log_proposal)
