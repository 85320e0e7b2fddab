"""Tests of text as constraints: is a no of ``viable`` final?

What is drawn within a ``Predicate`` never goes on from a prefix that ``viable`` says no to. Is a no taken back, later
in the text or by ``accepts``, such texts have no chance to be drawn, and nothing in a run would show it. So it is
looked for on draws of the prior, which nobody confines. Each of their beginnings is a text of its own here.
"""

from __future__ import annotations

from collections.abc import Iterator

from ppl_align.constraints.predicate import PredicateMatcher
from ppl_align.core.runs import run_memory
from ppl_align.lints.finding import Finding
from ppl_align.lints.prior_sample import PriorSample
from ppl_align.lm.base import Ids
from ppl_align.lm.completions import Completion
from ppl_align.program.notes import notes_of
from ppl_align.rewards.answers import shorten


def no_is_final(sample: PriorSample) -> Iterator[Finding]:
    """A text that begins with a prefix ``viable`` says no to, and is accepted or viable all the same."""
    for name, node in sample.nodes.items():
        notes = notes_of(node)
        for part in () if notes.matcher is None else notes.matcher.parts:
            if not isinstance(part, PredicateMatcher) or notes.constrains not in sample.completions:
                continue
            if part.acts == "end":
                yield Finding("predicate", "note", part.remark)
                continue
            texts = Completion(sample.values[notes.constrains], sample.completions[notes.constrains]).ids
            with run_memory():
                found = next(filter(None, (taken_back(part, ids) for ids in dict.fromkeys(texts))), None)
            if found is not None:
                yield Finding(
                    "predicate",
                    "warning",
                    f"viable of {name!r} says no to {shorten(found[0])}, but {found[1]}: a no is final, and engines "
                    f"never draw what goes on from there",
                    "say yes to every beginning that can still be accepted",
                )


def taken_back(matcher: PredicateMatcher, ids: Ids) -> tuple[str, str] | None:
    """The first prefix (by tokens) of a text that ``viable`` says no to, and what was said of a longer one."""
    refused: str | None = None
    for length in range(len(ids) + 1):
        begun, whole = matcher.beginning(ids[:length]), matcher.text(ids[:length])
        if not matcher.viable([ids[:length]], 0):
            refused = begun if refused is None else refused
        elif refused is not None:
            return refused, f"yes to {shorten(begun)}"
        if refused is not None and matcher.accepts([ids[:length]]):
            return refused, f"{shorten(whole)} is accepted"
    return None


__all__ = ["no_is_final", "taken_back"]
