"""What a reward returned, checked and turned into numbers; every complaint names the reward and shows the text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from numbers import Number
from typing import Any

import numpy as np
from torch import Tensor

from ppl_align.core.errors import RewardError

_EACH = "If it is a function of one text, wrap it: ppl_align.rewards.each(fn)"


def shorten(value: Any, width: int = 80) -> str:
    """``repr``, cut in the middle of what is too long to read.

    >>> shorten("a" * 200, 20)
    "'aaaaaaaa ... aaaaa'"
    """
    shown = repr(value)
    if len(shown) <= width:
        return shown
    kept = width - 5
    return f"{shown[: kept - kept // 2 + 1]} ... {shown[-(kept // 2 - 1) :]}"


def read_answers(name: str, result: Any, texts: Sequence[str]) -> list[float]:
    """One float per text, NaN where the reward said ``None``; raises ``RewardError`` for anything else."""
    if isinstance(result, Tensor):
        result = result.detach().cpu()
    if isinstance(result, (Tensor, np.ndarray)) and result.ndim == 1:
        result = result.tolist()
    if not _is_sequence(result):
        raise RewardError(
            f"reward {name!r} must return one number per text, but returned {_describe(result)} for "
            f"{len(texts)} text(s), the first of them {shorten(texts[0])}. {_EACH}"
        )
    answers = list(result)
    if len(answers) != len(texts):
        raise RewardError(
            f"reward {name!r} must return one number per text, but returned {len(answers)} for {len(texts)} text(s), "
            f"the first of them {shorten(texts[0])}. {_EACH}"
        )
    return [_number(name, answer, text) for answer, text in zip(answers, texts, strict=True)]


def _is_sequence(result: Any) -> bool:
    if isinstance(result, (str, bytes, Mapping, Set, Tensor, np.ndarray)):
        return False
    return hasattr(result, "__len__") and hasattr(result, "__iter__")


def _describe(result: Any) -> str:
    if isinstance(result, (Tensor, np.ndarray)):
        return f"a {type(result).__name__} of shape {list(result.shape)}"
    if isinstance(result, Number):
        return f"the single number {result!r}"
    return "None" if result is None else f"a {type(result).__name__}"


def _number(name: str, answer: Any, text: str) -> float:
    if answer is None:
        return math.nan
    try:
        if isinstance(answer, (str, bytes)):
            raise TypeError
        number = float(answer.detach() if isinstance(answer, Tensor) else answer)
    except (TypeError, ValueError, RuntimeError):
        raise RewardError(
            f"reward {name!r} returned {shorten(answer)}, which is no number, for the text {shorten(text)}"
        ) from None
    check_number(name, number, f"the text {shorten(text)}" if not number < math.inf else "")
    return number


def check_number(name: str, number: float, where: str) -> None:
    """Refuse NaN and +inf; -inf is a hard rejection and fine."""
    if math.isnan(number):
        raise RewardError(f"reward {name!r} is NaN for {where}; return None where a reward does not apply")
    if number == math.inf:
        raise RewardError(f"reward {name!r} is +inf for {where}: exp(+inf) is no likelihood")
