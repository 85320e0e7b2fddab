"""Several language models over one vocabulary that act as one: what ``Mixture`` and ``Product`` have in common."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from numbers import Real
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from torch import Tensor

from ppl_align.core.errors import InputError
from ppl_align.lm.base import LM, Decoder, Ids, Voiced

_AGREE: WeakKeyDictionary[LM, WeakSet[LM]] = WeakKeyDictionary()  # LMs that were found to have one vocabulary


class Ensemble(Voiced):
    """``lms`` write together. Text, chat template, and the hidden states that guides look at, are those of the first
    (of the first that has them); prompts are read by each in its own way, so it may be a ``Prompted`` one.

    Every forward is one of each member, and is counted as such."""

    def __init__(self, lms: Sequence[LM], coefficients: Sequence[float], kind: str, what: str) -> None:
        self.lms = list(lms)
        self.coefficients = [_number(kind, what, c) for c in coefficients]
        if not self.lms or len(self.lms) != len(self.coefficients):
            raise InputError(f"a {kind} has one of its {what} for each LM: {len(self.lms)} and {len(coefficients)}")
        for lm in self.lms:
            if not lm.steps:
                raise InputError(lm.cannot_step(f"a {kind}"))
        first = self.lms[0]
        for other in self.lms[1:]:
            require_same_vocabulary(first, other, f"a {kind}")
        self._take_vocabulary()
        self.name = f"{kind}({', '.join(lm.name for lm in self.lms)})"
        seeing = next((lm for lm in self.lms if lm.hidden_size is not None), None)
        self.hidden_size = None if seeing is None else seeing.hidden_size
        self.unembedding = getattr(seeing, "unembedding", None)
        limits = [lm.max_length for lm in self.lms if getattr(lm, "max_length", None) is not None]  # type: ignore[attr-defined]
        self.max_length: int | None = min(limits, default=None)

    @abstractmethod
    def forced_log_probs(self, prompts: Sequence[Ids], tokens: Tensor) -> Tensor: ...

    def starts(self, prompts: Sequence[Ids]) -> list[Decoder]:
        """A decoder of each member after the same prompts."""
        return [lm.start(begun(lm, prompts)) for lm in self.lms]

    def forced(self, prompts: Sequence[Ids], tokens: Tensor) -> list[Tensor]:
        """``forced_log_probs`` of each member, [B, T, V]."""
        return [lm.forced_log_probs(begun(lm, prompts), tokens) for lm in self.lms]

    def begin(self, ids: Ids) -> Ids:
        for lm in self.lms:  # each puts its own BOS in front when it starts; here they only check
            lm.begin(ids)
        return ids

    @property
    def voice(self) -> LM:
        return self.lms[0]

    @property
    def learned(self) -> bool | None:
        members = [lm.learned for lm in self.lms]
        return True if True in members else None if None in members else False


def begun(lm: LM, prompts: Sequence[Ids]) -> list[Ids]:
    """The prompts as this LM begins them (its own opening in front, once; chats as they are)."""
    return [lm.begin(prompt) for prompt in prompts]


def hidden_of(decoders: Sequence[Decoder]) -> Tensor | None:
    """The hidden states of the first member that has some."""
    found = (getattr(decoder, "hidden", None) for decoder in decoders)
    return next((hidden for hidden in found if hidden is not None), None)


def require_same_vocabulary(first: LM, other: LM, who: str) -> None:
    """Raises ``InputError`` unless every token id means the same to both."""
    if first is other or other in _AGREE.setdefault(first, WeakSet()):
        return
    sizes = f"{first.name} has {first.vocab_size} tokens, {other.name} {other.vocab_size}"
    if first.vocab_size != other.vocab_size:
        raise InputError(f"{who} needs LMs of one vocabulary: {sizes}")
    if (first.eos_id, set(first.eos_ids)) != (other.eos_id, set(other.eos_ids)):
        raise InputError(f"{who} needs LMs with one EOS: {_eos(first)} in {first.name}, {_eos(other)} in {other.name}")
    if first.device != other.device:
        raise InputError(
            f"{who} needs LMs on one device: {first.name} is on {first.device}, {other.name} on {other.device}"
        )
    pairs = enumerate(zip(first.vocabulary, other.vocabulary, strict=True))
    differs = next((v for v, (one, two) in pairs if one != two and v not in first.eos_ids), None)
    if differs is not None:
        a, b = first.vocabulary[differs], other.vocabulary[differs]
        raise InputError(
            f"{who} needs LMs of one vocabulary: token {differs} is {a!r} in {first.name}, {b!r} in {other.name}"
        )
    _AGREE[first].add(other)


def _eos(lm: LM) -> str:
    return f"id {', '.join(map(str, lm.eos_ids))}" if lm.eos_ids else "None"


def _number(kind: str, what: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise InputError(f"the {what} of a {kind} are finite numbers, got {value!r}")
    return float(value)
