"""When a particle's intermediate potential is refreshed: every k tokens, at word or at sentence boundaries."""

from __future__ import annotations

from typing import Any

import numpy as np

from ppl_align.core.errors import InputError
from ppl_align.core.validation import at_least, one_of
from ppl_align.lm.base import LM
from ppl_align.lm.spelling import Spelling
from ppl_align.runner.decode import Decode

_SENTENCE_ENDS = (".", "!", "?", "…", "。")
_CLOSERS = "\"'”’)]*"


def check_schedule(every: int | str) -> None:
    """Raises ``InputError`` unless ``every`` is a positive whole number, ``"word"`` or ``"sentence"``."""
    if isinstance(every, str):
        one_of("every", every, ["word", "sentence"])
    else:
        at_least(1, every=every)


class Schedule:
    """Which particles are due, step by step."""

    def __init__(self, every: int | str, lm: LM) -> None:
        self.every = every
        self.closes: np.ndarray | None = None
        if isinstance(every, str):
            closes = _BOUNDARY[every]
            self.closes = lm.cached(("closes", every), lambda: np.array([closes(text) for text in _within(lm)]))

    def due(self, decode: Decode) -> Any:
        """bool [P]: the newest token closes a unit of text, or (fixed schedule) k more tokens were drawn."""
        if self.closes is None:
            return np.full(decode.particles.size, decode.t % int(self.every) == 0)
        return self.closes[decode.last].any(-1)


def _within(lm: LM) -> list[str]:
    """What each token adds to a text: some tokenizers leave out the space of one that stands alone."""
    try:
        return [piece.decode(errors="replace") for piece in Spelling.of(lm).within]
    except InputError:  # its tokens spell no text, one after the other
        return lm.vocabulary


def starts_word(token: str) -> bool:
    """A token that begins with white space proves that the word before it has ended."""
    return token[:1].isspace()


def ends_sentence(token: str) -> bool:
    """A full stop, a question or exclamation mark (closing quotes apart), or a line break."""
    return "\n" in token or token.rstrip().rstrip(_CLOSERS).endswith(_SENTENCE_ENDS)


_BOUNDARY = {"word": starts_word, "sentence": ends_sentence}
