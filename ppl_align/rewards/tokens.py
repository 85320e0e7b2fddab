"""Rewards that read token ids: tensors in, tensors out, the same on prefixes and on whole completions.

They are written ``reward("r", TokenSum(values), x.tokens, beta=...)`` and work in any program with any engine. Being
a sum over tokens, or a fact about the last one, they are also what dynamic programming answers exactly
(:class:`ppl_align.testing.chain.ChainOracle`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppl_align.core.errors import InputError
from ppl_align.lm.completions import sequence_lengths
from ppl_align.tokens.ids import as_ids, checked_tokens, freeze


@dataclass(frozen=True, eq=False, repr=False)
class TokenSum:
    """r = sum of ``values`` over the tokens of a sequence, its first terminal token included; padding has no value.

    ``values``    [V], or [T, V] with a row for each generated position; reward units; ``-inf`` rejects
    ``terminal``  the ids that end a sequence: EOS and the stop tokens of the completion

    Compared and hashed by identity. Raises ``InputError`` for values that are NaN or +inf.

    >>> r = TokenSum(torch.tensor([0.0, 1.0, 0.5]), terminal=(2,))
    >>> r, r(torch.tensor([[1, 1, 2, 2], [0, 2, 2, 2]])).tolist()
    (TokenSum([V=3], terminal=(2,)), [2.5, 0.5])
    """

    values: Tensor
    terminal: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        freeze(self, values=_finite_above(self, self.values, (1, 2)), terminal=as_ids(self.terminal))

    def __call__(self, tokens: Tensor) -> Tensor:
        """``[..., t] -> [...]`` float64, reward units."""
        tokens = checked_tokens(self, tokens, self.values.shape[-1])
        position = torch.arange(tokens.shape[-1])
        inside = position < sequence_lengths(tokens, self.terminal)[..., None]
        return torch.where(inside, self.table(tokens.shape[-1])[position, tokens], 0.0).sum(-1)

    def table(self, width: int) -> Tensor:
        """What each token is worth at each of the first ``width`` positions, ``[width, V]``."""
        if self.values.dim() == 1:
            return self.values.expand(width, -1)
        if width > len(self.values):
            raise InputError(f"TokenSum has values for {len(self.values)} positions, the completion has {width}")
        return self.values[:width]

    def __repr__(self) -> str:
        return _describe(self)


@dataclass(frozen=True, eq=False, repr=False)
class LastToken:
    """r = ``values`` of the last token that belongs to a sequence, its terminal token if it has one; 0 without tokens.

    ``values``    [V], reward units; ``-inf`` rejects
    ``terminal``  the ids that end a sequence: EOS and the stop tokens of the completion

    Compared and hashed by identity. Raises ``InputError`` for values that are NaN or +inf.

    >>> LastToken(torch.tensor([0.0, 1.0, 0.5]), terminal=(2,))(torch.tensor([[0, 1], [2, 2]])).tolist()
    [1.0, 0.5]
    """

    values: Tensor
    terminal: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        freeze(self, values=_finite_above(self, self.values, (1,)), terminal=as_ids(self.terminal))

    def __call__(self, tokens: Tensor) -> Tensor:
        """``[..., t] -> [...]`` float64, reward units."""
        tokens = checked_tokens(self, tokens, len(self.values))
        if tokens.shape[-1] == 0:
            return torch.zeros(tokens.shape[:-1], dtype=torch.float64)
        last = sequence_lengths(tokens, self.terminal)[..., None] - 1
        return self.values[tokens.gather(-1, last)[..., 0]]

    def __repr__(self) -> str:
        return _describe(self)


def _finite_above(fn: Any, values: Any, dims: tuple[int, ...]) -> Tensor:
    """A private float64 copy on the CPU: a likelihood must not change under the engine that works with it."""
    values = torch.as_tensor(values, dtype=torch.float64).detach().cpu().clone()
    name, shapes = type(fn).__name__, " or ".join({1: "[V]", 2: "[T, V]"}[d] for d in dims)
    if values.dim() not in dims or values.numel() == 0:
        raise InputError(f"{name} needs values of shape {shapes}, got {list(values.shape)}")
    if bool((values.isnan() | (values == math.inf)).any()):
        raise InputError(f"{name}: a value is a number or -inf (rejected), not NaN or +inf")
    return values


def _describe(fn: Any) -> str:
    shape = ", ".join(f"{k}={n}" for k, n in zip("TV"[-fn.values.dim() :], fn.values.shape, strict=True))
    return f"{type(fn).__name__}([{shape}], terminal={fn.terminal})"
