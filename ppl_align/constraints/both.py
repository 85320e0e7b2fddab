"""Two constraints at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_align.constraints.base import Constraint
from ppl_align.core.errors import InputError
from ppl_align.lm.base import LM, Ids
from ppl_align.lm.matcher import Matcher
from ppl_align.lm.transfer import CPU


@dataclass(frozen=True)
class Both(Constraint):
    """The completion meets ``first`` and ``second``; written ``first & second``.

    Next tokens are those that both would allow. That each can still be met does not mean that both can: a dead end
    that neither sees alone costs particles, and is weighed right (0)."""

    first: Constraint
    second: Constraint

    def __post_init__(self) -> None:
        for part in (self.first, self.second):
            if not isinstance(part, Constraint):
                raise InputError(f"& joins constraints, such as Regex('[a-z ]+') & Contains('cat'); got {part!r}")

    def compile(self, lm: LM) -> BothMatcher:
        return BothMatcher(self.first.compile(lm), self.second.compile(lm))


class BothMatcher(Matcher):
    """The conjunction of two matchers."""

    def __init__(self, first: Matcher, second: Matcher) -> None:
        self.first, self.second = first, second

    @property
    def parts(self) -> tuple[Matcher, ...]:
        return (*self.first.parts, *self.second.parts)

    def allowed(self, prefixes: Sequence[Ids], left: int, device: torch.device = CPU) -> Tensor:
        return self.first.allowed(prefixes, left, device) & self.second.allowed(prefixes, left, device)

    def accepts(self, prefixes: Sequence[Ids]) -> Tensor:
        return self.first.accepts(prefixes) & self.second.accepts(prefixes)

    def viable(self, prefixes: Sequence[Ids], left: int) -> Tensor:
        return self.first.viable(prefixes, left) & self.second.viable(prefixes, left)
