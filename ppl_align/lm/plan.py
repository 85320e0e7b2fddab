"""How a network is read: with its cache, a cache for each length of prompt, or every text anew."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

CACHE: Literal["cache"] = "cache"
BY_LENGTH: Literal["cache by length"] = "cache by length"
RECOMPUTE: Literal["recompute"] = "recompute"
KINDS: tuple[Literal["cache", "cache by length", "recompute"], ...] = (CACHE, BY_LENGTH, RECOMPUTE)
"""In the order in which they are tried: from the fastest to the one that is right whenever one is."""


@dataclass(frozen=True)
class Plan:
    """What :mod:`ppl_align.lm.verify` found to be right.

    ``kind``     ``"cache"``: prompts of different lengths share one cache, padded on the left;
                 ``"cache by length"``: prompts of one length share one, and nothing is padded;
                 ``"recompute"``: every text is read from its beginning at every step
    ``limit``    longest text, in tokens, that the cache reads rightly; longer ones are read anew. None: any
    ``whole``    does one forward of a text say of each of its beginnings what a forward of the beginning alone says?
                 Not where rotary embeddings change with the length of the text. Asked only where a text is read anew
    ``differs``  nats a token by which the cache is wrong, where it is (infinite: it cannot be used at all)
    """

    kind: Literal["cache", "cache by length", "recompute"] = CACHE
    limit: int | None = None
    whole: bool = True
    differs: float | None = None

    def anew(self, length: int) -> bool:
        """Is a text of so many tokens read from its beginning?"""
        return self.kind == RECOMPUTE or (self.limit is not None and length > self.limit)
