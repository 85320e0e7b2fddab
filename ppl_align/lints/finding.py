"""What a lint has to say: one line, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "note"]
"""``error``: engines cannot run the program. ``warning``: they run, and the answer is probably not the one that was
asked for. ``note``: normal, and good to know."""


@dataclass(frozen=True)
class Finding:
    """``lint``: which one found it. ``text``: what was seen, with numbers. ``remedy``: what to write instead."""

    lint: str
    severity: Severity
    text: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.severity}: {self.text}" + (f"; {self.remedy}" if self.remedy else "")
