"""Resampling schemes. All have one signature and one property: E[number of copies of i] = N * W_i.

``scheme(W [R, N] normalised, generator) -> ancestors [R, N]``, each row on its own. See Douc, Cappé & Moulines 2005
(arXiv:cs/0507025) for their variances: systematic <= stratified <= multinomial in practice, residual in between.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Resampler = Callable[[Tensor, torch.Generator | None], Tensor]


def _invert(weights: Tensor, u: Tensor) -> Tensor:
    """Ancestors at the points ``u`` of the cumulative weights; indices of weight zero are never returned."""
    cdf = weights.double().cumsum(-1)
    total = cdf[:, -1:]
    target = torch.minimum(u * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cdf, target.contiguous(), right=True)


def multinomial(weights: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """N independent draws: the simplest, the most variable, and the one conditional SMC needs."""
    return _invert(weights, torch.rand(weights.shape, generator=generator, dtype=torch.float64))


def stratified(weights: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """One independent draw in each of N equal slices of the unit interval."""
    size = weights.shape[-1]
    u = torch.rand(weights.shape, generator=generator, dtype=torch.float64)
    return _invert(weights, (torch.arange(size) + u) / size)


def systematic(weights: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """One draw shifts a comb of N teeth: each count differs from N * W_i by less than one. The default."""
    size = weights.shape[-1]
    u = torch.rand(weights.shape[0], 1, generator=generator, dtype=torch.float64)
    return _invert(weights, (torch.arange(size) + u) / size)


def residual(weights: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """floor(N * W_i) copies for certain, the rest multinomially from what is left over."""
    size = weights.shape[-1]
    expected = size * weights.double() / weights.double().sum(-1, keepdim=True)
    certain = expected.floor()
    slots = torch.arange(size, dtype=torch.float64).expand(weights.shape)
    ends = certain.cumsum(-1)  # slots below ends[:, -1] are taken by certain copies, in order
    fixed = torch.searchsorted(ends, slots.contiguous(), right=True)
    left = expected - certain
    left = torch.where(left.sum(-1, keepdim=True) > 0, left, torch.ones(()))  # nothing left: nobody looks at it
    drawn = _invert(left, torch.rand(weights.shape, generator=generator, dtype=torch.float64))
    return torch.where(slots < ends[:, -1:], fixed, drawn)


SCHEMES: dict[str, Resampler] = {
    "systematic": systematic,
    "stratified": stratified,
    "residual": residual,
    "multinomial": multinomial,
}
