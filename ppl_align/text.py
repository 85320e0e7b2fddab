"""What a program reads of a completion, under its public address."""

from __future__ import annotations

from ppl_align.core.text import Texts

__all__ = ["Texts"]
