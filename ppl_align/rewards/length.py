"""How long a text is, or how near to a wanted length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ppl_align.core.errors import InputError
from ppl_align.rewards.convention import plain_text

_UNITS = ("tokens", "words", "characters")


@dataclass(frozen=True)
class LengthReward:
    """r = -(how far the length is from ``target``), in units; without a target, r = the length itself.

    ``target``  a number, or ``(least, most)``: every length between them has r = 0
    ``unit``    ``"words"`` (separated by white space), ``"characters"``, or ``"tokens"``: those of the completion,
                the end-of-text token included, as TRL counts ``completion_ids``

    One unit costs ``1 / beta`` nats. Raises ``InputError`` for an unknown unit, a target that no text can have, and
    tokens of something that is only a text.

    >>> LengthReward(3)(["a b c", "a"]), LengthReward((2, 4), "characters")(["abcdefg"]), LengthReward()(["a b"])
    ([0.0, -2.0], [-3.0], [2.0])
    """

    target: int | tuple[int, int] | None = None
    unit: str = "words"

    __name__ = "length"
    _NEEDS: ClassVar[str] = "LengthReward(unit='tokens') reads tokens: give it the completion itself, not only its text"

    def __post_init__(self) -> None:
        if self.unit not in _UNITS:
            raise InputError(f"LengthReward(unit=...) is one of {', '.join(_UNITS)}, got {self.unit!r}")
        if self.target is None:
            return
        both = tuple(self.target) if isinstance(self.target, (tuple, list)) else (self.target, self.target)
        whole = len(both) == 2 and all(isinstance(n, int) and not isinstance(n, bool) for n in both)
        if not whole or not 0 <= both[0] <= both[1]:
            raise InputError(f"LengthReward(target=...) is a number or (least, most), got {self.target!r}")
        object.__setattr__(self, "target", both)

    @property
    def upper(self) -> float | None:
        return None if self.target is None else 0.0

    @property
    def lower(self) -> float | None:
        return 0.0 if self.target is None else None

    def __call__(
        self, completions: Sequence[Any], completion_ids: Sequence[Sequence[int]] | None = None, **_: Any
    ) -> list[float]:
        if self.unit == "tokens":
            if completion_ids is None:
                raise InputError(self._NEEDS)
            return [self._of(len(ids)) for ids in completion_ids]
        texts = [plain_text(completion) for completion in completions]
        return [self._of(len(text.split()) if self.unit == "words" else len(text)) for text in texts]

    def _of(self, length: int) -> float:
        if not isinstance(self.target, tuple):
            return float(length)
        least, most = self.target
        return float(-max(least - length, length - most, 0))
