"""Chopthin: resampling that leaves weights unequal, within a factor of each other (Gandy & Lau, arXiv:1502.07532).

With a threshold a, particle i of weight w gets h copies on average,

    h(w) = w / a                        below a: thinned; one that stays weighs a
           max(1, 2 w / (eta a))        from a on: chopped into n pieces of w / n each, n = h rounded up or down

and a such that sum_i h(w_i) = N. The copies of i weigh w_i on average, whatever n: E[Zhat] stays what it was. The
largest weight is at most eta times the smallest; with eta = 3 + sqrt(8) the ESS is at least N / 2. Equal weights throw
away what the weights knew; these throw away less.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ppl_align.particles.schemes import comb, invert

ETA = 3 + math.sqrt(8)
_BISECTIONS = 100


class Chopthin:
    """``retained``: the first particle of each row goes on, in its place (conditional SMC).

    A thinned particle that is known to stay has the comb shifted to where it does; of one that is chopped the number of
    pieces is what it would have been: n copies of weight w / n are met n times as often, and weigh 1 / n."""

    def __init__(self, retained: bool = False) -> None:
        self.retained = retained

    def __call__(self, weights: Tensor, generator: torch.Generator | None = None, size: int | None = None) -> Tensor:
        """Ancestors [R, N] of the particles of ``weights [R, N]``, normalised; see :meth:`kept`."""
        copies = expected_copies(weights)
        size = weights.shape[-1]
        u = torch.rand(len(weights), 1, generator=generator, dtype=torch.float64)
        phase = u * copies[:, :1].clamp_max(1.0) if self.retained else u
        ancestors = invert(copies, comb(size, phase))
        if not self.retained:
            return ancestors
        pieces = (ancestors == 0).sum(-1, keepdim=True)  # they come first
        turn = (torch.rand(len(weights), 1, generator=generator, dtype=torch.float64) * pieces).floor().long()
        return ancestors.gather(-1, (torch.arange(size) + turn) % size)

    def kept(self, weights: Tensor, ancestors: Tensor) -> Tensor:
        """log of what the copies weigh, [R, N] nats, where the particles weighed 1 on average."""
        size = weights.shape[-1]
        share = weights.double() / weights.double().sum(-1, keepdim=True)
        threshold = _threshold(share)
        number = torch.zeros_like(share).scatter_add_(-1, ancestors, torch.ones_like(share)).gather(-1, ancestors)
        own = share.gather(-1, ancestors)
        return (size * torch.where(own < threshold, threshold, own / number)).log()


def expected_copies(weights: Tensor) -> Tensor:
    """h, [R, N], of weights [R, N]; sums to N."""
    share = weights.double() / weights.double().sum(-1, keepdim=True)
    return _copies(share, _threshold(share))


def _copies(share: Tensor, threshold: Tensor) -> Tensor:
    ratio = share / threshold
    return torch.where(ratio < 1, ratio, (2 / ETA * ratio).clamp_min(1.0))


def _threshold(share: Tensor) -> Tensor:
    """a, [R, 1]: where sum h = N, which falls as a rises."""
    size = share.shape[-1]
    high = share.amax(-1, keepdim=True)  # then all but the largest are thinned: sum h <= N
    low = torch.full_like(high, 1 / (ETA * size**2))  # 2 w / (eta a) sums to 2 N^2 > N
    for _ in range(_BISECTIONS):
        middle = (low * high).sqrt()
        many = _copies(share, middle).sum(-1, keepdim=True) > size
        low, high = torch.where(many, middle, low), torch.where(many, high, middle)
    return high


__all__ = ["ETA", "Chopthin", "expected_copies"]
