"""Refitting a table of probabilities on n of its own samples, round after round: exactly, and by simulation."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def diversity(p: Tensor) -> Tensor:
    """H = 1 - sum p^2, the probability that two draws differ, [..., S] -> [...]."""
    return 1 - (p**2).sum(-1)


class WrightFisher:
    """The chain of counts, exactly: ``diversity``, ``fixed`` [rounds + 1] and ``mean`` [rounds + 1, 3]."""

    def __init__(self, p: Tensor, n: int, rounds: int) -> None:
        self.tables = torch.tensor([(a, b, n - a - b) for a in range(n + 1) for b in range(n + 1 - a)]).double() / n
        ways = math.lgamma(n + 1) - torch.lgamma(n * self.tables + 1).sum(1)
        start, self.step = (
            (ways + n * torch.xlogy(self.tables, q[:, None]).sum(-1)).exp() for q in (p[None], self.tables)
        )
        laws = [start[0]]
        while len(laws) < rounds:
            laws.append(laws[-1] @ self.step)
        self.law = torch.stack(laws)
        alone = (self.tables == 1).any(1).double()
        self.diversity = torch.cat([diversity(p)[None], self.law @ diversity(self.tables)])
        self.mean = torch.cat([p[None], self.law @ self.tables])
        self.fixed = torch.cat([torch.zeros(1, dtype=torch.float64), self.law @ alone])

    def last_token(self) -> Tensor:
        """Which token is left in the end, [3]."""
        return self.law[-1] @ torch.linalg.matrix_power(self.step, 1000) @ self.tables


def walk(p: Tensor, n: int, rounds: int, size: Callable[[int], float], runs: int = 500) -> Tensor:
    """Many runs of p <- (1 - a) p + a counts/n with a = size(round): H, [runs, rounds + 1]."""
    tables, seen = p.expand(runs, -1), [diversity(p).expand(runs)]
    for k in range(1, rounds + 1):
        counts = torch.zeros_like(tables).scatter_add(
            1, torch.multinomial(tables, n, replacement=True), tables.new_ones(runs, n)
        )
        tables = (1 - size(k)) * tables + size(k) * counts / n
        seen.append(diversity(tables))
    return torch.stack(seen, 1)
