"""Texts that grow together: what decoding token by token and decoding in blocks have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from ppl_align.lm.distribution import CompletionDistribution


class Growing(ABC):
    """``M`` texts of one :class:`CompletionDistribution`.

    ``tokens``  [M, T] ids so far, padded          ``t``      tokens drawn so far
    ``log_p``   [M] log-probability under the prior ``log_q``  [M] under the proposal (float64)
    ``token_log_p``, ``token_log_q``  [M, T] the same of each token
    ``alive``   [M] still running                 ``last``   [M] the newest token of each running text
    ``log_psi`` [M] what a twist with a table says of the prefix, nats
    ``written`` [M, T] ``tokens`` on the host, not padded      ``lengths`` [M] tokens of each text so far
    """

    def __init__(self, source: CompletionDistribution, size: int) -> None:
        lm = source.lm
        self.source = source
        self.tokens = torch.full((size, source.max_new_tokens), source.pad_id, dtype=torch.long, device=lm.device)
        self.written = np.zeros((size, source.max_new_tokens), dtype=np.int64)
        self.log_p = torch.zeros(size, dtype=torch.float64, device=lm.device)
        self.log_q = torch.zeros_like(self.log_p)
        self.token_log_p = torch.zeros(self.tokens.shape, dtype=torch.float64, device=lm.device)
        self.token_log_q = torch.zeros_like(self.token_log_p)
        self.log_psi = torch.zeros_like(self.log_p)
        self.alive = np.ones(size, dtype=bool)
        self.last = np.zeros(size, dtype=np.int64)
        self.lengths = np.zeros(size, dtype=np.int64)
        self.t = 0
        self.held: tuple[Tensor, Tensor] | None = None
        self.terminal = np.zeros(lm.vocab_size, dtype=bool)
        self.terminal[list(source.terminal)] = True
        self.stop_text = source.terminal.text
        self.read = np.full(size, 0 if self.stop_text is None else self.stop_text.start)  # where it stands, by text

    @abstractmethod
    def step(self) -> None:
        """Draw what comes next in every running text, and add its log-probabilities."""

    @abstractmethod
    def advance(self) -> None:
        """Let the language model read what was drawn, once it is known who goes on."""

    @property
    def done(self) -> bool:
        return self.t == self.source.max_new_tokens or not self.alive.any()

    def run(self) -> Self:
        """Draw to the end, with nothing in between: ancestral sampling."""
        while not self.done:
            self.step()
            self.advance()
        return self

    def force_tokens(self, where: Tensor, tokens: Tensor, which: Tensor | int | None = None) -> None:
        """Texts ``where [m]`` do not draw the tokens ``which``, bool [m, T] (or the first of them, [m]; None: all), but
        write those of ``tokens [m, T]``. They are scored like any draw."""
        given, forced = self.held if self.held is not None else self._nothing_held()
        first = torch.as_tensor(tokens.shape[1] if which is None else which)
        if first.dtype != torch.bool:
            first = torch.arange(tokens.shape[1]) < first.expand(len(where))[:, None]
        given[where, : tokens.shape[1]], forced[where, : tokens.shape[1]] = tokens.cpu(), first
        self.held = given, forced

    def _nothing_held(self) -> tuple[Tensor, Tensor]:
        shape = tuple(self.tokens.shape)
        return torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.bool)

    @property
    def held_scores(self) -> tuple[Tensor, Tensor]:
        """log p and log q of what was not drawn but held, [M] nats each."""
        if self.held is None:
            return torch.zeros_like(self.log_p), torch.zeros_like(self.log_q)
        forced = self.held[1].to(self.token_log_p.device)
        return (self.token_log_p * forced).sum(-1), (self.token_log_q * forced).sum(-1)

    def resample(self, ancestors: Tensor) -> None:
        """Text i becomes a copy of text ``ancestors[i]``."""
        where = ancestors.to(self.tokens.device)
        self.tokens, self.log_p, self.log_q = self.tokens[where], self.log_p[where], self.log_q[where]
        self.log_psi = self.log_psi[where]
        self.token_log_p, self.token_log_q = self.token_log_p[where], self.token_log_q[where]
        at = ancestors.cpu().numpy()
        self.alive, self.last, self.written, self.read = self.alive[at], self.last[at], self.written[at], self.read[at]
        self.lengths = self.lengths[at]

    def join(self, other: Self) -> bool:
        """The texts of ``other``, of the same source and with as many tokens, become texts M, M + 1, ...: for
        :meth:`resample`, which says who stays. False, and nothing is done, where the LM cannot put rows together."""
        for name in ("tokens", "log_p", "log_q", "token_log_p", "token_log_q", "log_psi"):
            setattr(self, name, torch.cat([getattr(self, name), getattr(other, name)]))
        for name in ("alive", "last", "written", "read", "lengths"):
            setattr(self, name, np.concatenate([getattr(self, name), getattr(other, name)]))
        return True

    def _note(self, running: np.ndarray, drawn: np.ndarray, at: int) -> None:
        """On the host: the running texts have drawn these tokens at place ``at``; who has ended with them?"""
        self.last[running] = drawn
        self.lengths[running] = at + 1
        self.written[running, at] = drawn
        self.alive[running] = ~self.terminal[drawn]
        if self.stop_text is not None:
            self.read[running] = self.stop_text.after(self.read[running], drawn)
            self.alive[running] &= self.read[running] != self.stop_text.end

    def _ends(self, texts: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Would texts ``[m]`` end with these tokens? ``[m]`` bool."""
        ends = self.terminal[tokens] | (self.t + 1 == self.source.max_new_tokens)
        if self.stop_text is not None:
            ends |= self.stop_text.after(self.read[texts], tokens) == self.stop_text.end
        return ends
