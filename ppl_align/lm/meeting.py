"""Several runs that share the forwards of a network: rows of a data set, each with an engine's run of its own.

Runs that take turns (:mod:`ppl_align.core.turns`) meet where they start a decoder or extend one. What stands after
prompts that were started together is one decoder of the network, a *cohort*; each run sees its own rows of it, as if it
were alone, and a row's log-probabilities are what they are alone, up to rounding.

A cohort goes on when everybody who holds rows of it asks for that. New ones start when no cohort can go on, so that runs
which end their completions at different times begin the next ones together. A run that leaves its rows for something
else, while the others can do nothing but wait for it, is left behind: once it comes back, its rows are read again.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppl_align.core.cost import Cost, count, measure, uncounted
from ppl_align.core.turns import Asked, ask, taking_turns
from ppl_align.lm.base import Decoder, Ids, WithLogits, alike

Begin = Callable[[Sequence[Ids]], Decoder]


@dataclass(frozen=True, eq=False)
class Start:
    """A run wants a decoder after its prompts; ``begin`` makes one of the LM ``key``."""

    key: int
    begin: Begin
    prompts: tuple[Ids, ...]


@dataclass(frozen=True, eq=False)
class Extend:
    """A run wants its rows continued; ``parents``, ``tokens`` as of :meth:`Decoder.extend`."""

    decoder: SharedDecoder
    parents: Tensor
    tokens: Tensor


class SharedDecoder(WithLogits):
    """One run's rows of a cohort: after its ``prompts``, and the ``steps`` since, (parents, tokens) each."""

    def __init__(self, key: int, begin: Begin, prompts: Sequence[Ids]) -> None:
        self.key, self.begin, self.prompts = key, begin, prompts
        self.steps: list[tuple[Tensor, Tensor]] = []
        self.cohort: Cohort | None = None
        self.logits, self.hidden = torch.empty(0), None

    def extend(self, parents: Tensor, tokens: Tensor) -> SharedDecoder:
        _pay(ask(Extend(self, parents, tokens)))
        return self

    @property
    def rows(self) -> list[Ids]:
        """What each row has read."""
        rows = list(self.prompts)
        for parents, tokens in self.steps:
            rows = [(*rows[p], t) for p, t in zip(parents.tolist(), tokens.tolist(), strict=True)]
        return rows

    @property
    def size(self) -> int:
        return len(self.steps[-1][0]) if self.steps else len(self.prompts)


class Cohort:
    """Rows that are one decoder of the network, and whose they are, in their order."""

    def __init__(self, decoder: Decoder, members: Sequence[SharedDecoder]) -> None:
        self.decoder = decoder
        self._members = [weakref.ref(member) for member in members]
        self._show(members)

    @property
    def members(self) -> list[SharedDecoder]:
        """Those that somebody may still ask to go on."""
        found = (ref() for ref in self._members)
        return [member for member in found if member is not None and member.cohort is self]

    def extend(self, asked: Sequence[Extend]) -> None:
        """Go on with the rows of those who ask; the others are left behind."""
        going = {id(one.decoder): one for one in asked}
        for member in self.members:
            if id(member) not in going:
                member.cohort = None
        parents = torch.cat([one.parents + self._first[id(one.decoder)] for one in asked])
        self.decoder = self.decoder.extend(parents, torch.cat([one.tokens for one in asked]))
        for one in asked:
            one.decoder.steps.append((one.parents, one.tokens))
        members = [one.decoder for one in asked]
        self._members = [weakref.ref(member) for member in members]
        self._show(members)

    def _show(self, members: Sequence[SharedDecoder]) -> None:
        """Each its own rows of what the network says."""
        first, self._first = 0, {}
        for member in members:
            here = slice(first, first + member.size)
            self._first[id(member)] = first
            member.cohort, member.logits = self, self.decoder.logits[here]
            member.hidden = None if self.decoder.hidden is None else self.decoder.hidden[here]
            first = here.stop


def start(lm: Any, begin: Begin, prompts: Sequence[Ids]) -> Decoder:
    """``begin(prompts)``, a decoder of ``lm``; of a run among others, together with theirs."""
    if not taking_turns():
        return begin(prompts)
    found, cost = ask(Start(id(lm), begin, tuple(prompts)))
    _pay((found, cost))
    decoder: Decoder = found
    return decoder


def leave(decoder: Any) -> None:
    """Nobody will ask for more of these rows: others need not wait for that."""
    for one in getattr(decoder, "decoders", [decoder]):
        if isinstance(one, SharedDecoder):
            one.cohort = None


def serve(asked: Sequence[Asked]) -> None:
    """Answer as many of the waiting runs as one round of forwards does."""
    extends = [one for one in asked if isinstance(one.question, Extend)]
    cohorts: dict[int, list[Asked]] = {}
    for one in extends:
        cohort = one.question.decoder.cohort
        if cohort is not None:
            cohorts.setdefault(id(cohort), []).append(one)
    complete = [here for here in cohorts.values() if len(here) == len(_cohort(here[0]).members)]
    lost = [one for one in extends if one.question.decoder.cohort is None]
    starts = [one for one in asked if isinstance(one.question, Start)]
    if complete:
        for here in complete:
            _answer(here, lambda here=here: _cohort(here[0]).extend([one.question for one in here]))
    elif lost or starts:
        _begin(lost, starts)
    else:
        here = max(cohorts.values(), key=len)
        _answer(here, lambda: _cohort(here[0]).extend([one.question for one in here]))


def _begin(lost: Sequence[Asked], starts: Sequence[Asked]) -> None:
    """Decoders for those who start, and for rows that were left behind, LM by LM."""
    everybody = [*lost, *starts]
    for which in alike(_key(one) for one in everybody).values():
        here = [everybody[i] for i in which]
        made: dict[int, SharedDecoder] = {}
        for one in here:
            question = one.question
            if isinstance(question, Start):
                made[id(one)] = SharedDecoder(question.key, question.begin, question.prompts)
            else:
                made[id(one)] = question.decoder
                question.decoder.steps.append((question.parents, question.tokens))
        members = list(made.values())
        begin = members[0].begin
        _answer(here, lambda m=members, b=begin: Cohort(b([row for one in m for row in one.rows]), m), made)


def _answer(here: Sequence[Asked], work: Callable[[], Any], made: dict[int, SharedDecoder] | None = None) -> None:
    """Do the work, on nobody's bill, and answer with each one's share of it; an error is everybody's."""
    try:
        with uncounted(), measure() as cost:
            work()
    except Exception as error:
        for one in here:
            one.refuse(error)
        return
    decoders = [made[id(one)] if made is not None else one.question.decoder for one in here]
    total = sum(len(decoder.logits) for decoder in decoders)
    for one, decoder in zip(here, decoders, strict=True):
        one.answer((decoder, _share(cost, one.question, len(decoder.logits) / total)))


def _share(cost: Cost, question: Start | Extend, share: float) -> dict[str, float]:
    """A run pays for its own tokens, takes part in each forward, and has its share of the time."""
    time = {"seconds": cost.seconds * share, "lm_seconds": cost.lm_seconds * share}
    own = {"lm_tokens": len(question.tokens)} if isinstance(question, Extend) else {}
    if cost.prompt_tokens:
        own["prompt_tokens"] = sum(map(len, question.prompts)) if isinstance(question, Start) else 0
    return {**own, "lm_forwards": cost.lm_forwards, **time}


def _pay(answer: tuple[SharedDecoder, dict[str, float]]) -> None:
    count(**answer[1])


def _cohort(one: Asked) -> Cohort:
    cohort = one.question.decoder.cohort
    assert cohort is not None
    return cohort


def _key(one: Asked) -> int:
    question = one.question
    return question.key if isinstance(question, Start) else question.decoder.key
