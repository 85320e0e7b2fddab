"""Importance weights w_1 .. w_N, and every number that is read off them: the one place with these formulas.

With W_i = w_i / sum_j w_j, per row of ``log_weight [..., N]``::

    log mean       log (1/N) sum_i w_i            of independent draws an unbiased estimate of Z, before the log
    ESS            1 / sum_i W_i^2                effective draws (Kish 1965; Kong 1992), between 1 and N
    perplexity     exp(-sum_i W_i log W_i)        draws that carry the weight; kinder to many small ones than ESS
    foretold ESS   n exp(-Var_h[log w]), h ~ sqrt(w)   what ESS would be of log-normal weights; see below
    k-hat          shape of the generalised Pareto tail (Vehtari et al., arXiv:1507.02646); above 1/2 the variance of
                   the weights is infinite, above 0.7 no practical number of draws helps

All of them see only what was visited: a mode that no particle found leaves no trace.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ppl_align.core import arviz_adapter

MIN_DRAWS_FOR_K = 25
MIN_TAIL_VALUES = 5
"""ArviZ fits no tail to fewer points; tied weights are one point however often they occur."""


@dataclass(frozen=True, eq=False)
class Weights:
    """``log_weight [..., N]``: unnormalised, nats, float64; -inf is a draw of weight zero.

    >>> weights = Weights(torch.tensor([[0.5, 0.25, 0.25], [1.0, 0.0, 0.0]]).log())
    >>> [round(float(n), 2) for n in weights.ess], round(float(weights.pooled.ess), 2)
    ([2.67, 1.0], 2.91)
    """

    log_weight: Tensor

    @cached_property
    def normalised(self) -> Tensor:
        """W, [..., N], sums to 1 over each row; all zero in a row that is dead."""
        return torch.softmax(self.log_weight, -1).nan_to_num(0.0)

    @cached_property
    def log_mean(self) -> Tensor:
        """log of the mean weight, [...] nats."""
        return log_mean_exp(self.log_weight)

    @cached_property
    def ess(self) -> Tensor:
        """Effective sample size, [...]; 0 where every draw has weight zero."""
        return effective_sample_size(self.normalised)

    @cached_property
    def perplexity(self) -> Tensor:
        """exp(entropy of W), [...]."""
        return torch.special.entr(self.normalised).sum(-1).exp()

    @cached_property
    def largest(self) -> Tensor:
        """The largest normalised weight, [...]."""
        return self.normalised.amax(-1)

    @cached_property
    def foretold_ess(self) -> Tensor:
        """ESS as the square roots of the weights foretell it, [...].

        n exp(-Var_h[log w]) over the n draws that are alive, with the variance under weights proportional to sqrt(w),
        is the ESS of log-normal weights. The usual one rests on the few largest weights: where the posterior is far,
        the runs that have missed it show a large one. Square roots of weights are averaged well long after weights are
        not. For weights of two values it is pessimistic, never by much where there is something to average."""
        alive = self.log_weight > -torch.inf
        log_weight = torch.where(alive, self.log_weight.double(), 0.0)
        half = torch.softmax(torch.where(alive, log_weight / 2, -torch.inf), -1).nan_to_num(0.0)
        centred = log_weight - (half * log_weight).sum(-1, keepdim=True)
        variance = (half * centred.square()).sum(-1)
        return alive.sum(-1) * (-variance).exp()

    @cached_property
    def pareto_k(self) -> Tensor:
        """k-hat, [...]; NaN where there is no tail to fit: constant, heavily tied, or fewer than 25 draws."""
        rows = self.log_weight.reshape(-1, self.log_weight.shape[-1])
        return torch.tensor([_pareto_k(row) for row in rows], dtype=torch.float64).reshape(self.log_weight.shape[:-1])

    @cached_property
    def pooled(self) -> Weights:
        """All rows as one, [N']. A row then counts in proportion to its mean weight, as an estimate of Z should."""
        return Weights(self.log_weight.reshape(-1))

    def only(self, counts: Tensor) -> Weights:
        """The others get weight zero; ``counts [..., N]``."""
        return Weights(torch.where(counts, self.log_weight, -torch.inf))

    def __iter__(self) -> Iterator[Weights]:
        """Row by row."""
        return (Weights(row) for row in self.log_weight)


def log_mean_exp(log_weight: Tensor) -> Tensor:
    """log of the mean of exp over the last dimension."""
    return torch.logsumexp(log_weight, -1) - math.log(log_weight.shape[-1])


def effective_sample_size(weights: Tensor) -> Tensor:
    """(sum w)^2 / sum w^2 over the last dimension, ``[..., N] -> [...]``; weights need not be normalised."""
    return kish(weights.sum(-1), weights.square().sum(-1))


def kish(total: Tensor, squares: Tensor) -> Tensor:
    """The same from sum w and sum w^2; 0 where there is no weight."""
    return torch.where(squares > 0, total.square() / squares.clamp_min(1e-300), torch.zeros_like(total))


def _pareto_k(log_weight: Tensor) -> float:
    """ArviZ would answer infinity (0.x) or raise (1.x) where no tail is to be fitted, and a perfect run would read as
    a bad one."""
    values = log_weight.double().numpy()
    alive = np.sort(values[np.isfinite(values)])
    n = len(alive)
    if n < MIN_DRAWS_FOR_K:
        return math.nan
    tail = alive[-int(np.ceil(min(0.2 * n, 3 * np.sqrt(n)))) - 1 :]
    # log-weights that should be equal may differ by rounding
    distinct = 1 + int((np.diff(tail) > 1e-9).sum())
    if distinct < max(MIN_TAIL_VALUES, len(tail) / 2):
        return math.nan
    # weights of zero are draws like any other: they stay, far below the tail
    k = float(arviz_adapter.psislw(np.maximum(values, alive[-1] - 700.0))[1])
    return k if np.isfinite(k) else math.nan
