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


# -- with a survivor --------------------------------------------------------------------------------------------
#
# Conditional SMC keeps the particle in slot 0 alive. The law it needs is that of the plain scheme, given that slot 0
# went to particle 0: in proportion to the number of copies that particle 0 would have got. Keeping slot 0 by force
# after a plain draw is *not* that law (with systematic resampling it biases 1/Zhat by several per cent).
# (Andrieu, Doucet & Holenstein 2010; Chopin & Singh 2015, arXiv:1304.1887, for systematic resampling.)


def conditional_multinomial(weights: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """The other N - 1 slots are drawn as ever: they are independent of slot 0."""
    ancestors = multinomial(weights, generator)
    ancestors[:, 0] = 0
    return ancestors


def conditional_stratified(weights: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """One slice, chosen by its overlap with [0, W_0), has its point there; the other slices are as ever."""
    size, first = weights.shape[-1], _first_share(weights)
    point = _uniform(weights, generator) * first
    chosen = (point * size).floor().long()
    u = torch.rand(weights.shape, generator=generator, dtype=torch.float64)
    comb = (torch.arange(size) + u) / size
    return _survivor_first(_invert(weights, comb.scatter(-1, chosen, point)))


def conditional_systematic(weights: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """A point uniform on [0, W_0) fixes the comb: its phase then has the density of the number of teeth there."""
    size, first = weights.shape[-1], _first_share(weights)
    phase = (_uniform(weights, generator) * first * size).frac()
    return _survivor_first(_invert(weights, (torch.arange(size) + phase) / size))


def conditional_residual(weights: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """The survivor is one of the certain copies, or (in proportion) the first of the drawn ones."""
    size = weights.shape[-1]
    expected = size * weights.double() / weights.double().sum(-1, keepdim=True)
    certain = expected.floor()
    ancestors = residual(weights, generator)
    among_drawn = _uniform(weights, generator) * expected[:, :1] >= certain[:, :1]
    rows = torch.nonzero(among_drawn[:, 0])[:, 0]
    ancestors[rows, certain.sum(-1).long()[rows]] = 0  # the first slot that no certain copy takes
    return _survivor_first(ancestors)


def _first_share(weights: Tensor) -> Tensor:
    """W_0, [R, 1]."""
    return weights[:, :1].double() / weights.double().sum(-1, keepdim=True)


def _uniform(weights: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.rand(weights.shape[0], 1, generator=generator, dtype=torch.float64)


def _survivor_first(ancestors: Tensor) -> Tensor:
    """Swap a slot that went to particle 0 with slot 0; slots are exchangeable."""
    where = (ancestors == 0).long().argmax(-1, keepdim=True)
    swapped = ancestors.scatter(-1, where, ancestors[:, :1])
    swapped[:, 0] = 0
    return swapped


CONDITIONAL: dict[str, Resampler] = {
    "systematic": conditional_systematic,
    "stratified": conditional_stratified,
    "residual": conditional_residual,
    "multinomial": conditional_multinomial,
}
