"""Sentiment of English text by VADER, a lexicon with rules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

from ppl_align.rewards.convention import plain_text


@dataclass(frozen=True)
class Vader:
    """r = VADER's compound sentiment, in [-1, 1]: -1 most negative, 0 neutral (the empty text too), 1 most positive.

    Source: Hutto & Gilbert 2014, "VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social Media
    Text" (ICWSM), as implemented by ``vaderSentiment``. Runs in some 50 microseconds per sentence.

    >>> good, bad = Vader()(["I love this film.", "I hate this film."])
    >>> good, bad
    (0.6369, -0.5719)
    """

    __name__ = "vader"
    upper: ClassVar[float] = 1.0
    lower: ClassVar[float] = -1.0

    def __call__(self, completions: Sequence[Any], **_: Any) -> list[float]:
        score = _analyzer().polarity_scores
        return [score(plain_text(completion))["compound"] for completion in completions]


@lru_cache(maxsize=1)
def _analyzer() -> Any:
    """The lexicon, read once per process."""
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()
