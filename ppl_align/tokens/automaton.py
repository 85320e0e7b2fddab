"""Finite automata over token ids."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ppl_align.core.errors import InputError
from ppl_align.lm.base import LM
from ppl_align.lm.spelling import Characters, Machine, spell
from ppl_align.tokens.ids import checked_tokens, freeze
from ppl_align.tokens.regex import regex_characters


@dataclass(frozen=True, eq=False, repr=False)
class Automaton:
    """A deterministic finite automaton that reads token ids.

    ``transitions``  [S, V] int64, the state after reading token v in state s
    ``start``        the state before the first token        ``accepting``  [S] bool

    A value: equal tables compare and hash equal. Raises ``InputError`` for tables that do not fit together.

    >>> a = Automaton.contains([1, 2], vocab_size=4)  # somewhere a 1 that is followed by a 2
    >>> a, a.accepting[a.run(torch.tensor([[0, 1, 2], [1, 0, 2]]))].tolist()
    (Automaton(3 states, V=4), [True, False])
    """

    transitions: Tensor
    start: int
    accepting: Tensor

    def __post_init__(self) -> None:
        transitions = torch.as_tensor(self.transitions).detach().long().cpu().clone()
        accepting = torch.as_tensor(self.accepting).detach().bool().cpu().clone()
        if transitions.dim() != 2 or transitions.numel() == 0:
            raise InputError(f"Automaton: transitions must have shape [S, V], got {list(transitions.shape)}")
        states = len(transitions)
        if accepting.shape != (states,):
            raise InputError(f"Automaton: accepting must have shape [{states}], got {list(accepting.shape)}")
        if not (0 <= self.start < states and bool(((transitions >= 0) & (transitions < states)).all())):
            raise InputError(f"Automaton: states run from 0 to {states - 1}; start or a transition lies outside")
        freeze(self, transitions=transitions, accepting=accepting, start=int(self.start))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Automaton) and (self is other or self._content == other._content)

    def __hash__(self) -> int:
        return hash(self._content)

    @cached_property
    def _content(self) -> tuple[object, ...]:
        tables = (self.accepting.numpy().tobytes(), self.transitions.numpy().tobytes())
        return self.start, *(hashlib.sha256(table).digest() for table in tables)

    @property
    def num_states(self) -> int:
        return len(self.transitions)

    @property
    def vocab_size(self) -> int:
        return self.transitions.shape[1]

    @classmethod
    def contains(cls, ids: Sequence[int], vocab_size: int | LM) -> Automaton:
        """Accepts the sequences with ``ids`` somewhere in them, next to each other (Knuth, Morris & Pratt 1977).

        ``vocab_size``: a number, or the LM that has it."""
        size = getattr(vocab_size, "vocab_size", vocab_size)
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise InputError(f"Automaton.contains takes ids and an LM or its vocab_size, got {vocab_size!r}")
        if isinstance(ids, str) or not hasattr(ids, "__iter__"):
            raise InputError(f"Automaton.contains takes a list of ids, got {ids!r}; for text: Automaton.contains_text")
        wanted = [int(i) for i in ids]
        if not wanted or not all(0 <= i < size for i in wanted):
            raise InputError(f"Automaton.contains needs ids from 0 to {size - 1}, at least one, got {wanted}")
        return cls(_search(wanted, size), 0, torch.arange(len(wanted) + 1) == len(wanted))

    @classmethod
    def contains_text(cls, text: str, lm: LM) -> Automaton:
        """Accepts the completions of ``lm`` whose text contains ``text``, however it is cut into tokens: a token may
        be a part of a character.

        >>> from ppl_align import MarkovLM
        >>> lm = MarkovLM(torch.zeros(3, 3), tokens=["a", "b", "ab"])
        >>> a = Automaton.contains_text("bab", lm)
        >>> a.accepting[a.run(torch.tensor([[1, 2], [2, 0]]))].tolist()
        [True, False]
        """
        return cls._searching("contains_text", text, lm)

    @classmethod
    def ends_with_text(cls, text: str, lm: LM) -> Automaton:
        """Accepts the completions of ``lm`` whose text ends with ``text``, however it is cut into tokens."""
        return cls._searching("ends_with_text", text, lm, at_the_end=True)

    @classmethod
    def regex(cls, pattern: str, lm: LM) -> Automaton:
        r"""Accepts the completions of ``lm`` whose *whole* text matches, as ``re.fullmatch(pattern, text, re.ASCII)``.

        The text is ``Completion.text``: EOS has none, a stop token has its own. A token that is only a part of a
        character (byte-level vocabularies) counts as the character U+FFFD.

        Needs the package ``interegular`` (``pip install ppl-align[oracles]``). Raises ``InputError`` where it is
        missing, for patterns that are not regular or that it gets wrong (anchors, ``\b``, back-references, look
        around, possessive quantifiers), and for an LM whose text is not its tokens' texts one after the other.

        >>> from ppl_align import MarkovLM
        >>> lm = MarkovLM(torch.zeros(3, 3), tokens=["a", "b", "."])
        >>> a = Automaton.regex(r"[ab]*\.", lm)
        >>> a.accepting[a.run(torch.tensor([[0, 1, 2], [2, 0, 2]]))].tolist()
        [True, False]
        """
        _check_text_and_lm("regex", pattern, lm)
        return cls._of(lm, regex_characters(pattern))

    @classmethod
    def _searching(cls, method: str, text: str, lm: LM, at_the_end: bool = False) -> Automaton:
        _check_text_and_lm(method, text, lm)
        if not text:
            raise InputError(f"Automaton.{method} needs a text of at least one character")
        try:
            wanted = list(text.encode())
        except UnicodeEncodeError as error:
            raise InputError(f"Automaton.{method}: {text!r} is no text, it holds half a surrogate pair") from error
        moves = _search(wanted, 256, at_the_end).numpy()
        return cls._of(lm, Machine(moves, 0, np.arange(len(moves)) == len(wanted), np.zeros_like(moves)))

    @classmethod
    def _of(cls, lm: LM, machine: Machine | Characters) -> Automaton:
        return cls._read(spell(lm, machine).minimal())

    @classmethod
    def _read(cls, machine: Machine) -> Automaton:
        return cls(torch.from_numpy(machine.moves), machine.start, torch.from_numpy(machine.accepting))

    def minimal(self) -> Automaton:
        """The smallest automaton that accepts the same sequences (Moore's refinement of states that differ)."""
        moves = self.transitions.numpy()
        return self._read(Machine(moves, self.start, self.accepting.numpy(), np.zeros_like(moves)).minimal())

    def run(self, tokens: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The state after the tokens, ``[..., t] -> [...]`` int64; of each row only the first ``lengths [...]``."""
        tokens = checked_tokens(self, tokens, self.vocab_size)
        state = torch.full(tokens.shape[:-1], self.start, dtype=torch.long)
        for t in range(tokens.shape[-1]):
            moved = self.transitions[state, tokens[..., t]]
            state = moved if lengths is None else torch.where(t < lengths, moved, state)
        return state

    def __repr__(self) -> str:
        return f"Automaton({self.num_states} states, V={self.vocab_size})"


def _search(wanted: Sequence[int], size: int, at_the_end: bool = False) -> Tensor:
    """The table of Knuth, Morris & Pratt over ``size`` symbols, ``[len(wanted) + 1, size]``: in state k the last k
    symbols read are the first k of those wanted. The last state is left again only by a search ``at_the_end``."""
    table = torch.zeros(len(wanted) + 1, size, dtype=torch.long)
    border = 0  # the state of what was read without its first symbol: where a mismatch falls back to
    for matched, symbol in enumerate(wanted):
        table[matched] = table[border]
        fallback = int(table[border, symbol])
        table[matched, symbol] = matched + 1
        border = fallback if matched else 0
    table[-1] = table[border] if at_the_end else len(wanted)
    return table


def _check_text_and_lm(method: str, text: object, lm: object) -> None:
    from ppl_align.lm.base import LM

    if not isinstance(text, str) or not isinstance(lm, LM):
        got = f"{type(text).__name__} and {type(lm).__name__}"
        raise InputError(f"Automaton.{method} takes a text and the LM whose tokens spell it, got {got}")
