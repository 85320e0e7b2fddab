"""What one unit of a reward is worth, weight / beta: a number, or a tensor with a value for each particle.

A weight that is drawn (``strictness = pyro.sample("strictness", dist.Gamma(2., 1.))``) makes the likelihood of a text
exp(strictness * r / beta), and how strict the judge is becomes one more thing to infer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro.ops.provenance import detach_provenance
from torch import Tensor

from ppl_align.core.errors import InputError
from ppl_align.core.pyro_stack import plates

Scale = float | Tensor
"""Nats per unit of reward; a tensor broadcasts with the batch of rewards."""


def scale_of(name: str, weight: Any, beta: Any) -> Scale:
    """``weight / beta`` of the reward ``name``; of tensors float64 on the CPU, with their gradient.

    A tensor without dimensions is one value for all, like a number. Raises ``InputError`` for what is no number, not
    finite, a beta that is not positive, or shapes that do not fit each other."""
    who = f"reward {name!r}"
    weight, beta = numbers(f"{who}: weight", weight), positive(f"{who}: beta", beta)
    try:
        return weight / beta
    except RuntimeError:
        shapes = f"weight has shape {list(weight.shape)}, beta {list(beta.shape)}"
        raise InputError(f"{who}: {shapes}: {HOW}") from None


def check_fit(what: str, scale: Scale, batch: torch.Size) -> None:
    """Raises ``InputError`` for a tensor with a dimension that is neither the texts' nor that of a plate.

    ``what``: the site and what the tensor is to it, ``"reward 'r': weight / beta"``."""
    if isinstance(scale, Tensor) and not _fits(scale.shape, batch):
        raise InputError(f"{what} has shape {list(scale.shape)}, what it weighs has {list(batch)}: {HOW}")


HOW = "give one value for all or one for each particle, and inside of a plate one for each of its elements as well"


def fixed(scale: Scale) -> Scale:
    """The scale as a note on the site, without its history: a float where it is the same for all."""
    if not isinstance(scale, Tensor):
        return scale
    plain = detach_provenance(scale.detach())
    return plain if plain.dim() else float(plain)


def numbers(
    what: str, value: Any, wanted: str = "be finite", legal: Callable[[Tensor], Tensor] = torch.isfinite
) -> Scale:
    """A number as a float, a tensor of numbers as float64 on the CPU, with its gradient.

    ``what``: the site and the argument, ``"reward 'r': weight"``; ``legal`` says which of them are, ``wanted`` says it
    in words. Raises ``InputError`` for others, and for what is no number."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if not bool(legal(torch.tensor(float(value), dtype=torch.float64))):
            raise InputError(f"{what} must {wanted}, got {value!r}")
        return float(value)
    if not isinstance(value, Tensor) or value.is_complex() or value.dtype == torch.bool:
        got = f"a tensor of {value.dtype}" if isinstance(value, Tensor) else repr(value)
        raise InputError(f"{what} must {wanted}, got {got}: it is a number, or a tensor of numbers")
    value = value.to("cpu", torch.float64)
    wrong = ~legal(value)
    if bool(wrong.any()):
        example = float(value[wrong].reshape(-1)[0])
        raise InputError(f"{what} must {wanted}, and is {example:g} for {int(wrong.sum())} of {value.numel()}")
    return value


def positive(what: str, value: Any) -> Scale:
    """:func:`numbers` above zero."""
    return numbers(what, value, "be positive and finite", lambda given: given.isfinite() & (given > 0))


def _fits(shape: torch.Size, batch: torch.Size) -> bool:
    """Is every dimension that of the batch, or of a plate around it? (A sequential plate has no dimension.)"""
    room = list(batch)
    for handler in plates():
        if handler.dim is not None:
            room = [1] * (-handler.dim - len(room)) + room
            if room[handler.dim] == 1:
                room[handler.dim] = int(getattr(handler, "subsample_size", None) or handler.size)
    try:
        return torch.broadcast_shapes(shape, tuple(room)) == torch.Size(room)
    except RuntimeError:
        return False
