"""What is known of a reward before it is asked: its largest and its smallest value.

Rejection sampling accepts a draw with probability exp(log-factor - its supremum), so it needs the supremum; no other
engine does. A bound that turns out to be wrong is an error and not a warning: what was accepted until then follows
another distribution than the one that was asked for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from ppl_align.core.errors import InputError, RewardError
from ppl_align.core.text import Texts
from ppl_align.lm.completions import Completion
from ppl_align.rewards.answers import shorten

ROUNDING = 1e-6  # relative to the bound (at least 1): what float32 arithmetic may be off by


@dataclass(frozen=True)
class Bounds:
    """lower <= r <= upper in reward units; infinite where nothing is known. A rejection (-inf) may lie below."""

    lower: float = -math.inf
    upper: float = math.inf

    def log_upper(self, scale: float | Tensor) -> float | Tensor | None:
        """sup of ``scale * r`` in nats (``scale`` = weight / beta); None where the bound it takes is not known.

        Of a tensor: one value for each of its elements, +inf where the bound is not known."""
        if isinstance(scale, Tensor):
            reached = torch.where(scale > 0, scale.new_tensor(self.upper), scale.new_tensor(self.lower))
            return torch.where(scale == 0, 0.0, torch.where(reached.isinf(), torch.inf, scale * reached))
        if scale == 0:
            return 0.0
        bound = self.upper if scale > 0 else self.lower
        return scale * bound if math.isfinite(bound) else None

    def log_lower(self, scale: float) -> float | None:
        """inf of ``scale * r`` in nats, rejections aside, and 0 where r does not apply; None where it is not known."""
        least = self.lower if scale > 0 else self.upper
        return min(scale * least, 0.0) if scale != 0 and math.isfinite(least) else 0.0 if scale == 0 else None

    def check(self, name: str, r: Tensor, scale: float | Tensor, completion: Any) -> None:
        """Raise ``RewardError`` for a value outside. ``None`` (NaN here) counts as a log-factor of 0."""
        if math.isinf(self.upper) and math.isinf(self.lower):
            return
        high, low = self.upper + _slack(self.upper), self.lower - _slack(self.lower)
        if bool(((r <= high) & (r >= low)).all()):
            return
        count = r.numel()
        which, r, each = torch.broadcast_tensors(torch.arange(count).reshape(r.shape), r, torch.as_tensor(scale))
        outside = (r > high) | ((r < low) & ~(r.isneginf() & (each >= 0)))
        if bool(outside.any()):
            at, found = int(which[outside][0]), float(r[outside][0])
            known = ", ".join(f"{k}={v:g}" for k, v in vars(self).items() if math.isfinite(v))
            raise RewardError(
                f"reward {name!r} is {found:.6g} for {_element(completion, at, count)}, outside of what "
                f"is known of it ({known}): correct the bound, reward(..., upper=, lower=)"
            )
        log_upper = self.log_upper(scale)
        below = r.isnan() & (torch.as_tensor(math.inf if log_upper is None else log_upper) < 0)
        if bool(below.any()):
            side, sign = ("upper", "at least") if bool(each[below][0] > 0) else ("lower", "at most")
            where = _element(completion, int(which[below][0]), count)
            raise RewardError(
                f"reward {name!r} is None, a factor of 1, for {where}, but by its bound no factor reaches 1: a reward "
                f"that may be None needs {side}= of {sign} 0"
            )


def bounds_of(name: str, fn: Any, upper: float | None, lower: float | None) -> Bounds:
    """The bounds given with a reward, else those its function carries as attributes ``upper`` and ``lower``.

    Raises ``InputError`` for something that is no number, or a lower bound above the upper one."""
    high = _number(name, "upper", upper, getattr(fn, "upper", None), math.inf)
    low = _number(name, "lower", lower, getattr(fn, "lower", None), -math.inf)
    if low > high or low == math.inf or high == -math.inf:
        raise InputError(f"reward {name!r}: lower={low:g} and upper={high:g} leave no value for it")
    return Bounds(low, high)


def _slack(bound: float) -> float:
    return ROUNDING * max(1.0, abs(bound))


def _number(name: str, side: str, given: Any, attribute: Any, unknown: float) -> float:
    if given is None:
        given = None if callable(attribute) else attribute  # an object may have a method of that name
    if given is None:
        return unknown
    if isinstance(given, bool) or not isinstance(given, Real) or math.isnan(given):
        raise InputError(f"reward {name!r}: {side} must be a number in reward units, got {given!r}")
    return float(given)


def _element(completion: Any, at: int, count: int) -> str:
    """Element number ``at`` of a batch of ``count`` completions."""
    if isinstance(completion, Tensor):
        return f"the value {shorten(completion.detach().cpu().reshape(count, -1)[at].tolist())}"
    if isinstance(completion, Completion):
        return f"the text {shorten(completion.texts()[at])}"
    return f"the text {shorten(completion.flat[at] if isinstance(completion, Texts) else completion)}"
