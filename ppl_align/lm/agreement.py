"""Do two ways of reading a network say the same? How far they may be apart, and what is no answer at all."""

from __future__ import annotations

import torch
from torch import Tensor

TOLERANCE = 1e-4  # nats a token: float32 rounds to 1e-5
LIKELY = 64  # tokens a row: far down the vocabulary rounding is larger, and nobody draws there
RAISED = (
    TypeError,
    ValueError,
    RuntimeError,
    AttributeError,
    IndexError,
    KeyError,
    NotImplementedError,
    AssertionError,
)
"""By networks that are called as they cannot be."""


def difference(found: Tensor, expected: Tensor) -> float:
    """Nats; of the tokens that are likely to be drawn, ``[rows, V]`` each. NaN, which is no agreement, where one is
    NaN."""
    likely = expected.topk(min(LIKELY, expected.shape[-1]), -1).indices
    found, expected = found.gather(-1, likely), expected.gather(-1, likely)
    return float(torch.where(found == expected, 0.0, (found - expected).abs()).max())  # -inf is -inf


def rounding(logits: Tensor) -> float:
    """By how much logits are off that were rounded to their precision once more."""
    return float(logits.float().abs().amax()) * torch.finfo(logits.dtype).eps
