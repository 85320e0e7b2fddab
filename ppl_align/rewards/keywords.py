"""Which of some words occur in a text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from ppl_align.core.errors import InputError
from ppl_align.rewards.convention import plain_text


@dataclass(frozen=True)
class Keywords:
    """r = 1 if any of ``words`` occurs (``"any"``), 1 if all do (``"all"``), or how many of them do (``"count"``).

    ``whole``  only as words of their own: "art" is not in "party". A phrase is a word like any other
    ``case``   upper and lower case are told apart

    A word counts once, however often it occurs: a text cannot earn more by repeating it. For a condition that must
    hold, see ``constrain``. Raises ``InputError`` for no words, an empty one, or another mode.

    >>> Keywords(["art", "sea"], "count")(["Art by the sea, and the sea again.", "a party"])
    [2.0, 0.0]
    """

    words: str | Sequence[str]
    mode: str = "any"
    whole: bool = True
    case: bool = False

    __name__ = "keywords"
    lower: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        words = (self.words,) if isinstance(self.words, str) else tuple(self.words)
        words = tuple(dict.fromkeys(words if self.case else (str(word).casefold() for word in words)))
        if not words or not all(isinstance(word, str) and word.strip() for word in words):
            raise InputError(f"Keywords needs at least one word, none of them empty, got {self.words!r}")
        if self.mode not in ("any", "all", "count"):
            raise InputError(f"Keywords(mode=...) is 'any', 'all' or 'count', got {self.mode!r}")
        object.__setattr__(self, "words", words)

    @property
    def upper(self) -> float:
        return float(len(self.words)) if self.mode == "count" else 1.0

    @cached_property
    def _patterns(self) -> list[re.Pattern[str]]:
        edges = (r"(?<!\w)", r"(?!\w)") if self.whole else ("", "")
        return [re.compile(re.escape(word).join(edges)) for word in self.words]

    def __call__(self, completions: Sequence[Any], **_: Any) -> list[float]:
        return [self._of(plain_text(completion)) for completion in completions]

    def _of(self, text: str) -> float:
        text = text if self.case else text.casefold()
        found = [pattern.search(text) is not None for pattern in self._patterns]
        return float(sum(found) if self.mode == "count" else any(found) if self.mode == "any" else all(found))
