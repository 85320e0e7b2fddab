"""When a particle's intermediate potential is refreshed: every k tokens, at word or at sentence boundaries."""

from __future__ import annotations

from typing import Any

import numpy as np

from ppl_align.core.validation import at_least, one_of
from ppl_align.lm.base import LM
from ppl_align.lm.boundaries import BOUNDARIES, boundary_tokens
from ppl_align.runner.decode import Decode


def check_schedule(every: int | str) -> None:
    """Raises ``InputError`` unless ``every`` is a positive whole number, ``"word"`` or ``"sentence"``."""
    if isinstance(every, str):
        one_of("every", every, list(BOUNDARIES))
    else:
        at_least(1, every=every)


class Schedule:
    """Which particles are due, step by step."""

    def __init__(self, every: int | str, lm: LM) -> None:
        self.every = every
        self.closes: np.ndarray | None = None
        if isinstance(every, str):
            self.closes = boundary_tokens(lm, every)

    def all_due(self, t: int) -> bool:
        """Is every particle due after ``t`` tokens, whatever it has written?"""
        return self.closes is None and t % int(self.every) == 0

    def due(self, decode: Decode) -> Any:
        """bool [P]: the newest token closes a unit of text, or (fixed schedule) k more tokens were drawn."""
        if self.closes is None:
            return np.full(decode.particles.size, decode.t % int(self.every) == 0)
        return self.closes[decode.last].any(-1)
