"""What reads token ids on behalf of a hard constraint: which may come next, and is the text acceptable?"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ppl_align.lm.base import Ids
from ppl_align.lm.transfer import CPU


class Matcher(ABC):
    """A constraint over the ids of one LM. Prefixes are tuples of ids without EOS; stop tokens are text like any other.

    Prefixes are read on the host, and verdicts on them stay there. Only masks over the vocabulary are made on the
    device, from as little as says what is in them: copied whole, they would be the largest thing in a step.

    ``allowed`` may err on the side of permitting (a token after which nothing acceptable fits into the tokens left),
    never on the side of forbidding: what it permits in vain ends with weight 0."""

    constraint: Any = None
    """What it was compiled from (of a part of a conjunction: the whole)."""
    acts: Literal["mask", "test", "end"] = "mask"
    """How draws keep to it: by ``allowed``, which says it of every token; by a test of tokens that were drawn, one by
    one (:mod:`ppl_align.lm.adaptive_rejection`); or not at all before the text has ended."""
    remark: str = ""
    """What a run has to say of a matcher that acts at the end."""

    @property
    def parts(self) -> tuple[Matcher, ...]:
        """The matchers it is the conjunction of; engines that look ahead ask each of them."""
        return (self,)

    can_foresee: bool = False
    """Can :meth:`foreseen` be asked?"""
    too_large: str | None = None
    """Why :meth:`foreseen` gave None, once it was asked."""

    def foreseen(self) -> Any:
        """Its automaton, for looking ahead (:class:`ppl_align.constraints.foreseen.Foreseen`); None where that would be
        too large."""
        return None

    @abstractmethod
    def allowed(self, prefixes: Sequence[Ids], left: int, device: torch.device = CPU) -> Tensor:
        """``[m, V]`` bool on ``device``: tokens that may come next, when ``left`` more may follow after them.

        The caller may write to it. EOS where the text is acceptable as it is. A row without any True is a dead end."""

    @abstractmethod
    def accepts(self, prefixes: Sequence[Ids]) -> Tensor:
        """``[m]`` bool: is the text acceptable as it is?"""

    @abstractmethod
    def viable(self, prefixes: Sequence[Ids], left: int) -> Tensor:
        """``[m]`` bool: can it still become acceptable within ``left`` more tokens? (May err towards True.)"""
