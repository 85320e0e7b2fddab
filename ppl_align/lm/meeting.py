"""Several runs that share the forwards of a network: rows of a data set, each with an engine's run of its own.

Runs that take turns (:mod:`ppl_align.core.turns`) meet where they start a decoder or extend one. What stands after
prompts that were started together is one decoder of the network, a *cohort*; each run sees its own rows of it, as if it
were alone, and a row's log-probabilities are what they are alone, up to rounding.

A cohort goes on when everybody who holds rows of it asks for that. New ones start when no cohort can go on, so that
runs which end their completions at different times begin the next ones together. A run that leaves its rows for
something else, while the others can do nothing but wait for it, is left behind: once it comes back, its rows are read
again.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ppl_align.core.cost import Cost, count_share, measure
from ppl_align.core.turns import Asked, ask, taking_turns
from ppl_align.lm.base import Decoder, Ids, WithLogits, alike

Begin = Callable[[Sequence[Ids]], Decoder]


class SharedDecoder(WithLogits):
    """One run's rows of a cohort: after its ``prompts``, and the ``steps`` since, (parents, tokens) each.

    ``begin`` makes a decoder of the language model ``lm`` after any prompts."""

    hidden: Tensor | None

    def __init__(self, lm: Any, begin: Begin, prompts: Sequence[Ids]) -> None:
        self.lm, self.begin, self.prompts = lm, begin, prompts
        self.steps: list[tuple[Tensor, Tensor]] = []
        self.cohort: Cohort | None = None

    def extend(self, parents: Tensor, tokens: Tensor) -> SharedDecoder:
        self.steps.append((parents, tokens))
        _meet(self)
        return self

    @property
    def size(self) -> int:
        return len(self.steps[-1][0]) if self.steps else len(self.prompts)

    @property
    def rows(self) -> list[Ids]:
        """What each row has read, or is to read."""
        rows = list(self.prompts)
        for parents, tokens in self.steps:
            rows = [(*rows[p], t) for p, t in zip(parents.tolist(), tokens.tolist(), strict=True)]
        return rows


class Cohort:
    """Rows that are one decoder of the network, and whose they are, in their order."""

    def __init__(self, members: Sequence[SharedDecoder]) -> None:
        self.decoder = members[0].begin([row for member in members for row in member.rows])
        self._show(members)

    @property
    def members(self) -> list[SharedDecoder]:
        """Those that somebody may still ask to go on."""
        found = (ref() for ref in self._members)
        return [member for member in found if member is not None and member.cohort is self]

    def extend(self, members: Sequence[SharedDecoder]) -> None:
        """Go on with the rows of these; the others are left behind."""
        for member in self.members:
            if member not in members:
                member.cohort = None
        parents, tokens = zip(*(member.steps[-1] for member in members), strict=True)
        at = [rows + self._first[id(member)] for member, rows in zip(members, parents, strict=True)]
        self.decoder = self.decoder.extend(torch.cat(at), torch.cat(tokens))
        self._show(members)

    def _show(self, members: Sequence[SharedDecoder]) -> None:
        """Each its own rows of what the network says."""
        self._members = [weakref.ref(member) for member in members]
        self._first: dict[int, int] = {}
        first = 0
        for member in members:
            self._first[id(member)], here = first, slice(first, first + member.size)
            member.cohort, member.logits = self, self.decoder.logits[here]
            member.hidden = None if self.decoder.hidden is None else self.decoder.hidden[here]
            first = here.stop


def start(lm: Any, begin: Begin, prompts: Sequence[Ids]) -> Decoder:
    """``begin(prompts)``, a decoder of ``lm``; in a run among others, together with theirs."""
    if not taking_turns():
        return begin(prompts)
    decoder = SharedDecoder(lm, begin, tuple(prompts))
    _meet(decoder)
    return decoder


def leave(decoder: Any) -> None:
    """Nobody will ask for more of these rows: others need not wait for that."""
    for one in getattr(decoder, "decoders", [decoder]):
        if isinstance(one, SharedDecoder):
            one.cohort = None


def serve(asked: Sequence[Asked]) -> None:
    """Answer those of the waiting runs whose turn it is at the network."""
    cohorts: dict[Cohort, list[Asked]] = {}
    starting: list[Asked] = []
    for one in asked:
        cohort = one.question.cohort
        (starting if cohort is None else cohorts.setdefault(cohort, [])).append(one)
    complete = {cohort: here for cohort, here in cohorts.items() if len(here) == len(cohort.members)}
    if complete or not starting:
        for cohort, here in (complete or _largest(cohorts)).items():
            _answer(here, cohort.extend)
    else:
        for which in alike(id(one.question.lm) for one in starting).values():
            _answer([starting[i] for i in which], Cohort)


def _largest(cohorts: dict[Cohort, list[Asked]]) -> dict[Cohort, list[Asked]]:
    most = max(cohorts, key=lambda cohort: len(cohorts[cohort]))
    return {most: cohorts[most]}


def _answer(here: Sequence[Asked], work: Callable[[Sequence[SharedDecoder]], Any]) -> None:
    """Do the work for these, and tell each of them its share of the bill; an error is everybody's."""
    decoders = [one.question for one in here]
    try:
        with measure() as cost:
            work(decoders)
    except Exception as error:
        for one in here:
            one.refuse(error)
        return
    total = sum(decoder.size for decoder in decoders)
    for one in here:
        one.answer(_share(cost, one.question, one.question.size / total))


def _share(cost: Cost, decoder: SharedDecoder, share: float) -> dict[str, float]:
    """A run takes part in each forward; it pays for its own tokens, and has its share of the time."""
    read = {
        "lm_tokens": decoder.size if cost.lm_tokens else 0,
        "prompt_tokens": sum(map(len, decoder.rows)) if cost.prompt_tokens else 0,
    }
    return {**read, "lm_forwards": cost.lm_forwards, **{k: getattr(cost, k) * share for k in ("seconds", "lm_seconds")}}


def _meet(decoder: SharedDecoder) -> None:
    count_share(**ask(decoder))
