"""Constraints that are finite automata: they know how many tokens an acceptable text still takes.

An automaton has few states, so its rows over the vocabulary are laid out on the device once, one for each state; what
is copied for a set of prefixes is the number of the state that each of them is in.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_align.constraints.base import Constraint
from ppl_align.core.errors import InputError
from ppl_align.lm.base import LM, Ids
from ppl_align.lm.matcher import Matcher
from ppl_align.lm.transfer import CPU, Resident, upload
from ppl_align.tokens.automaton import Automaton

_FAR = torch.iinfo(torch.int32).max  # as a distance: no way
_REMEMBERED = 1024  # prefixes whose states are kept, at least


class AutomatonMatcher(Matcher):
    """Reads tokens with an automaton; a prefix is viable if an accepting state is near enough.

    ``distance``     [S] the fewest tokens to an accepting state (more than any text has where there is no way)
    ``transitions``  [S, V] int64, those of the automaton    ``missing``  [S, V] int32, the distance after each token"""

    def __init__(self, automaton: Automaton, eos_ids: Ids) -> None:
        self.automaton, self.eos_ids = automaton, eos_ids
        self.distance = distances(automaton, eos_ids)
        self.reach = max((d for d in self.distance.tolist() if d < _FAR), default=0)  # farther limits forbid nothing
        self.transitions = Resident(automaton.transitions)
        missing = self.distance[automaton.transitions]
        missing[:, list(eos_ids)] = torch.where(automaton.accepting, 0, _FAR)[:, None]
        self.missing = Resident(missing.int())
        self._permits: tuple[int, Tensor] | None = None
        self._known: dict[Ids, int] = {}
        self.table = automaton.transitions.numpy()

    def states(self, prefixes: Sequence[Ids]) -> Tensor:
        """The state after each prefix, ``[m]`` int64."""
        if len(self._known) > max(_REMEMBERED, 4 * len(prefixes)):
            self._known = {}
        return torch.tensor([self._state(prefix) for prefix in prefixes], dtype=torch.long)

    def _state(self, prefix: Ids) -> int:
        """One step from where its parent was, mostly."""
        state = self._known.get(prefix)
        if state is None:
            before = self._known.get(prefix[:-1])
            state, rest = (self.automaton.start, prefix) if before is None else (before, prefix[-1:])
            for token in rest:
                state = int(self.table[state, token])
            self._known[prefix] = state
        return state

    def permits(self, left: int, device: torch.device) -> Tensor:
        """``[S, V]`` bool: what may come next in each state. The same tensor as long as the limit is far away."""
        near = min(left, self.reach)
        if self._permits is None or self._permits[0] != near or self._permits[1].device != device:
            self._permits = near, self.missing.on(device) <= near
        return self._permits[1]

    def allowed(self, prefixes: Sequence[Ids], left: int, device: torch.device = CPU) -> Tensor:
        return self.permits(left, device)[upload(self.states(prefixes), device)]

    def accepts(self, prefixes: Sequence[Ids]) -> Tensor:
        return self.automaton.accepting[self.states(prefixes)]

    def viable(self, prefixes: Sequence[Ids], left: int) -> Tensor:
        return self.distance[self.states(prefixes)] <= left


def distances(automaton: Automaton, eos_ids: Ids) -> Tensor:
    """The fewest tokens (EOS apart) from each state to an accepting one, [S]; more than any text has where none leads
    there."""
    moves = automaton.transitions
    if eos_ids:
        keep = torch.ones(automaton.vocab_size, dtype=torch.bool)
        keep[list(eos_ids)] = False
        moves = moves[:, keep]
    distance = torch.where(automaton.accepting, 0, _FAR)
    for _ in range(automaton.num_states):
        nearer = torch.minimum(distance, (distance[moves].amin(-1) + 1).clamp_max(_FAR))
        if torch.equal(nearer, distance):
            break
        distance = nearer
    return distance


@dataclass(frozen=True)
class _HasText(Constraint):
    text: str

    @abstractmethod
    def automaton(self, lm: LM) -> Automaton:
        """Over the tokens of ``lm``."""

    def __post_init__(self) -> None:
        if not isinstance(self.text, str) or not self.text:
            raise InputError(f"{type(self).__name__} takes a text of at least one character, got {self.text!r}")

    def compile(self, lm: LM) -> AutomatonMatcher:
        return _matcher(self.automaton(lm), lm, self)


class Contains(_HasText):
    """The text contains ``text``, however it is cut into tokens: a token may be a part of a character.

    Bytes are compared, so case matters, and so does how an accent is written (é, or e with U+0301 behind it).

    Raises ``InputError`` for an empty text, and (when compiled) for an LM whose tokens cannot spell it."""

    def automaton(self, lm: LM) -> Automaton:
        return Automaton.contains_text(self.text, lm)


class EndsWith(_HasText):
    """The text ends with ``text``: EOS or the length limit comes right after it, or its last token is a stop token.

    Raises ``InputError`` for an empty text, and (when compiled) for an LM whose tokens cannot spell it."""

    def automaton(self, lm: LM) -> Automaton:
        return Automaton.ends_with_text(self.text, lm)


@dataclass(frozen=True)
class AcceptedBy(Constraint):
    """The token ids are accepted by an :class:`~ppl_align.rewards.Automaton` of your own (EOS is not read)."""

    automaton: Automaton

    def __post_init__(self) -> None:
        if not isinstance(self.automaton, Automaton):
            raise InputError(f"AcceptedBy takes an Automaton, got {type(self.automaton).__name__}")

    def compile(self, lm: LM) -> AutomatonMatcher:
        if self.automaton.vocab_size != lm.vocab_size:
            raise InputError(
                f"the automaton reads {self.automaton.vocab_size} tokens, but {lm.name} has {lm.vocab_size}: make it "
                f"for this LM"
            )
        return _matcher(self.automaton, lm, self)


def _matcher(automaton: Automaton, lm: LM, constraint: Constraint) -> AutomatonMatcher:
    matcher = AutomatonMatcher(automaton, lm.eos_ids)
    if int(matcher.distance[automaton.start]) > automaton.num_states:
        raise InputError(f"{constraint!r} is impossible: no sequence of tokens of {lm.name} meets it")
    return matcher
