"""What a trainable guide for a completion site must offer, and what it gets for free."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ppl_align.lm.base import LM
from ppl_align.lm.decoding import Population, Rows, TokenProposal
from ppl_align.lm.distribution import CompletionDistribution


@dataclass
class Draw:
    """Completions drawn from a guide: ``tokens [M, T]``, ``log_q [M]``, and ``log_p [M]`` where it came for free.

    ``score``: the same log q, attached to the guide's parameters; None if it must be computed from the tokens."""

    tokens: Tensor
    log_q: Tensor
    log_p: Tensor | None = None
    score: Callable[[], Tensor] | None = None


class TokenGuide(nn.Module, ABC):
    """A distribution over the completions of one site. Parameters are ordinary ``nn.Parameter``."""

    @abstractmethod
    def log_q(self, rows: Rows) -> Tensor:
        """Next-token log-probabilities ``[rows, V]``, normalised, differentiable in the parameters."""

    def prepare(self, source: CompletionDistribution) -> None:
        """Called before the guide is used on these prompts: make the parameters they need."""

    def proposal(self) -> TokenProposal | LM:
        """The guide as a token proposal of any engine."""
        return torch.no_grad()(self.log_q)

    def draw(self, source: CompletionDistribution) -> Draw:
        """Completions for every element of the (expanded, flat) source."""
        with torch.no_grad():
            population = Population(source, self.proposal()).run()
        return Draw(population.tokens, population.log_q, population.log_p)

    def log_prob(self, source: CompletionDistribution, tokens: Tensor) -> Tensor:
        """log q of given completions ``[M, T] -> [M]``, differentiable; re-reads them with the frozen LM."""
        columns = []
        for t, rows in enumerate(forced_rows(source, tokens)):
            columns.append(self.log_q(rows).gather(-1, tokens[:, t : t + 1])[:, 0])
        scored = torch.stack(columns, -1).double()
        return torch.where(source.ended_before(tokens), torch.zeros_like(scored), scored).sum(-1)


def forced_rows(source: CompletionDistribution, tokens: Tensor) -> Iterator[Rows]:
    """What the LM knows before each token of given completions, one row per completion."""
    prompts = source.prompt_rows((len(tokens),))
    with torch.no_grad():
        decoder = source.lm.start(prompts)
    every = torch.arange(len(tokens))
    for t in range(tokens.shape[1]):
        yield Rows(source.warp(decoder.log_probs), decoder.hidden, prompts, tokens[:, :t])
        if t + 1 < tokens.shape[1]:
            with torch.no_grad():
                decoder = decoder.extend(every, tokens[:, t].cpu())
