"""The dynamic programme of a tilted Markov chain, in log space and as matrix products.

A sequence is written token by token: the next token v follows the previous one u with log-probability L_t[u, v], and
an automaton moves from state s to delta[s, v]. Token v at position t adds f_t[v] nats; the sequence ends with a
terminal token or at position T, and ending in state s with last token v adds g[s, v]. With log w the sum of all that,

    C_t[s, v]  = log E[remaining weight | t tokens written, the last of them v, state s]
               = g[s, v]                                                    if v is terminal or t = T
               = log sum_v' exp(L_t[v, v'] + f_t[v'] + C_{t+1}[delta[s, v'], v'])    otherwise

which is one product of a [S, V] with a [V, V] matrix for each position (Levine 2018, arXiv:1805.00909).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

NEVER = -torch.inf
_TINY = 1e-280  # a sum of products below this may have lost terms to underflow
_CHUNK = 2**22  # numbers held at once when such sums are taken again, in log space


class LogMatrix:
    """Log-probabilities [U, V] by which log-weights are multiplied: ``log sum exp(a + L)``, float64."""

    def __init__(self, log: Tensor) -> None:
        self.log, self.linear = log, log.exp()

    @cached_property
    def support(self) -> Tensor | None:
        """Where a product can be anything but zero; None: everywhere."""
        possible = self.log > NEVER
        return None if bool(possible.all()) else possible.double()

    def left(self, a: Tensor) -> Tensor:
        """``log sum_u exp(a[s, u] + L[u, v])``: [S, U] -> [S, V]."""
        return _product(a, self.log, self.linear, self.support)

    def right(self, a: Tensor) -> Tensor:
        """``log sum_v exp(L[u, v] + a[s, v])``: [S, V] -> [S, U]."""
        return _product(a, self.log.T, self.linear.T, None if self.support is None else self.support.T)


def _product(a: Tensor, log: Tensor, linear: Tensor, support: Tensor | None) -> Tensor:
    """``log sum_k exp(a[s, k] + log[k, n])``: a matrix product of shifted weights; what underflows is summed anew."""
    top = a.amax(-1, keepdim=True)
    alive = top > NEVER
    shift = torch.where(alive, top, 0.0)
    total = (a - shift).exp() @ linear
    result = total.log() + shift
    lost = (total < _TINY) & alive
    if bool(lost.any()) and support is not None:
        lost &= ((a > NEVER).double() @ support) > 0  # the others are zero
    if bool(lost.any()):
        for pairs in lost.nonzero().split(max(1, _CHUNK // len(log))):
            s, n = pairs.unbind(-1)
            result[s, n] = (a[s] + log[:, n].T).logsumexp(-1)
    return result


class Marginals(NamedTuple):
    """Probabilities: ``tokens [T, V]`` token t exists and is v; ``last [V]``, ``state [S]`` the sequence ends so."""

    tokens: Tensor
    last: Tensor
    state: Tensor


@dataclass(frozen=True, eq=False)
class TiltedChain:
    """A Markov chain with potentials; see the module's docstring for the letters.

    ``log_first``    [V] L_0 after the prompt            ``kernels``   L_1 .. L_{T-1} (the same object, if it is)
    ``transitions``  [S, V] delta                        ``start``     the state before the first token
    ``terminal``     [V] bool                            ``step``      [T, V] f, nats
    ``final``        [S, V] g, nats
    """

    log_first: Tensor
    kernels: list[LogMatrix]
    transitions: Tensor
    start: int
    terminal: Tensor
    step: Tensor
    final: Tensor

    @property
    def length(self) -> int:
        return len(self.step)

    @cached_property
    def to_go(self) -> list[Tensor]:
        """C_1 .. C_T (at index t; index 0 is not used), each [S, V]."""
        found = [self.final] * (self.length + 1)
        for t in range(self.length - 1, 0, -1):
            running = self.kernels[t - 1].right(self._ahead(found[t + 1], t))
            found[t] = torch.where(self.terminal, self.final, running)
        return found

    def ahead(self, t: int) -> Tensor:
        """f_t[v] + C_{t+1}[delta[s, v], v], what token v at position t is worth in state s: [S, V] nats."""
        return self._ahead(self.to_go[t + 1], t)

    def _ahead(self, to_go: Tensor, t: int) -> Tensor:
        return self.step[t] + to_go.gather(0, self.transitions)

    @cached_property
    def log_evidence(self) -> float:
        """log E[w] = log sum_v exp(L_0[v] + ahead_0[start, v])."""
        return float((self.log_first + self.ahead(0)[self.start]).logsumexp(-1))

    def untilted(self) -> TiltedChain:
        """The same chain without potentials: the prior."""
        step, final = torch.zeros_like(self.step), torch.zeros_like(self.final)
        return TiltedChain(self.log_first, self.kernels, self.transitions, self.start, self.terminal, step, final)

    @cached_property
    def marginals(self) -> Marginals:
        """Under the tilted chain, forward over (state, previous token): the mass that is at (s, u) moves to v with
        probability exp(L_t[u, v] + ahead_t[s, v] - C_t[s, u])."""
        mass = torch.zeros_like(self.final)
        mass[self.start] = (self.log_first + self.ahead(0)[self.start] - self.log_evidence).exp()
        tokens, ended = [], torch.zeros_like(self.final)
        for t in range(self.length):
            if t > 0:
                relative = torch.where(mass > 0, mass.log() - self.to_go[t], NEVER)
                mass = (self.kernels[t - 1].left(relative) + self.ahead(t)).exp()
            tokens.append(mass.sum(0))
            moved = torch.zeros_like(mass).scatter_add_(0, self.transitions, mass)
            ends = self.terminal if t + 1 < self.length else torch.ones_like(self.terminal)
            ended += torch.where(ends, moved, 0.0)
            mass = torch.where(ends, 0.0, moved)
        return Marginals(torch.stack(tokens), ended.sum(0), ended.sum(1))
