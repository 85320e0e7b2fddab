"""Constraints that are finite automata: they know how many tokens an acceptable text still takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ppl_align.constraints.base import Constraint, Reader
from ppl_align.errors import InputError
from ppl_align.rewards.automaton import Automaton

if TYPE_CHECKING:
    from ppl_align.lm.base import LM, Ids


class AutomatonReader(Reader):
    """Reads tokens with an automaton; a prefix is viable if an accepting state is near enough.

    ``distance``  [S] the fewest tokens to an accepting state (S where there is no way)"""

    def __init__(self, automaton: Automaton, eos_id: int | None) -> None:
        self.automaton, self.eos_id = automaton, eos_id
        self.distance = distances(automaton, eos_id)
        self.table = automaton.transitions.numpy()

    def states(self, prefixes: Sequence[Ids]) -> Tensor:
        """The state after each prefix, ``[m]`` int64."""
        found = []
        for prefix in prefixes:
            state = self.automaton.start
            for token in prefix:
                state = int(self.table[state, token])
            found.append(state)
        return torch.tensor(found, dtype=torch.long)

    def allowed(self, prefixes: Sequence[Ids], left: int) -> Tensor:
        distinct, where = self.states(prefixes).unique(return_inverse=True)
        mask = self.distance[self.automaton.transitions[distinct]] <= left  # a row for each state, not for each prefix
        if self.eos_id is not None:
            mask[:, self.eos_id] = self.automaton.accepting[distinct]
        return mask[where]

    def accepts(self, prefixes: Sequence[Ids]) -> Tensor:
        return self.automaton.accepting[self.states(prefixes)]

    def viable(self, prefixes: Sequence[Ids], left: int) -> Tensor:
        return self.distance[self.states(prefixes)] <= left


def distances(automaton: Automaton, eos_id: int | None) -> Tensor:
    """The fewest tokens (EOS apart) from each state to an accepting one, [S]; more than any text has where none leads
    there."""
    moves = automaton.transitions
    if eos_id is not None:
        keep = torch.ones(automaton.vocab_size, dtype=torch.bool)
        keep[eos_id] = False
        moves = moves[:, keep]
    far = torch.iinfo(torch.long).max // 2
    distance = torch.where(automaton.accepting, 0, far)
    for _ in range(automaton.num_states):
        nearer = torch.minimum(distance, distance[moves].amin(-1) + 1)
        if torch.equal(nearer, distance):
            break
        distance = nearer
    return distance


@dataclass(frozen=True)
class Contains(Constraint):
    """The text contains ``text``, however it is cut into tokens.

    Raises ``InputError`` for an empty text, and (when compiled) for an LM whose tokens cannot spell it."""

    text: str

    def __post_init__(self) -> None:
        _check_text("Contains", self.text)

    def compile(self, lm: LM) -> AutomatonReader:
        return _reader(Automaton.contains_text(self.text, lm), lm, self)


@dataclass(frozen=True)
class EndsWith(Constraint):
    """The text ends with ``text``: EOS, a stop token or the length limit comes right after it.

    Raises ``InputError`` for an empty text, and (when compiled) for an LM whose tokens cannot spell it."""

    text: str

    def __post_init__(self) -> None:
        _check_text("EndsWith", self.text)

    def compile(self, lm: LM) -> AutomatonReader:
        return _reader(Automaton.ends_with_text(self.text, lm), lm, self)


@dataclass(frozen=True)
class AcceptedBy(Constraint):
    """The token ids are accepted by an :class:`~ppl_align.rewards.Automaton` of your own (EOS is not read)."""

    automaton: Automaton

    def __post_init__(self) -> None:
        if not isinstance(self.automaton, Automaton):
            raise InputError(f"AcceptedBy takes an Automaton, got {type(self.automaton).__name__}")

    def compile(self, lm: LM) -> AutomatonReader:
        if self.automaton.vocab_size != lm.vocab_size:
            raise InputError(
                f"the automaton reads {self.automaton.vocab_size} tokens, but {lm.name} has {lm.vocab_size}: make it "
                f"for this LM"
            )
        return _reader(self.automaton, lm, self)


def _check_text(name: str, text: object) -> None:
    if not isinstance(text, str) or not text:
        raise InputError(f"{name} takes a text of at least one character, got {text!r}")


def _reader(automaton: Automaton, lm: LM, constraint: Constraint) -> AutomatonReader:
    reader = AutomatonReader(automaton, lm.eos_id)
    if int(reader.distance[automaton.start]) > automaton.num_states:
        raise InputError(f"{constraint!r} is impossible: no sequence of tokens of {lm.name} meets it")
    return reader
