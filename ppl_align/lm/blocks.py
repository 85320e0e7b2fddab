"""Decoding with a language model that draws several tokens at once and shows no next-token probabilities.

Every LM draws *blocks*: given beginnings of texts it returns the next k tokens of each, with log p and log q of every
token, and it scores given ones. That is all that importance sampling, rejection and SMC with a twist that judges
prefixes need. What looks at each next token (hard constraints, twists with a table, guides) needs an LM that *steps*:
:mod:`ppl_align.lm.decoding`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ppl_align.lm.growing import Growing

if TYPE_CHECKING:
    from ppl_align.lm.base import Ids
    from ppl_align.lm.distribution import CompletionDistribution


class Block(NamedTuple):
    """``tokens [m, k]`` ids; ``log_p``, ``log_q`` [m, k] nats of each token (after the end of a text: not read)."""

    tokens: Tensor
    log_p: Tensor
    log_q: Tensor


class BlockPopulation(Growing):
    """``M`` texts that grow by at most ``block`` tokens at a step (None: to their end at once)."""

    def __init__(self, source: CompletionDistribution, block: int | None = None) -> None:
        index = source.index.reshape(-1)
        super().__init__(source, len(index))
        self.prompt = index.cpu().numpy()
        self.block = source.max_new_tokens if block is None else block

    def step(self) -> None:
        running = np.flatnonzero(self.alive)
        width = min(self.block, self.source.max_new_tokens - self.t)
        held, tokens = self._held_now()
        if held is not None:
            changes = held[:, self.t : self.t + width] != held[:, self.t, None]
            width = int(np.where(changes.any(-1), changes.argmax(-1), width)[running].min())  # all of it held, or none
            drawn = self._filled(running, held[:, self.t], tokens, width)
        else:
            drawn = self.source.lm.draw_block(*self._so_far(running), width, self.source)
        self._write(running, drawn)

    def advance(self) -> None:
        """The texts are given whole each time: there is nothing to read ahead."""

    def _so_far(self, which: np.ndarray) -> tuple[list[Ids], list[Ids]]:
        """Their prompts, and what is written."""
        prompts = [self.source.prompts[i] for i in self.prompt[which]]
        return prompts, [tuple(text) for text in self.written[which, : self.t].tolist()]

    def _held_now(self) -> tuple[np.ndarray | None, np.ndarray]:
        """Which tokens are given, bool [M, T] (None: none from here on), and those, [M, T]."""
        if self.held is None or not bool(self.held[1][:, self.t :].any()):
            return None, self.written
        return self.held[1].numpy(), self.held[0].numpy()

    def _filled(self, running: np.ndarray, held: np.ndarray, tokens: np.ndarray, width: int) -> Block:
        """A block in which some texts are ``held`` [M], given and scored, and the others drawn."""
        lm, device = self.source.lm, self.tokens.device
        given, free = np.flatnonzero(held[running]), np.flatnonzero(~held[running])
        parts = torch.zeros(len(running), width, dtype=torch.long, device=device)
        log_p, log_q = (torch.zeros(len(running), width, dtype=torch.float64, device=device) for _ in range(2))
        if len(given):
            ids = torch.as_tensor(tokens[running[given], self.t : self.t + width], device=device)
            parts[given] = ids
            log_p[given], log_q[given] = lm.score_block(*self._so_far(running[given]), ids, self.source)
        if len(free):
            drawn = lm.draw_block(*self._so_far(running[free]), width, self.source)
            parts[free], log_p[free], log_q[free] = drawn.tokens, drawn.log_p.double(), drawn.log_q.double()
        return Block(parts, log_p, log_q)

    def _write(self, running: np.ndarray, drawn: Block) -> None:
        ids = drawn.tokens.cpu().numpy()
        for j in range(ids.shape[1]):
            on = np.flatnonzero(self.alive[running])  # the others have ended within this block
            if not len(on):
                break
            texts = running[on]
            self.tokens[texts, self.t] = drawn.tokens[on, j].to(self.tokens)
            self.token_log_p[texts, self.t] = drawn.log_p[on, j].double()
            self.token_log_q[texts, self.t] = drawn.log_q[on, j].double()
            self.log_p[texts] += self.token_log_p[texts, self.t]
            self.log_q[texts] += self.token_log_q[texts, self.t]
            self._note(texts, ids[on, j], self.t)
            self.t += 1

    def resample(self, ancestors: Tensor) -> None:
        super().resample(ancestors)
        self.prompt = self.prompt[ancestors.cpu().numpy()]


def stepped(prompts: Sequence[Ids], texts: Sequence[Ids], length: int, source: CompletionDistribution) -> Block:
    """A block by an LM that steps: token by token, prefixes shared."""
    from ppl_align.lm.decoding import Population

    distinct = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
    index = torch.tensor([distinct[prompt] for prompt in prompts], device=source.index.device)
    begun = torch.tensor([len(text) for text in texts])
    longest = int(begun.max()) + length
    grown = Population(type(source)(source.lm, tuple(distinct), index, longest, source.warp, source.stop_ids))
    grown.force_tokens(torch.arange(len(index)), _padded(texts, longest), begun)
    grown.run()
    return Block(*(_after(part, begun, length) for part in (grown.tokens, grown.token_log_p, grown.token_log_q)))


def scored(prompts: Sequence[Ids], texts: Sequence[Ids], tokens: Tensor, source: CompletionDistribution) -> Tensor:
    """log p [m, k] nats of the tokens [m, k] that come after the texts."""
    begun, length = torch.tensor([len(text) for text in texts]), tokens.shape[1]
    whole = _padded(texts, int(begun.max()) + length).to(tokens.device)
    at = begun.to(tokens.device)[:, None] + torch.arange(length, device=tokens.device)
    whole = whole.scatter(1, at, tokens)
    return _after(source.lm.token_log_probs(prompts, whole, source.warp).double(), begun, length)


def _padded(texts: Sequence[Ids], width: int) -> Tensor:
    return torch.tensor([(*text, *[0] * (width - len(text))) for text in texts], dtype=torch.long).reshape(-1, width)


def _after(values: Tensor, begun: Tensor, length: int) -> Tensor:
    """``length`` columns of ``values [m, T]`` from ``begun [m]`` on."""
    at = begun.to(values.device)[:, None] + torch.arange(length, device=values.device)
    return values.gather(1, at)
