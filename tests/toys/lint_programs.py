"""A program on four words, and what lints say of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ppl_align import CallableLM, completion, reward
from ppl_align.lints import Finding, lint

WORDS = CallableLM(4, lambda prefix: torch.zeros(len(prefix), 4), tokens=[" a", " b", " c", " d"])
ENDING = CallableLM(4, lambda prefix: torch.zeros(len(prefix), 4), eos_id=3, tokens=[" a", " b", " c", ""])


def text(max_new_tokens: int = 4, **sampling: Any) -> Any:
    return completion("x", WORDS, "", max_new_tokens=max_new_tokens, **sampling)


def found(program: Callable[..., Any], kind: str, *args: Any) -> list[Finding]:
    return [finding for finding in lint(program, *args) if finding.lint == kind]


def count_a(texts: list[str]) -> list[float]:
    return [float(t.count("a")) for t in texts]


def sound() -> None:
    reward("as", count_a, text())


def scored_by(fn: Any) -> None:
    reward("r", fn, text())


def scaled(beta: float) -> None:
    reward("as", count_a, text(), beta=beta)
