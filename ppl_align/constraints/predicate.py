"""A constraint that is a test of text: any Python function.

Nothing is known of it but its answers, so that it cannot say of a vocabulary which tokens may come next. Where it can
say of a beginning that nothing acceptable goes on from it, tokens are drawn first and asked about then
(:mod:`ppl_align.lm.adaptive_rejection`); else all that is left is to reject finished texts.

What ``viable`` must promise: a no is final. No text that begins with a prefix it says no to is ever accepted, nor is
one of its longer prefixes viable. It may say yes as often as it likes: that costs draws.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ppl_align.constraints.base import Constraint
from ppl_align.core.errors import InputError, PplAlignError, PredicateError, type_and_line
from ppl_align.core.runs import remembered
from ppl_align.lm.base import LM, Ids
from ppl_align.lm.matcher import Matcher
from ppl_align.lm.spelling import Spelling
from ppl_align.lm.transfer import CPU
from ppl_align.rewards.answers import shorten
from ppl_align.rewards.cache import identity

_BROKEN = "\ufffd"  # what is shown for bytes that are no character


@dataclass(frozen=True, eq=False)
class Predicate(Constraint):
    """The finished text passes ``accepts``; ``viable`` says whether an unfinished one can still come to that.

    ``accepts``  ``str -> bool``, of a text that has ended: with EOS, at the length limit as it stands, or with what
                 stopped it, which belongs to the text (unless that is a special token)
    ``viable``   ``str -> bool``, of a beginning; a no is final. Half a character at its end is left out. None: texts
                 are rejected when they have ended, and a run says so

    With ``viable``, importance sampling, SMC and ``inspect`` ask about tokens that were drawn, a few for each, and
    weigh by an unbiased estimate of the mass that passes (Lipkin et al. 2025, arXiv:2504.05410). Elsewhere (MCMC, SVI,
    deciding in a world that answers, LMs that draw blocks) and without it, it is a rejection of finished texts. Within
    a run no function is asked twice about a text. ``ppl-align check`` looks at draws of the prior for a no that was not
    final.

    Equal if its functions are the same code that holds the same objects: a ``lambda`` in a program is one constraint.
    Raises ``InputError`` for what is no function, ``PredicateError`` where one raises or says neither True nor False.

    >>> Predicate(accepts=str.isdigit, viable=lambda text: not text or text.isdigit())
    Predicate(accepts=isdigit, viable=<lambda>)
    """

    accepts: Callable[[str], bool]
    viable: Callable[[str], bool] | None = None

    def __post_init__(self) -> None:
        for name, fn in (("accepts", self.accepts), ("viable", self.viable)):
            if isinstance(fn, type) or not (callable(fn) or (fn is None and name == "viable")):
                raise InputError(
                    f"Predicate({name}=...) takes a function of a text that says True or False, got {fn!r}"
                )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Predicate) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    @property
    def _key(self) -> Any:
        return identity(self.accepts), identity(self.viable)

    def __repr__(self) -> str:
        more = "" if self.viable is None else f", viable={_name(self.viable)}"
        return f"Predicate(accepts={_name(self.accepts)}{more})"

    @property
    def remark(self) -> str:
        """What there is to say of one without ``viable``."""
        return (
            f"{self!r} acts only at the end, as a rejection: give viable=, a test of beginnings whose no is final, and "
            f"draws keep to it"
        )

    def compile(self, lm: LM) -> PredicateMatcher:
        return PredicateMatcher(self, lm)


def _name(fn: Any) -> str:
    inner = getattr(fn, "func", None)  # of a functools.partial
    return getattr(fn, "__name__", None) or (type(fn).__name__ if inner is None else f"partial({_name(inner)})")


class PredicateMatcher(Matcher):
    """Asks the functions of ``predicate`` about texts of ``lm``, each once within a run."""

    def __init__(self, predicate: Predicate, lm: LM) -> None:
        self.predicate, self.lm = predicate, lm
        self.acts = "end" if predicate.viable is None else "test"
        self.remark = predicate.remark
        try:
            self.spelling: Spelling | None = Spelling.of(lm)
        except InputError:  # what its tokens spell, one after the other, is not its text: that is asked for
            self.spelling = None

    def allowed(self, prefixes: Sequence[Ids], left: int, device: torch.device = CPU) -> Tensor:
        """All tokens: none is ruled out before it was drawn."""
        return torch.ones(len(prefixes), self.lm.vocab_size, dtype=torch.bool, device=device)

    def accepts(self, prefixes: Sequence[Ids]) -> Tensor:
        return self._ask("accepts", [self.text(ids) for ids in prefixes])

    def viable(self, prefixes: Sequence[Ids], left: int) -> Tensor:
        if self.predicate.viable is None:
            return torch.ones(len(prefixes), dtype=torch.bool)
        return self._ask("viable", [self.beginning(ids) for ids in prefixes])

    def text(self, ids: Ids) -> str:
        """The text of a completion that has ended."""
        return self.lm.continue_text((), [ids])[0] if self.spelling is None else self.spelling.text(ids)

    def beginning(self, ids: Ids) -> str:
        """The text of one that goes on: without half a character at its end."""
        if self.spelling is None:
            return self.text(ids).rstrip(_BROKEN)
        return codecs.getincrementaldecoder("utf-8")(errors="replace").decode(self.spelling.spelt(ids))

    def _ask(self, which: Literal["accepts", "viable"], texts: Sequence[str]) -> Tensor:
        kept: dict[str, bool] | None = remembered(("verdicts", which, self.predicate), dict)
        known = {} if kept is None else kept
        for text in texts:
            if text not in known:
                known[text] = self._verdict(which, text)
        return torch.tensor([known[text] for text in texts], dtype=torch.bool)

    def _verdict(self, which: Literal["accepts", "viable"], text: str) -> bool:
        try:
            found: Any = getattr(self.predicate, which)(text)
        except PplAlignError:
            raise
        except Exception as error:
            raised = type_and_line(error)
            raise PredicateError(f"{which} of {self.predicate!r} raised {raised}, on {shorten(text)}") from error
        if type(found).__name__ not in ("bool", "bool_"):  # NumPy's, too
            raise PredicateError(
                f"{which} of {self.predicate!r} returned {shorten(found)} for {shorten(text)}: it must be True or False"
            )
        return bool(found)
