"""What a trainable guide for a completion site must offer, and what it gets for free."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from ppl_align.core.errors import InputError
from ppl_align.lm.base import LM
from ppl_align.lm.decoding import Population, Rows, TokenProposal
from ppl_align.lm.distribution import CompletionDistribution
from ppl_align.lm.leaning import confine


@dataclass
class Draw:
    """Completions drawn from a guide: ``tokens [M, T]``, ``log_q [M]``, and ``log_p [M]`` where it came for free.

    ``score``: the same log q, attached to the guide's parameters; None if it must be computed from the tokens."""

    tokens: Tensor
    log_q: Tensor
    log_p: Tensor | None = None
    score: Callable[[], Tensor] | None = None


class TokenGuide(nn.Module, ABC):
    """A distribution over the completions of one site. Parameters are ordinary ``nn.Parameter``.

    ``kind``: what it is called in a file."""

    kind: ClassVar[str] = ""

    @abstractmethod
    def log_q(self, rows: Rows) -> Tensor:
        """Next-token log-probabilities ``[rows, V]``, normalised, differentiable in the parameters."""

    def prepare(self, source: CompletionDistribution) -> None:
        """Called before the guide is used on these prompts: make the parameters they need."""

    def settings(self) -> dict[str, Any]:
        """What a file must hold beside the tensors so that :meth:`restored` makes the guide again; JSON-able."""
        return {}

    @classmethod
    def restored(cls, lm: LM, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """The guide that was saved with these settings and parameters, over the LM it was trained for."""
        guide = cls.__new__(cls)
        nn.Module.__init__(guide)
        guide._restore(lm, settings, tensors)
        return guide

    def _restore(self, lm: LM, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        raise InputError(f"a guide of kind {type(self).__name__} cannot be loaded")

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
        for t, (rows, where) in enumerate(forced_rows(source, tokens)):
            columns.append(self.log_q(rows)[where, tokens[:, t]])
        scored = torch.stack(columns, -1).double()
        return torch.where(source.ended_before(tokens), torch.zeros_like(scored), scored).sum(-1)


def forced_rows(source: CompletionDistribution, tokens: Tensor) -> Iterator[tuple[Rows, Tensor]]:
    """What the LM knows before each token of given completions [M, T]: its rows, and the row of each completion [M].

    A row for every *distinct* prefix: a support of thousands of completions has few of them."""
    vocab = source.lm.vocab_size
    used, where = torch.unique(source.index.expand(len(tokens)).to(tokens.device), return_inverse=True)
    prompts = [source.prompts[i] for i in used.tolist()]
    prefixes = tokens.new_zeros(len(prompts), 0)
    with torch.no_grad():
        decoder = source.lm.start(prompts)
    for t in range(tokens.shape[1]):
        yield Rows(_support(source, source.warp(decoder.log_probs), prefixes), decoder.hidden, prompts, prefixes), where
        if t + 1 < tokens.shape[1]:
            distinct, where = torch.unique(where * vocab + tokens[:, t], return_inverse=True)
            parents, drawn = distinct // vocab, distinct % vocab
            prompts = [prompts[p] for p in parents.tolist()]
            prefixes = torch.cat([prefixes[parents], drawn[:, None]], 1)
            with torch.no_grad():
                decoder = decoder.extend(parents.cpu(), drawn.cpu())


def _support(source: CompletionDistribution, log_probs: Tensor, prefixes: Tensor) -> Tensor:
    """The prior [rows, V], confined to what the hard constraints on the completion allow."""
    if source.restriction is None:
        return log_probs
    ended = source.ends_within(prefixes.cpu()) if source.can_end else None
    running = torch.arange(len(prefixes)) if ended is None else (~ended).nonzero()[:, 0]
    if not len(running):
        return log_probs
    allowed = torch.ones_like(log_probs, dtype=torch.bool)
    allowed[running] = source.restriction.allowed([tuple(row) for row in prefixes[running].tolist()]).to(allowed.device)
    return confine(log_probs, allowed)
