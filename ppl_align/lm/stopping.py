"""What ends a text besides EOS: tokens, and strings, however they are cut into tokens.

A string ends a text at the first token after which the text, read as bytes, contains it. Where no part of a match is
ever carried from one token to the next, that depends on the token alone and is a set of ids; else an automaton over
token ids follows the text, a state for each particle and one look-up for each token.
"""

from __future__ import annotations

import base64
import zlib
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ppl_align.core.errors import InputError
from ppl_align.lm.transfer import Resident

if TYPE_CHECKING:
    from ppl_align.lm.base import LM, Ids
    from ppl_align.lm.spelling import Machine


class StopText:
    """Follows texts until they contain one of some strings.

    ``moves``   [S, V] int64, the state after each token: the last state, which is never left, is a text that has ended
    ``start``   the state of an empty text

    Equal ones (of the same strings, over the same vocabulary) compare and hash equal."""

    def __init__(self, moves: np.ndarray, start: int, strings: Sequence[str]) -> None:
        self.moves, self.start, self.strings = moves, start, tuple(sorted(strings))
        self.end = len(moves) - 1
        self._table = Resident(torch.from_numpy(moves))
        self._key = (self.strings, start, moves.shape, moves.tobytes())
        self._hash = hash(self._key)

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, StopText) and self._hash == other._hash and self._key == other._key)

    def __hash__(self) -> int:
        return self._hash

    def as_dict(self) -> dict[str, Any]:
        """For files: the table nearly repeats itself, and is packed."""
        packed = base64.b64encode(zlib.compress(self.moves.astype("<i4").tobytes())).decode()
        return {"start": self.start, "strings": list(self.strings), "states": len(self.moves), "moves": packed}

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> StopText:
        """The inverse of :meth:`as_dict`."""
        moves = np.frombuffer(zlib.decompress(base64.b64decode(saved["moves"])), dtype="<i4").astype(np.int64)
        return cls(moves.reshape(saved["states"], -1), saved["start"], saved["strings"])

    def after(self, states: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """The states after one more token of each text, ``[m]``, on the host."""
        return self.moves[states, tokens]

    def ended(self, tokens: Tensor) -> Tensor:
        """Has the text ended with this token, or before? ``[..., T] -> [..., T]`` bool, where ``tokens`` are."""
        table = self._table.on(tokens.device)
        state = torch.full(tokens.shape[:-1], self.start, dtype=torch.long, device=tokens.device)
        found = torch.zeros(tokens.shape, dtype=torch.bool, device=tokens.device)
        for t in range(tokens.shape[-1]):
            state = table[state, tokens[..., t]]
            found[..., t] = state == self.end
        return found

    def ends(self, prefix: Ids) -> list[int]:
        """The tokens that end the text after a prefix that has not ended."""
        state = self.start
        for token in prefix:
            state = int(self.moves[state, token])
        return np.flatnonzero(self.moves[state] == self.end).tolist()


class StopIds(tuple[int, ...]):
    """The tokens that end a text wherever they are written; ``text``: the strings that several tokens may spell."""

    text: StopText | None

    def __new__(cls, ids: Iterable[int] = (), text: StopText | None = None) -> StopIds:
        made = super().__new__(cls, tuple(ids))
        made.text = text if text is not None else getattr(ids, "text", None)
        return made

    def __getnewargs__(self) -> tuple[Ids, StopText | None]:
        return tuple(self), self.text

    def __eq__(self, other: object) -> bool:
        return tuple.__eq__(self, other) is True and self.text == getattr(other, "text", None)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return tuple.__hash__(self) if self.text is None else hash((tuple(self), self.text))


def sequence_ends(tokens: Tensor, terminal: Sequence[int]) -> Tensor:
    """Does the text end with this token, or has it ended before? ``[..., T] -> [..., T]`` bool.

    ``terminal``: ids, or :class:`StopIds` of all that ends a text."""
    ends = torch.zeros(tokens.shape, dtype=torch.bool, device=tokens.device)
    if len(terminal):
        ends = torch.isin(tokens, torch.tensor(tuple(terminal), device=tokens.device)).long().cumsum(-1) > 0
    text = getattr(terminal, "text", None)
    return ends if text is None else ends | text.ended(tokens)


def resolve_stop(lm: LM, stop: int | str | Sequence[int | str] | None, prompts: Sequence[Ids] = ()) -> StopIds:
    """The tokens and strings that end a text of ``lm`` after these prompts.

    A string that names a special token is that token, and the text that says so as well.

    Raises ``InputError`` for ids out of range, and for strings that the tokens cannot spell."""
    if stop is None:
        return StopIds()
    ids: set[int] = set()
    strings: set[str] = set()
    for item in [stop] if isinstance(stop, (int, str)) else stop:
        if isinstance(item, str):
            strings.add(_checked(item))
        elif isinstance(item, int) and not isinstance(item, bool) and 0 <= item < lm.vocab_size:
            ids.add(int(item))
        else:
            raise InputError(f"stop={item!r}: token ids of {lm.name} run from 0 to {lm.vocab_size - 1}")
    found, text = _spelt(lm, tuple(sorted(strings)), prompts) if strings else ((), None)
    return StopIds(sorted(ids.union(found)), text)


def _checked(text: str) -> str:
    if not text:
        raise InputError("stop='' would end every text at once: give a string of at least one character")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError(f"stop={text!r} is no text: it holds half of a surrogate pair") from None
    return text


def _spelt(lm: LM, strings: tuple[str, ...], prompts: Sequence[Ids]) -> tuple[Ids, StopText | None]:
    """What these strings come to, over token ids; made once per LM."""
    from ppl_align.lm.spelling import goes_on_from

    lm = goes_on_from(lm, prompts)
    return lm.cached(("stop strings", strings), lambda: _compiled(lm, strings))


def _compiled(lm: LM, strings: tuple[str, ...]) -> tuple[Ids, StopText | None]:
    from ppl_align.lm.spelling import Spelling, spell, who_spells

    special = {name: v for v, name in lm.special_tokens.items()}
    tokenizer = getattr(who_spells(lm), "tokenizer", None)
    if tokenizer is not None:
        special |= {tokenizer.convert_ids_to_tokens(v): v for v in lm.eos_ids}
    ids = {special[text] for text in strings if text in special}
    try:
        Spelling.of(lm)
    except InputError:  # its text is not what its tokens spell: all that can be said is which tokens contain a string
        for text in strings:
            hits = {v for v, token in enumerate(lm.vocabulary) if text in token}
            if text not in special and (not hits or len(text.encode()) > 1):
                why = "several of its tokens may" if hits else f"no token of {lm.name} does"
                raise InputError(
                    f"stop={text!r}: the text of {lm.name} is not what its tokens spell, one after the other, so that "
                    f"nothing tells when it contains this string ({why}): give token ids"
                ) from None
            ids |= hits
        return tuple(sorted(ids)), None
    for text in strings:
        machine = spell(lm, _search([text.encode()]))
        if text not in special and not machine.reachable().accepting.any():
            raise InputError(f"stop={text!r}: the tokens of {lm.name} cannot spell it")
    machine = spell(lm, _search([text.encode() for text in strings])).minimal()
    if not machine.accepting.any():  # special tokens alone
        return tuple(sorted(ids)), None
    end, last = int(machine.accepting.argmax()), len(machine.moves) - 1
    order = np.arange(last + 1)
    order[end], order[last] = last, end  # swap: the end is the last state
    table, start = order[machine.moves[order]], int(order[machine.start])
    if last == 1:
        return tuple(sorted({*ids, *np.flatnonzero(table[start] == last).tolist()})), None
    return tuple(sorted(ids)), StopText(table, start, strings)


def _search(words: Sequence[bytes]) -> Machine:
    """The automaton of Aho & Corasick (1975) over bytes; the last state, which is never left, is that a word was
    found."""
    from ppl_align.lm.spelling import Machine

    goes: list[dict[int, int]] = [{}]
    found = [False]
    for word in words:
        at = 0
        for byte in word:
            if byte not in goes[at]:
                goes[at][byte] = len(goes)
                goes.append({})
                found.append(False)
            at = goes[at][byte]
        found[at] = True
    end = len(goes)
    moves = np.zeros((end + 1, 256), dtype=np.int64)
    fallback = [0] * end
    queue = deque([0])
    while queue:  # breadth first: the state that a mismatch falls back to is complete
        at = queue.popleft()
        moves[at] = moves[fallback[at]] if at else 0
        found[at] |= found[fallback[at]]
        for byte, to in goes[at].items():
            fallback[to] = int(moves[fallback[at], byte]) if at else 0
            moves[at, byte] = to
            queue.append(to)
    moves[:end] = np.where(np.array([*found, True])[moves[:end]], end, moves[:end])
    moves[end] = end
    return Machine(moves, 0, np.arange(end + 1) == end, np.zeros_like(moves))
