"""Rewards that tests share, of token ids and of texts."""

from __future__ import annotations

import random

import torch
from torch import Tensor

from ppl_align.core.text import Texts
from ppl_align.lm.completions import Completion
from toys.lms import of_characters

LM = of_characters("abcdefg", end="$")
TEXTS = Texts(["a", "bb", "a", "ccc"])


def make_completion(rows=((0, 1, 7), (2, 7, 7), (0, 1, 7), (0, 1, 2)), prompts=((3,), (4,), (3,), (3,))) -> Completion:
    """Four texts of ``LM``, two of them the same after the same prompt."""
    return Completion(torch.tensor(rows), LM.completion([list(p) for p in prompts], 3))


def ones(tokens: Tensor) -> Tensor:
    """How often token 1 occurs, defined on prefixes too."""
    return (tokens == 1).sum(-1).double()


def likes(tokens: Tensor) -> Tensor:
    """The same, less a half where token 2 comes first: the order counts as well."""
    return (tokens == 1).double().sum(-1) - 0.5 * (tokens[..., 0] == 2).double()


def lengths(texts: list[str]) -> list[float]:
    return [float(len(text)) for text in texts]


def noisy(texts: list[str]) -> list[float]:
    """Another answer each time."""
    return [random.random() for _ in texts]
