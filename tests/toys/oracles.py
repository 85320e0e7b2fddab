"""Answers found without the library's own machinery."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable

import torch
from torch import Tensor


def all_sequences(vocab: int, length: int) -> Tensor:
    """Whatever can be written: [vocab ** length, length]."""
    return torch.tensor(list(itertools.product(range(vocab), repeat=length))).reshape(vocab**length, length).long()


def canonical_sequences(vocab: int, length: int, terminal: tuple[int, ...], pad: int) -> Tensor:
    """Every padded sequence, by brute force: [S, T]."""
    found: dict[tuple[int, ...], None] = {}
    for word in itertools.product(range(vocab), repeat=length):
        end = next((t for t, v in enumerate(word) if v in terminal), length - 1)
        found[(*word[: end + 1], *(pad,) * (length - end - 1))] = None
    return torch.tensor(list(found))


def matches(pattern: str) -> Callable[[str], bool]:
    """What Python's ``re`` says of a whole text."""
    return lambda text: re.fullmatch(pattern, text) is not None
