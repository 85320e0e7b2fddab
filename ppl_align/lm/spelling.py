"""What the tokens of a language model spell, and from there to automata over token ids.

A text is the bytes that its tokens spell, one after the other, read as UTF-8. A token of a byte-level vocabulary may be
a part of a character, and what is no character (half of one, at the end) shows as U+FFFD. Some tokenizers leave out the
space in front of a text: its first token is spelt differently.

(Decoders with ``ByteFallback`` show every byte of a run of byte tokens as U+FFFD if one of them is no character. Here,
the others are what they are.)
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch

from ppl_align.core.errors import InputError
from ppl_align.lm.base import LM, Voiced

_BROKEN = "\ufffd"  # what is shown for bytes that are no character
_FALLBACK = re.compile(r"<0x([0-9A-Fa-f]{2})>")


# -- what tokens spell --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spelling:
    """``within``  the bytes of each token inside of a text; of a special token its name, where completions show it
    ``first``   the same for the first token that spells anything; mostly the same list"""

    within: list[bytes]
    first: list[bytes]

    def text(self, ids: Sequence[int]) -> str:
        """What a sequence of tokens spells."""
        return self.spelt(ids).decode(errors="replace")

    def spelt(self, ids: Sequence[int]) -> bytes:
        """The same as bytes, which may end within a character."""
        start = next((i for i, v in enumerate(ids) if self.within[v]), None)
        return b"".join([self.first[v] if i == start else self.within[v] for i, v in enumerate(ids)])

    @classmethod
    def of(cls, lm: LM) -> Spelling:
        """Made once per LM (SmolLM2: 0.3 s). A mixture spells as its first member, a prompted LM as what it wraps.

        Raises ``InputError`` if the text of a sequence is not what its tokens spell, one after the other."""
        lm = who_spells(lm)
        return lm.cached("spelling", lambda: _spelling(lm))


def goes_on_from(lm: LM, prompts: Sequence[Sequence[int]]) -> LM:
    """An LM whose texts begin as they do after these prompts: where there is text before, the first token is spelt as
    any other. For compiling what reads texts; ``lm`` itself, if that makes no difference.

    Raises ``InputError`` where some prompts have text and some have none, and it does make one."""
    speller = who_spells(lm)
    try:
        spelling = Spelling.of(speller)
    except InputError:
        return lm  # whatever reads texts says so
    if spelling.first is spelling.within:
        return lm
    known: dict[tuple[int, ...], bool] = speller.cached("has text", dict)
    new = [tuple(prompt) for prompt in prompts if tuple(prompt) not in known]
    known.update(zip(new, map(bool, speller.decode_batch(new)), strict=True) if new else ())
    found = {known[tuple(prompt)] for prompt in prompts}
    if len(found) > 1:
        raise InputError(
            f"some prompts are empty and some are not: {lm.name} spells the first token of a text in another way, so "
            f"that strings mean two things here; give all of them some text"
        )
    if True not in found:
        return lm

    def inside() -> LM:
        other = copy.copy(speller)
        other.__dict__["_caches"] = {}  # whatever a copy of this LM takes along
        other.cached("spelling", lambda: Spelling(spelling.within, spelling.within))
        return other

    return speller.cached("inside of a text", inside)


def who_spells(lm: LM) -> LM:
    """The LM whose tokens they are: of a mixture its first member, of a prompted LM the one that it wraps."""
    while isinstance(lm, Voiced):
        lm = lm.voice
    return lm


def _spelling(lm: LM) -> Spelling:
    texts, tokenizer = lm.vocabulary, getattr(lm, "tokenizer", None)
    names: dict[int, str] = {v: name for name, v in getattr(tokenizer, "get_vocab", dict)().items()}
    after = texts if tokenizer is None else _after_a_word(lm, texts, names)
    special = lm.special_tokens
    within = [_bytes(text, names.get(v)) for v, text in enumerate(after)]
    shown = {v: name.encode() for v, name in special.items() if not within[v]}
    first = within
    if after != texts:
        first = [_first(w, text) for w, text in zip(within, texts, strict=True)]
    spelling = Spelling(within, first)
    whole = [v for v, text in enumerate(after) if _BROKEN not in text and v not in special]
    if lm.decode(whole) != spelling.text(whole):
        if tokenizer is None:
            raise InputError(
                f"the tokens of {lm.name} spell no text: give it tokens=[...] or a tokenizer, or constrain its ids "
                f"(AcceptedBy, LengthLimit(max_tokens=))"
            )
        raise InputError(
            f"the text of {lm.name} is not what its tokens spell, one after the other: constrain its ids "
            f"(AcceptedBy, LengthLimit(max_tokens=))"
        )
    if not shown:
        return spelling
    seen = [shown.get(v, piece) for v, piece in enumerate(within)]
    return Spelling(seen, seen if first is within else [shown.get(v, piece) for v, piece in enumerate(first)])


def _after_a_word(lm: LM, texts: list[str], names: dict[int, str]) -> list[str]:
    """What each token adds to a text that has begun with another one."""
    plain = (v for v, text in enumerate(texts) if text.isascii() and text.isalnum() and names.get(v) == text)
    word = next(plain, None)
    if word is None:
        return texts
    both = lm.decode_batch([[word, v] for v in range(lm.vocab_size)])
    return [text.removeprefix(texts[word]) for text in both]


def _bytes(text: str, name: str | None) -> bytes:
    """Of a token that adds ``text``; of a part of a character its name in the vocabulary tells the bytes."""
    if _BROKEN in text and name is not None:
        fallback = _FALLBACK.fullmatch(name)
        known = fallback is not None or all(letter in _byte_of() for letter in name)
        spelt = bytes([int(fallback[1], 16)]) if fallback else bytes(_byte_of().get(letter, 0) for letter in name)
        if known and spelt.decode(errors="replace") == text:
            return spelt
    return text.encode()


def _first(within: bytes, text: str) -> bytes:
    """Of a token that spells ``text`` on its own."""
    if within.decode(errors="replace") == text:
        return within
    return within[1:] if within[1:].decode(errors="replace") == text else text.encode()


@cache
def _byte_of() -> dict[str, int]:
    """The letters that stand for bytes in byte-level vocabularies (Radford et al. 2019, the code of GPT-2): what can
    be printed stands for itself, the rest for the letters from U+0100 on."""
    printed = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in printed]
    return {chr(byte): byte for byte in printed} | {chr(256 + i): byte for i, byte in enumerate(rest)}


# -- automata over text, and over tokens ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Machine:
    """A finite automaton over A symbols: bytes, or tokens.

    ``moves``  [S, A] int64, the next state    ``start``    ``accepting``  [S] bool
    ``counts``  [S, A], what each move adds to a count"""

    moves: np.ndarray
    start: int
    accepting: np.ndarray
    counts: np.ndarray

    def reachable(self) -> Machine:
        """Without the states that no text leads to."""
        reached = np.zeros(len(self.moves), dtype=bool)
        reached[self.start] = True
        while not reached[self.moves[reached]].all():
            reached[self.moves[reached]] = True
        name = reached.cumsum() - 1
        return Machine(name[self.moves[reached]], int(name[self.start]), self.accepting[reached], self.counts[reached])

    def minimal(self) -> Machine:
        """The smallest machine that accepts the same (Moore's refinement of states that differ); it counts nothing."""
        small = self.reachable()
        group, count = np.unique(small.accepting, return_inverse=True)[1], 0
        while count < int(group.max()) + 1:  # two states differ if a symbol leads them into different groups
            count = int(group.max()) + 1
            seen = torch.from_numpy(np.concatenate([group[:, None], group[small.moves]], 1))
            group = seen.unique(dim=0, return_inverse=True)[1].numpy()
        member = np.zeros(count, dtype=np.int64)
        member[group] = np.arange(len(group))
        moves = group[small.moves[member]]
        return Machine(moves, int(group[small.start]), small.accepting[member], np.zeros_like(moves))


@dataclass(frozen=True)
class Characters:
    """A finite automaton over characters: ``step(state, character) -> state``, states 0 to ``len(accepting) - 1``."""

    step: Callable[[int, str], int]
    start: int
    accepting: np.ndarray


def spell(lm: LM, machine: Machine | Characters) -> Machine:
    """The same automaton over tokens: where what token v spells leads from each state.

    Where a text may begin with another spelling of its first token, that is one state more."""
    spelling = Spelling.of(lm)
    within: Sequence[Sequence[int]]
    first: Sequence[Sequence[int]]
    if isinstance(machine, Characters):
        texts = [[piece.decode(errors="replace") for piece in part] for part in (spelling.within, spelling.first)]
        alphabet = {character: i for i, character in enumerate(sorted(set("".join(texts[0] + texts[1]))))}
        within, first = ([[alphabet[c] for c in text] for text in part] for part in texts)
        states = range(len(machine.accepting))
        table = np.array([[machine.step(s, c) for c in alphabet] for s in states], dtype=np.int64)
        machine = Machine(table, machine.start, machine.accepting, np.zeros_like(table))
    else:
        within, first = spelling.within, spelling.first
    moves, counts = _walk(within, machine)
    if spelling.first is spelling.within:
        return Machine(moves, machine.start, machine.accepting, counts)
    silent = np.array([not piece for piece in within])
    opened, counted = (part[machine.start] for part in _walk(first, machine))
    beginning = len(moves)
    return Machine(
        np.vstack([moves, np.where(silent, beginning, opened)]),
        beginning,
        np.append(machine.accepting, machine.accepting[machine.start]),
        np.vstack([counts, counted]),
    )


def _walk(pieces: Sequence[Sequence[int]], machine: Machine) -> tuple[np.ndarray, np.ndarray]:
    """From each state through each piece: where it leads and what it counts, both ``[S, V]``."""
    lengths = np.array([len(piece) for piece in pieces])
    flat = np.array([symbol for piece in pieces for symbol in piece], dtype=np.int64)
    begins = lengths.cumsum() - lengths
    states = np.repeat(np.arange(len(machine.moves))[:, None], len(pieces), axis=1)
    counted = np.zeros_like(states)
    for k in range(lengths.max(initial=0)):
        longer = np.flatnonzero(lengths > k)
        at = states[:, longer], flat[begins[longer] + k]
        counted[:, longer] += machine.counts[at]
        states[:, longer] = machine.moves[at]
    return states, counted
