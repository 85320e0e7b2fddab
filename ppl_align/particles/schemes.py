"""Resampling schemes. All have one signature and one property: E[number of copies of i] = N * W_i.

``scheme(W [R, N] normalised, generator, size=N) -> ancestors [R, size]``, each row on its own. See Douc, Cappé &
Moulines 2005 (arXiv:cs/0507025) for their variances: systematic <= stratified <= multinomial in practice, residual in
between.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

_TIE = 1e-9  # N * W that is whole up to rounding is whole, whatever the order of the weights


class Resampler(Protocol):
    """A scheme."""

    def __call__(
        self, weights: Tensor, generator: torch.Generator | None = None, size: int | None = None
    ) -> Tensor: ...


Conditional = Callable[[Tensor, torch.Generator | None], Tensor]
"""A scheme in which the first particle of each row goes on in its place."""


def invert_cdf(cdf: Tensor, u: Tensor) -> Tensor:
    """Smallest v with ``cdf[row, v] > u * total``: ``cdf [rows, V]``, ``u [rows, k]`` in [0, 1) -> ids ``[rows, k]``.

    Indices of weight zero are never returned: the inequality is strict on both sides.

    >>> cdf = torch.tensor([[0.0, 0.5, 0.5, 1.0]])
    >>> invert_cdf(cdf, torch.tensor([[0.0, 0.4999, 0.5, 0.99999999]])).tolist()
    [[1, 1, 3, 3]]
    """
    total = cdf[:, -1:]
    below_total = torch.nextafter(total, torch.zeros_like(total))
    target = torch.minimum(u.to(cdf.dtype) * total, below_total)
    return torch.searchsorted(cdf, target.contiguous(), right=True)


def invert(weights: Tensor, u: Tensor) -> Tensor:
    """Ancestors at the points ``u [R, n]`` in [0, 1) of the cumulative weights [R, N]; indices of weight zero are never
    returned."""
    return invert_cdf(weights.double().cumsum(-1), u)


def comb(size: int, phase: Tensor | float) -> Tensor:
    """``size`` points in [0, 1), as regular as they can be; ``phase`` in [0, 1) shifts them all (or each: [size])."""
    return (torch.arange(size, dtype=torch.float64) + phase) / size


def _expected(weights: Tensor, size: int | None = None) -> Tensor:
    """N W, [R, N]."""
    return (size or weights.shape[-1]) * weights.double() / weights.double().sum(-1, keepdim=True)


def _points(weights: Tensor, generator: torch.Generator | None, size: int | None) -> Tensor:
    """Independent uniforms, [R, size]."""
    return torch.rand(len(weights), size or weights.shape[-1], generator=generator, dtype=torch.float64)


def multinomial(weights: Tensor, generator: torch.Generator | None = None, size: int | None = None) -> Tensor:
    """N independent draws: the simplest, the most variable, and the one conditional SMC needs."""
    return invert(weights, _points(weights, generator, size))


def stratified(weights: Tensor, generator: torch.Generator | None = None, size: int | None = None) -> Tensor:
    """One independent draw in each of N equal slices of the unit interval."""
    u = _points(weights, generator, size)
    return invert(weights, comb(u.shape[-1], u))


def systematic(weights: Tensor, generator: torch.Generator | None = None, size: int | None = None) -> Tensor:
    """One draw shifts a comb of N teeth: each count differs from N * W_i by less than one. The default."""
    return invert(weights, comb(size or weights.shape[-1], _uniform(weights, generator)))


def residual(weights: Tensor, generator: torch.Generator | None = None, size: int | None = None) -> Tensor:
    """floor(N * W_i) copies for certain, the rest multinomially from what is left over."""
    size = size or weights.shape[-1]
    expected = _expected(weights, size)
    certain = (expected + _TIE).floor()
    slots = torch.arange(size, dtype=torch.float64).expand(len(weights), -1)
    ends = certain.cumsum(-1)  # slots below ends[:, -1] are taken by certain copies, in order
    fixed = torch.searchsorted(ends, slots.contiguous(), right=True)
    left = (expected - certain).clamp_min(0)
    left = torch.where(left.sum(-1, keepdim=True) > 0, left, torch.ones(()))  # nothing left: nobody looks at it
    drawn = invert(left, _points(weights, generator, size))
    return torch.where(slots < ends[:, -1:], fixed, drawn)


# -- with a survivor --------------------------------------------------------------------------------------------
#
# Conditional SMC keeps the particle in slot 0 alive: slot 0 goes to particle 0, and the rest has the law that it would
# have had, given that. Three things make it so. The counts have the law of the plain scheme in proportion to the copies
# that particle 0 gets. Which of these copies sits in slot 0 is random. And the scheme must treat all slots alike:
# multinomial and residual draws do not look at the order of the particles; systematic ones look at it as at a circle,
# so slots are turned, never sorted; stratified ones do depend on it, so the order is drawn anew.
# Keeping slot 0 by force after a plain draw is *not* that law: it biases 1/Zhat by several per cent.
# (Andrieu, Doucet & Holenstein 2010; Chopin & Singh 2015, arXiv:1304.1887, for systematic resampling.)


def conditional_multinomial(weights: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """The other N - 1 slots are drawn as ever: they are independent of slot 0."""
    ancestors = multinomial(weights, generator)
    ancestors[:, 0] = 0
    return ancestors


def conditional_residual(weights: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """The survivor is one of the certain copies, or (in proportion) the first of the drawn ones."""
    expected = _expected(weights)
    certain = (expected + _TIE).floor()
    ancestors = residual(weights, generator)
    among_drawn = _uniform(weights, generator) * expected[:, :1] >= certain[:, :1]
    rows = torch.nonzero(among_drawn[:, 0])[:, 0]
    ancestors[rows, certain.sum(-1).long().clamp_max(weights.shape[-1] - 1)[rows]] = 0  # no certain copy is there
    return _survivor_first(ancestors)


def conditional_systematic(weights: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """A point uniform on [0, W_0) fixes the comb: its phase then has the density of the number of teeth there.

    The slots are turned until a random one of the survivor's copies is in front."""
    size = weights.shape[-1]
    point = _uniform(weights, generator) * _expected(weights)[:, :1]
    ancestors = invert(weights, comb(size, point.frac()))
    copies = (ancestors == 0).sum(-1, keepdim=True)  # they come first: the survivor is the first particle
    turn = (_uniform(weights, generator) * copies).floor().long()
    return _survivor_first(ancestors.gather(-1, (torch.arange(size) + turn) % size))


def conditional_stratified(weights: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """In a random order of the particles, one slice has its point in the survivor's interval; the others are as ever.

    Each slice is that one in proportion to its overlap with the interval."""
    size = weights.shape[-1]
    order = torch.rand(weights.shape, generator=generator, dtype=torch.float64).argsort(-1)
    shares = _expected(weights).gather(-1, order)
    here = order == 0
    start = (shares.cumsum(-1) - shares)[here][:, None]
    point = (start + _uniform(weights, generator) * shares[here][:, None]).clamp(max=size * (1 - 1e-12))
    slices = torch.arange(size) + torch.rand(weights.shape, generator=generator, dtype=torch.float64)
    slices = slices.scatter(-1, point.floor().long(), point)
    ancestors = order.gather(-1, invert(shares, slices / size))
    return _survivor_first(ancestors)


def _uniform(weights: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.rand(weights.shape[0], 1, generator=generator, dtype=torch.float64)


def _survivor_first(ancestors: Tensor) -> Tensor:
    """Swap a slot that went to particle 0 with slot 0."""
    where = (ancestors == 0).long().argmax(-1, keepdim=True)
    swapped = ancestors.scatter(-1, where, ancestors[:, :1])
    swapped[:, 0] = 0
    return swapped
