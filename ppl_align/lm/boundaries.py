"""Where words and sentences begin and end, told by the newest token of a text."""

from __future__ import annotations

import numpy as np

from ppl_align.core.errors import InputError
from ppl_align.lm.base import LM
from ppl_align.lm.spelling import Spelling

_SENTENCE_ENDS = (".", "!", "?", "…", "。")
_CLOSERS = "\"'”’)]*"


def starts_word(token: str) -> bool:
    """A token that begins with white space proves that the word before it has ended."""
    return token[:1].isspace()


def ends_sentence(token: str) -> bool:
    """A full stop, a question or exclamation mark (closing quotes apart), or a line break."""
    return "\n" in token or token.rstrip().rstrip(_CLOSERS).endswith(_SENTENCE_ENDS)


BOUNDARIES = {"word": starts_word, "sentence": ends_sentence}


def boundary_tokens(lm: LM, unit: str) -> np.ndarray:
    """bool [V]: the tokens that show the end of a ``"word"`` or ``"sentence"``."""
    shows = BOUNDARIES[unit]
    return lm.cached(("shows the end of a", unit), lambda: np.array([shows(text) for text in _within(lm)]))


def _within(lm: LM) -> list[str]:
    """What each token adds to a text: some tokenizers leave out the space of one that stands alone."""
    try:
        return [piece.decode(errors="replace") for piece in Spelling.of(lm).within]
    except InputError:  # its tokens spell no text, one after the other
        return lm.vocabulary
