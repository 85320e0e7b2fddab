"""A number that is the same for all particles, or a tensor [P] with one for each: what a weight is worth, a bound."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

PerParticle = float | Tensor


def for_each(value: PerParticle | None, size: int) -> Tensor:
    """One value for each of ``size`` particles, [P] float64; None, not known, is +inf."""
    if isinstance(value, Tensor) and value.dim():
        return value.double()
    return torch.full((size,), torch.inf if value is None else float(value), dtype=torch.float64)


def differing(group: Mapping[str, PerParticle]) -> tuple[str, ...]:
    """The names whose values may differ from particle to particle."""
    return tuple(name for name, value in group.items() if isinstance(value, Tensor))


def said(value: PerParticle, digits: int = 3) -> str:
    """A number, or the range of several.

    >>> said(0.5), said(torch.tensor([2.0, 0.25, 1.0])), said(torch.tensor([2.0, 2.0]))
    ('0.5', '0.25 to 2', '2')
    """
    values = torch.as_tensor(value)
    low, high = f"{float(values.min()):.{digits}g}", f"{float(values.max()):.{digits}g}"
    return low if low == high else f"{low} to {high}"
