"""The largest and the smallest value of the log-factor of an observed site: what rejection sampling needs to know."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ppl_align.program.notes import KEY, notes_of


def log_upper_of(msg: Any, shape: torch.Size, nesting: int) -> float | Tensor | None:
    """The supremum of a log-factor of ``shape`` (particles, then ``nesting`` plates), one site of a program.

    A probability is at most 1, a density may be anything; of a reward its bounds say. Where they hold for one element
    each (a weight that is drawn), the result broadcasts with the shape, and whoever asks sums over the plates."""
    noted = KEY in msg["infer"]
    each = notes_of(msg).log_upper if noted else 0.0 if is_discrete(msg["fn"]) else None
    if each is None:
        return None
    scale = msg["scale"]
    if isinstance(each, Tensor):
        largest = each if msg["mask"] is None else each.clamp_min(0.0)  # what is masked is 0
        return (largest * scale).expand(torch.broadcast_shapes(largest.shape, shape))
    if each == 0:
        return 0.0
    if isinstance(scale, Tensor) and scale.dim():
        return None  # it may differ from draw to draw
    count = math.prod(shape[-nesting:]) if nesting else 1
    return (each if msg["mask"] is None else max(each, 0.0)) * float(scale) * count


def is_discrete(fn: Any) -> bool:
    """Has a distribution a discrete support, as far as it says?"""
    try:
        return bool(fn.support.is_discrete)
    except (AttributeError, NotImplementedError):
        return False


def log_lower_of(msg: Any, count: int) -> float | None:
    """The infimum of a reward's log-factor, a sum of ``count`` terms, rejections aside; None where it is not known."""
    each, scale = notes_of(msg).log_lower, msg["scale"]
    if each is None or (isinstance(scale, Tensor) and scale.dim()):
        return None
    return min(each, 0.0) * float(scale) * count
