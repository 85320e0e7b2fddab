"""Particles that are writing their next completion: the record of what is known so far, and its decoding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ppl_align.core.errors import InputError
from ppl_align.lm.base import Ids
from ppl_align.lm.decoding import Population
from ppl_align.lm.growing import Growing
from ppl_align.lm.score_cache import leave_scores
from ppl_align.particles.particles import Particles, Site


class Decode:
    """``particles`` [P] whose pending site is decoded, K = 1 or more texts each (plates of the program).

    ``population``  what decodes the P * K texts. Whoever observes the decoding reads it, and changes it by
    :meth:`take` only"""

    def __init__(self, particles: Particles, population: Growing) -> None:
        self.particles, self.population = particles, population
        self.texts = particles.site.fn.index.numel() // particles.size

    def write(
        self, drawing: Callable[[Decode], None], drew: Callable[[Decode], None], progress: Callable[[int], None]
    ) -> None:
        """The one loop of decoding, to the end of all texts. ``drawing``: called before every token; ``drew``: after
        every token that is not the last, before the network reads it; ``progress``: with the tokens so far."""
        while not self.population.done:
            drawing(self)
            self.population.step()
            if not self.population.done:
                drew(self)  # which may put another population in its place
            self.population.advance()
            progress(self.population.t)

    @property
    def site(self) -> Site:
        """The completion, with the prompts of the particles as they are now."""
        return self.particles.site

    def write_until(self, t: int) -> None:
        """The first ``t`` tokens; the network has not read the newest."""
        texts = self.population
        while not texts.done and texts.t < t:
            texts.step()
            if texts.t < t:
                texts.advance()

    def replace(self, where: Tensor, other: Decode) -> bool:
        """Particles ``where [m]`` become those of ``other``, which has as many and has written as much. False, and
        nothing is done, where the LM cannot put their rows together."""
        texts, size = self._texts_of(where), len(self.population.alive)
        if not self.population.join(other.population):
            return False
        index = torch.arange(size)
        index[texts] += size
        self.population.resample(index)
        return True

    def hold(self, where: Tensor, tokens: Tensor, which: Tensor | int) -> None:
        """Particles ``where [m]`` write ``tokens [m, plates..., T]`` instead of drawing: those in ``which``, bool
        [m, K, T], or the first so many (of each, [m], or of each text, [m, K])."""
        texts, held = self._texts_of(where), torch.as_tensor(which)
        if held.dtype == torch.bool:
            held = held.reshape(len(texts), -1)
        else:
            held = (held if held.dim() == 2 else held.expand(len(where))[:, None].expand(-1, self.texts)).reshape(-1)
        flat = tokens.reshape(len(texts), -1)
        self.population.force_tokens(texts, flat, held)
        if isinstance(self.population, Population) and self.population.texts is not None:
            begun = held.long().cumprod(-1).sum(-1) if held.dtype == torch.bool else held
            assert len(texts) == len(self.population.alive)
            self.population.texts.put_to_sleep(self.population, flat, begun)

    def take(self, index: Tensor) -> None:
        """Go on with the particles at ``index [P]``: resampling."""
        self.particles = self.particles.take(index)
        self.population.resample(self._texts_of(index))

    def _texts_of(self, particles: Tensor) -> Tensor:
        """Their numbers in the population, [m * K]."""
        return (particles[:, None] * self.texts + torch.arange(self.texts)).reshape(-1)

    @property
    def t(self) -> int:
        """Tokens drawn so far."""
        return self.population.t

    @property
    def entropy(self) -> Tensor:
        """Of the next token of each text under the prior, [P * K] nats; 0 for texts that have ended.

        Raises ``InputError`` for an LM that shows no probabilities of next tokens."""
        if not isinstance(self.population, Population):
            raise InputError(self.site.fn.lm.cannot_step("the entropy of next tokens"))
        return self.population.entropy

    @property
    def alive(self) -> Any:
        """bool [P]: some of its texts are still being written."""
        return self.running_texts.any(-1)

    @property
    def running_texts(self) -> Any:
        """bool [P, K]: those that are still being written."""
        return self.population.alive.reshape(self.particles.size, -1)

    def texts_so_far(self, particles: Tensor) -> list[Ids]:
        """The running texts of some particles [m], flat, on the host."""
        which = self._texts_of(particles).numpy()
        which = which[self.population.alive[which]]
        return [tuple(row) for row in self.population.written[which, : self.t].tolist()]

    @property
    def last(self) -> Any:
        """int [P, K]: the newest token of each running text."""
        return self.population.last.reshape(self.particles.size, -1)

    @property
    def log_prior(self) -> Tensor:
        """log p of the tokens so far, [P] nats."""
        return self._sum(self.population.log_p)

    @property
    def log_proposal(self) -> Tensor:
        """log q of the tokens so far, [P] nats."""
        return self._sum(self.population.log_q)

    @property
    def log_ratio(self) -> Tensor:
        """log p - log q of the tokens so far, [P] nats."""
        return self._sum(self.population.log_p - self.population.log_q)

    @property
    def log_psi(self) -> Tensor:
        """What a twist with a table says of the tokens so far, [P] nats."""
        return self._sum(self.population.log_psi)

    @property
    def kept(self) -> tuple[Tensor, Tensor]:
        """log p and log q of what was given and not drawn, [P] nats each."""
        log_p, log_q = self.population.held_scores
        return self._sum(log_p), self._sum(log_q)

    def _sum(self, value: Tensor) -> Tensor:
        """Over the texts of each particle: [M] -> [P]."""
        return value.reshape(self.particles.size, -1).sum(-1).cpu()

    def prefix(self, width: int) -> Tensor:
        """The tokens drawn so far as the program sees them: [P, plates..., width], padded."""
        return self.population.tokens[:, :width].reshape(*self.site.fn.batch_shape, width)

    def leave_scores(self, width: int, particles: Tensor | None = None) -> None:
        """log p0 of what was drawn, for a power prior that asks for it; of some particles [m], None: of all."""
        source, tokens = self.site.fn, self.prefix(width)
        log_p = self.population.log_p.reshape(source.batch_shape)
        if particles is not None:
            source = self.particles.take(particles).site.fn
            there = particles.to(tokens.device)
            tokens, log_p = tokens[there], log_p[particles.to(log_p.device)]
        leave_scores(self.site.name, source, tokens, log_p)

    def written(self) -> Particles:
        """The particles with the finished completion among their values."""
        tokens = self.prefix(self.site.fn.max_new_tokens)
        by_token = self.population.token_log_q.reshape(self.particles.size, self.texts, -1).cpu()
        return self.particles.write(self.site.name, tokens, self.log_prior, self.log_proposal, by_token)
