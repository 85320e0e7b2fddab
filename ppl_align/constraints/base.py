"""What a completion must look like, read token by token.

A constraint is a set of *token sequences*: whatever spells an acceptable text, canonical tokenisation or not, and ends
where the text is acceptable. As a factor it is 1 on that set and 0 elsewhere, which is conditioning:

    p*(x) = p0(x) 1[x acceptable] / Z,      Z = P_p0(acceptable)

Confining the next token to what can still become acceptable is *not* conditioning (it forgets how likely the rest
is to succeed), but it makes a good proposal; the mass it leaves out at each step is the exact incremental weight:

    q(v | x_<t) ∝ p0(v | x_<t) 1[v allowed after x_<t],      p0 / q = sum over allowed v of p0(v | x_<t)

Where a constraint is a test of text (:mod:`ppl_align.constraints.predicate`), this sum is estimated instead, from a few
tokens that were drawn (:mod:`ppl_align.lm.adaptive_rejection`).

Three rules. EOS is allowed where the text is acceptable as it is. A text that is cut off at the length limit counts if
it is acceptable as it stands, without EOS. A dead end, from which nothing acceptable is left, has weight 0.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from ppl_align.core.deprecation import old_names
from ppl_align.lm.base import LM
from ppl_align.lm.matcher import Matcher


class Constraint(ABC):
    """What the user writes: ``Regex("[0-9]+")``. Knows nothing of tokens until it is compiled for an LM.

    Constraints are values: equal ones compare and hash equal, so that compiling happens once per LM."""

    @abstractmethod
    def compile(self, lm: LM) -> Matcher:
        """The constraint over the token ids of ``lm``. Raises ``InputError`` for one that cannot be met or read."""

    def __and__(self, other: Constraint) -> Constraint:
        """Both constraints at once."""
        from ppl_align.constraints.both import Both

        return Both(self, other)


__getattr__ = old_names(globals(), {"Reader": "Matcher"})
