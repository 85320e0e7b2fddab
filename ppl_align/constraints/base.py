"""What a completion must look like, read token by token.

A constraint is a set of *token sequences*: whatever spells an acceptable text, canonical tokenisation or not, and ends
where the text is acceptable. As a factor it is 1 on that set and 0 elsewhere, which is conditioning:

    p*(x) = p0(x) 1[x acceptable] / Z,      Z = P_p0(acceptable)

Confining the next token to what can still become acceptable is *not* conditioning (it forgets how likely the rest
is to succeed), but it makes a good proposal; the mass it leaves out at each step is the exact incremental weight:

    q(v | x_<t) ∝ p0(v | x_<t) 1[v allowed after x_<t],      p0 / q = sum over allowed v of p0(v | x_<t)

Three rules. EOS is allowed where the text is acceptable as it is. A text that is cut off at the length limit counts if
it is acceptable as it stands, without EOS. A dead end, from which nothing acceptable is left, has weight 0.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ppl_align.lm.transfer import CPU

if TYPE_CHECKING:
    from ppl_align.lm.base import LM, Ids


class Constraint(ABC):
    """What the user writes: ``Regex("[0-9]+")``. Knows nothing of tokens until it is compiled for an LM.

    Constraints are values: equal ones compare and hash equal, so that compiling happens once per LM."""

    @abstractmethod
    def compile(self, lm: LM) -> Reader:
        """The constraint over the token ids of ``lm``. Raises ``InputError`` for one that cannot be met or read."""

    def __and__(self, other: Constraint) -> Constraint:
        """Both constraints at once."""
        from ppl_align.constraints.both import Both

        return Both(self, other)


class Reader(ABC):
    """A constraint over the ids of one LM. Prefixes are tuples of ids without EOS; stop tokens are text like any other.

    Prefixes are read on the host, and verdicts on them stay there. Only masks over the vocabulary are made on the
    device, from as little as says what is in them: copied whole, they would be the largest thing in a step.

    ``allowed`` may err on the side of permitting (a token after which nothing acceptable fits into the tokens left),
    never on the side of forbidding: what it permits in vain ends with weight 0."""

    constraint: Constraint | None = None
    """What it was compiled from (of a part of a conjunction: the whole)."""

    @property
    def parts(self) -> tuple[Reader, ...]:
        """The readers it is the conjunction of; engines that look ahead ask each of them."""
        return (self,)

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
