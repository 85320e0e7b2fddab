"""Token ids as they are given: checked, and frozen into a value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ppl_align.core.errors import InputError


def checked_tokens(fn: Any, tokens: Tensor, vocab_size: int) -> Tensor:
    """The ids on the CPU; one line for somebody who gave the completion or its text, or another vocabulary."""
    name = type(fn).__name__
    if not isinstance(tokens, Tensor) or tokens.is_floating_point():
        raise InputError(f"{name} reads token ids, not texts: write reward(name, fn, x.tokens) instead of x")
    tokens = tokens.long().cpu()
    outside = tokens[(tokens < 0) | (tokens >= vocab_size)]
    if len(outside):
        raise InputError(f"{name} knows the tokens 0 to {vocab_size - 1}, got {int(outside[0])}")
    return tokens


def as_ids(terminal: int | Sequence[int]) -> tuple[int, ...]:
    """One id or several, sorted and without repeats; what a completion ends at keeps its stop strings."""
    from ppl_align.lm.stopping import StopIds

    text = getattr(terminal, "text", None)
    ids = tuple(sorted({int(i) for i in ([terminal] if isinstance(terminal, int) else terminal)}))
    return ids if text is None else StopIds(ids, text)


def freeze(fn: Any, **fields: Any) -> None:
    """Set the checked fields of a frozen dataclass."""
    for name, value in fields.items():
        object.__setattr__(fn, name, value)
