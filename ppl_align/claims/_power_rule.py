"""Metropolis-Hastings on p0^alpha with a suffix drawn at temperature 1/alpha, as transition matrices.

States are all strings of at most T tokens, ended or not. One step cuts the text x at a place i of its own l(x) tokens,
each as likely as any other, and draws the rest y anew. Before the cut x and y are the same, so with

    A(x) = alpha log p0(x) - log q(x),      log ratio = A(y) - A(x) + log(l(x) / l(y))

the exact rule accepts with probability min(1, ratio). The published rule (arXiv:2510.14901, as re-implemented here) has
another ratio and another proposal where texts can end, see :class:`Rule`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ppl_align import MarkovLM


class Rule(NamedTuple):
    """What is done otherwise than by the exact rule. Without an end, none of it makes a difference.

    ``no_length``   the ratio has no term l(x) / l(y)
    ``truncates``   x is cut to the length of y before the two are compared
    ``ratchet``     y may be no longer than x; a text that has ended by the end of a block is returned"""

    no_length: bool = False
    truncates: bool = False
    ratchet: bool = False


EXACT, PUBLISHED = Rule(), Rule(True, True, True)


def random_lm(words: int, seed: int, scale: float, ends: bool = True) -> MarkovLM:
    """A random chain over so many words, the last of which ends the text; logits of standard deviation ``scale``."""
    generator = torch.Generator().manual_seed(seed)
    table = scale * torch.randn(words, words, generator=generator, dtype=torch.float64)
    first = scale * torch.randn(words, generator=generator, dtype=torch.float64)
    return MarkovLM(table, first, eos_id=words - 1 if ends else None, name=f"{words} words")


class Strings:
    """All strings of 1 to T tokens that a Markov chain can write, each with its log p0 and log q at every length.

    ``tokens`` [S, T], -1 beyond the end; ``length`` [S]; ``ended`` [S]; ``whole`` [S]: ended, or of T tokens;
    ``log_p``, ``log_q`` [S, T+1]: of the first k tokens, k = 0..T, nats; ``shared`` [S, S]: how many first tokens two
    strings have in common."""

    def __init__(self, lm: MarkovLM, length: int, alpha: float) -> None:
        self.alpha, self.limit, eos = alpha, length, lm.eos_id
        inner = [v for v in range(lm.vocab_size) if v != eos]
        rows: list[tuple[int, ...]] = []
        for size in range(1, length + 1):
            rows += itertools.product(inner, repeat=size)
            if eos is not None:
                rows += [(*row, eos) for row in itertools.product(inner, repeat=size - 1)]
        self.length = torch.tensor([len(row) for row in rows])
        self.ended = torch.tensor([row[-1] == eos for row in rows])
        self.whole = self.ended | (self.length == length)
        self.tokens = torch.tensor([[*row, *[-1] * (length - len(row))] for row in rows])
        assert lm.log_initial is not None
        first, table = lm.log_initial.double().log_softmax(-1), lm.log_table.double().log_softmax(-1)
        self.log_p = self._along(first, table)
        self.log_q = self._along((alpha * first).log_softmax(-1), (alpha * table).log_softmax(-1))
        same = (self.tokens[:, None] == self.tokens[None]) & (self.tokens >= 0)
        self.shared = same.long().cumprod(-1).sum(-1)
        self._steps: dict[tuple[Rule, int], tuple[Tensor, Tensor]] = {}

    def _along(self, first: Tensor, table: Tensor) -> Tensor:
        """log-probability of the first k tokens, [S, T+1]; beyond the end it stays what it was."""
        token = self.tokens.clamp_min(0)
        steps = torch.cat([first[token[:, :1]], table[token[:, :-1], token[:, 1:]]], -1)
        steps = torch.where(self.tokens >= 0, steps, 0.0)
        return torch.cat([torch.zeros(len(steps), 1, dtype=torch.float64), steps.cumsum(-1)], -1)

    def target(self, limit: int | None = None) -> Tensor:
        """p0^alpha, normalised over texts of ``limit`` tokens at most, [S]."""
        texts = self.whole if limit is None else (self.ended & (self.length <= limit)) | (self.length == limit)
        return torch.where(texts, self.alpha * self.log_p[:, -1], -torch.inf).softmax(0)

    def step(self, rule: Rule, limit: int) -> tuple[Tensor, Tensor]:
        """One step of Metropolis-Hastings in a block that ends after ``limit`` tokens: K [n, n], and how often a state
        accepts what it proposes, [n], for the first n strings, those of ``limit`` tokens at most."""
        if (rule, limit) not in self._steps:
            self._steps[rule, limit] = self._step(rule, limit)
        return self._steps[rule, limit]

    def _step(self, rule: Rule, limit: int) -> tuple[Tensor, Tensor]:
        size = int((self.length <= limit).sum())
        new, shared = self.length[:size], self.shared[:size, :size]
        old = new[:, None]
        most = old if rule.ratchet else torch.tensor(limit)
        may = (self.ended[:size] & (new <= most)) | (new == most)  # what drawing up to ``most`` tokens gives
        proposed = torch.zeros(size, size, dtype=torch.float64)
        for cut in range(limit):
            suffix = (self.log_q[:size, -1] - self.log_q[:size, cut]).exp()
            proposed += torch.where(may & (cut < old) & (cut < new) & (cut <= shared), suffix, 0.0)
        value = self.alpha * self.log_p[:size] - self.log_q[:size]  # A of the first k tokens
        compared = torch.minimum(old, new) if rule.truncates else old.expand(size, size)
        log_ratio = value[:, -1] - value.gather(-1, compared)
        if not rule.no_length:
            log_ratio = log_ratio + old.double().log() - new.double().log()
        moves = proposed / old * log_ratio.clamp_max(0.0).exp()
        accepts = moves.sum(-1)
        return moves + torch.diag(1.0 - accepts), accepts

    def grow(self, law: Tensor, block: int) -> Tensor:
        """What has not ended is drawn ``block`` tokens further, from q; ``law`` [..., S]."""
        old = self.length[:, None]
        most = (old + block).clamp_max(self.limit)
        drawn = (self.ended & (self.length <= most)) | (self.length == most)
        extends = drawn & (self.shared == old) & (self.length > old) & ~self.ended[:, None]
        suffix = (self.log_q[:, -1] - self.log_q.gather(-1, old)).exp()  # what they share has one probability
        further = torch.where(extends, suffix, 0.0)
        return law @ (further + torch.diag((self.ended | (self.length == self.limit)).double()))

    def sampler(self, rule: Rule, block: int, steps: Sequence[int]) -> Tensor:
        """The laws of what comes out, [M, S]: text grown ``block`` tokens at a time, ``steps`` [M] moves after each."""
        begun = (self.ended & (self.length <= block)) | (self.length == block)
        law = torch.where(begun, self.log_q[:, -1].exp(), 0.0).repeat(len(steps), 1)
        done, many = torch.zeros_like(law), torch.tensor(steps)[:, None]
        for limit in range(block, self.limit + 1, block):
            law = law if limit == block else self.grow(law, block)
            kernel = self.step(rule, limit)[0]
            size = len(kernel)
            for move in range(max(steps)):
                law[:, :size] = torch.where(move < many, law[:, :size] @ kernel, law[:, :size])
            if rule.ratchet:
                done, law = done + torch.where(self.ended, law, 0.0), torch.where(self.ended, 0.0, law)
        return done + law

    def stationary(self, rule: Rule) -> Tensor:
        """The law that the moves of the last block leave as it is, over whole texts, [S]; not for a ratchet, which
        leaves no text alone but the shortest."""
        kernel = self.step(rule, self.limit)[0][self.whole][:, self.whole]
        equations = kernel.T - torch.eye(len(kernel), dtype=torch.float64)
        equations[-1] = 1.0  # probabilities sum to 1
        right = torch.zeros(len(kernel), dtype=torch.float64)
        right[-1] = 1.0
        law = torch.zeros(len(self.length), dtype=torch.float64)
        law[self.whole] = torch.linalg.solve(equations, right)
        return law


__all__ = ["EXACT", "PUBLISHED", "Rule", "Strings", "random_lm"]
