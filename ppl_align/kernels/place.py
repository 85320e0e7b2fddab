"""The places at which P texts are cut, and how likely those were to be chosen."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_align.kernels.cuts import Cuts
from ppl_align.lm.completions import Completion
from ppl_align.particles.particles import Particles


@dataclass(frozen=True)
class Place:
    """Cuts of P particles: before ``token [P]`` of text ``text [P]`` of the K that each has; ``weights [P, K, T]``."""

    text: Tensor
    token: Tensor
    possible: Tensor
    weights: Tensor | None = None

    @classmethod
    def whole(cls, size: int) -> Place:
        """Nothing of the site is kept."""
        zeros = torch.zeros(size, dtype=torch.long)
        return cls(zeros, zeros, torch.ones(size, dtype=torch.bool))

    @classmethod
    def drawn(cls, weights: Tensor) -> Place:
        """One of the texts, each as likely as any other, then a token of it."""
        size, texts, _ = weights.shape
        text = torch.randint(texts, (size,))
        own = weights[torch.arange(size), text]
        possible = own.sum(-1) > 0
        token = torch.multinomial(torch.where(possible[:, None], own, 1.0), 1)[:, 0]
        return cls(text, token, possible, weights)

    @property
    def rest(self) -> Tensor:
        """All tokens from the cut on, bool [P, K, T]."""
        assert self.weights is not None
        return self.window(self.weights.shape[-1])

    def take(self, index: Tensor) -> Place:
        weights = None if self.weights is None else self.weights[index]
        return Place(self.text[index], self.token[index], self.possible[index], weights)

    def log_chosen(self, weights: Tensor | None = None) -> Tensor:
        """How likely this cut is, given the text, [P] nats; ``weights``: those of other states."""
        weights = self.weights if weights is None else weights
        assert weights is not None
        own = weights[torch.arange(len(self.text)), self.text]
        return own.gather(-1, self.token[:, None])[:, 0].log() - own.sum(-1).log()

    def kept(self, particles: Particles, site: str) -> Tensor | int:
        """How many tokens of each text are kept, [P, K]: of the other texts of a plate all."""
        if self.weights is None:
            return 0
        size, texts, width = self.weights.shape
        kept = torch.full((size, texts), width)
        kept[torch.arange(size), self.text] = self.token
        return kept

    def window(self, width: Tensor | int) -> Tensor:
        """The next ``width [P]`` tokens, bool [P, K, T]."""
        assert self.weights is not None
        _, texts, tokens = self.weights.shape
        at = torch.arange(tokens)
        inside = (at >= self.token[:, None]) & (at < (self.token + width)[:, None])
        own = torch.arange(texts) == self.text[:, None]
        return own[:, :, None] & inside[:, None]


def cut_weights(cuts: Cuts, texts: Completion, window: tuple[int, int], entropy: Tensor | None) -> Tensor:
    """How likely each place of texts [P, K] is to be cut, [P, K, T], not normalised; none outside of the window and of
    the text."""
    shape = (*texts.shape, texts.tokens.shape[-1])
    weights = cuts.weights(texts, entropy).reshape(shape)
    at = torch.arange(shape[-1])
    inside = (at >= window[0]) & (at < window[1]) & (at < texts.lengths.cpu().reshape(*shape[:2], 1))
    return torch.where(inside, weights, 0.0)


def texts_of(particles: Particles, site: str) -> Completion:
    """The texts of a completion, [P, K]."""
    source, tokens = particles.sources[site], particles.values[site]
    return Completion(tokens, source).reshape(particles.size, source.index.numel() // particles.size)


__all__ = ["Place", "cut_weights", "texts_of"]
