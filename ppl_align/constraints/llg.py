"""Grammars over token ids, read by llguidance (https://github.com/guidance-ai/llguidance, MIT).

A matcher has read some bytes and says which tokens may come next. It is forked, never rewound: the matcher of a prefix
is a copy of its parent's that has read one token more. Masks are computed for bytes, without llguidance's shortcut of
forcing the canonical tokens where the bytes leave no choice (``no_forcing``): a token is allowed if and only if what it
spells can go on to an acceptable text. That is the event that a constraint conditions on.

Where the first token of a text is spelt differently (without its space), what it spells there is read byte by byte.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppl_align.constraints.foreseen import Foreseen
from ppl_align.core.errors import InputError, RunError
from ppl_align.lm.base import LM, Ids
from ppl_align.lm.matcher import Matcher
from ppl_align.lm.spelling import Spelling, who_spells
from ppl_align.lm.transfer import CPU, Resident, upload

_REMEMBERED = 1024  # matchers that are kept, at least; one takes some 4 kB and its mask V / 8 bytes
_NEAR, _TRIES = 4, 1024  # so many tokens before the limit, so many continuations are tried (some 50 microseconds each)
_CHEAP = 4  # tries of a last token count as one: they take a microsecond


def llguidance() -> Any:
    """The package. Raises ``InputError`` where it is not installed."""
    try:
        import llguidance as package
    except ImportError as error:
        raise InputError("Regex, JsonSchema and Grammar need llguidance: pip install ppl-align[constraints]") from error
    return package


def check_grammar(grammar: str, what: str, located: bool) -> None:
    """Raises ``InputError`` with llguidance's reason, in one line, for a Lark grammar that it cannot read.

    ``located``: say in which line of the grammar (one that the user wrote)."""
    llguidance()
    message = _refused(grammar)
    if message is not None:
        reason = cause_in(message)
        if not located:
            reason = re.sub(r"^line \d+: (failed to compile JSON schema: |invalid regex .*\(in regex\): )?", "", reason)
        raise InputError(f"{what} cannot be read: {reason}")


@lru_cache(maxsize=256)
def _refused(grammar: str) -> str | None:
    """Why a grammar cannot be read. A program that writes its constraint anew asks at every execution."""
    matcher = llguidance().LLMatcher
    failed, messages = matcher.validate_grammar_with_warnings(matcher.grammar_from_lark(grammar))
    return messages[0] if failed else None


def accepted(grammar: str, texts: Sequence[str]) -> list[bool]:
    """Which of the texts a Lark grammar accepts, read byte by byte. Raises ``InputError`` where it cannot be read."""
    first, found = _started(_bytewise(), grammar, "a grammar"), []
    for text in texts:
        ids = [1 + byte for byte in text.encode()]
        matcher = first.deep_copy()
        read = matcher.validate_tokens(ids) == len(ids)
        found.append(bool(read and matcher.consume_tokens(ids) and matcher.is_accepting()))
    return found


def _started(tokenizer: Any, grammar: str, what: str) -> Any:
    """A matcher that has read nothing. Raises ``InputError`` where the grammar cannot be read."""
    package = llguidance()
    matcher = package.LLMatcher(tokenizer, package.LLMatcher.grammar_from_lark(grammar), log_level=0)
    if matcher.is_error():
        raise InputError(f"{what} cannot be read: {cause_in(matcher.get_error())}")
    return matcher


@lru_cache(maxsize=1)
def _bytewise() -> Any:
    """A tokenizer of bytes: id 0 ends a text, 1 + b is the byte b."""
    return _from_bytes([], 0)


def cause_in(message: str) -> str:
    """What went wrong, out of a message that also draws where.

    >>> cause_in('at 1(8): invalid regex "[" (in regex): regex parse error:\\n    [\\n    ^\\nerror: unclosed class\\n')
    'unclosed class'
    >>> cause_in('at 2(4): unknown name: "b"\\n   2 | a: b\\n          ^\\n')
    'line 2: unknown name: "b"'
    """
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    reasons = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return re.sub(r"^(?:at )?(\d+)\(\d+\): ", r"line \1: ", (reasons or lines or ["no reason given"])[0])


class Vocabulary:
    """What the tokens of an LM spell, as llguidance wants to know it.

    ``tokenizer``  llguidance's; beyond the ids of the LM it has one that ends a text where the LM has no EOS, and one
                   for each byte
    ``opens``      is the first token of a text spelt differently from others?
    ``text_bits``  [W] int32, one bit per id: those that spell something. EOS does not, and no id without a text

    Masks travel to the device as bits, and are unpacked there: each byte looks up its eight verdicts."""

    def __init__(self, lm: LM) -> None:
        self.vocab_size, self.eos_ids = lm.vocab_size, lm.eos_ids
        self.spelling = Spelling.of(lm)
        end = lm.vocab_size if lm.eos_id is None else lm.eos_id
        self.tokenizer = _from_bytes(self.spelling.within, end)
        self.opens = self.spelling.first is not self.spelling.within
        self.num_words = (self.tokenizer.vocab_size + 31) // 32
        spells = np.zeros(32 * self.num_words, dtype=np.uint8)
        spells[: lm.vocab_size] = [bool(piece) for piece in self.spelling.within]
        spells[[end, *lm.eos_ids]] = 0
        self.text_bits = np.packbits(spells, bitorder="little").view(np.int32)
        self.spells = spells.astype(bool)
        every_byte = np.arange(256, dtype=np.uint8)[:, None]
        self.eight = Resident(
            torch.from_numpy(np.unpackbits(every_byte, axis=1, bitorder="little").view(np.int64)[:, 0])
        )

    def unpacked(self, bits: np.ndarray) -> np.ndarray:
        """``[m, W]`` int32 -> ``[m, V]`` bool, on the host."""
        return np.unpackbits(bits.view(np.uint8), axis=1, count=self.vocab_size, bitorder="little").view(bool)

    def packed(self, mask: np.ndarray) -> np.ndarray:
        """``[m, V]`` bool -> ``[m, W]`` int32: the inverse of :meth:`unpacked`."""
        padded = np.zeros((len(mask), 32 * self.num_words), dtype=bool)
        padded[:, : self.vocab_size] = mask
        return np.packbits(padded, axis=1, bitorder="little").view(np.int32)

    def mask(self, bits: np.ndarray, device: torch.device) -> Tensor:
        """``[m, W]`` int32 -> ``[m, V]`` bool, on the device."""
        octets = upload(bits.view(np.uint8)[:, : -(-self.vocab_size // 8)], device)
        verdicts = self.eight.on(device).index_select(0, octets.reshape(-1).int())
        return verdicts.view(torch.bool).reshape(len(bits), -1)[:, : self.vocab_size]

    @classmethod
    def of(cls, lm: LM) -> Vocabulary:
        """Made once per LM (SmolLM2: 0.7 s)."""
        lm = who_spells(lm)
        return lm.cached("llguidance", lambda: cls(lm))

    def first(self, token: int) -> list[int]:
        """The ids that spell the first token of a text byte by byte."""
        return [self.tokenizer.vocab_size - 256 + byte for byte in self.spelling.first[token]]


def _from_bytes(pieces: Sequence[bytes], end: int) -> Any:
    """A tokenizer with these tokens, ``end`` among them or right behind, and the 256 bytes at the end."""
    package = llguidance()
    spelt = [*pieces, *[b""] * (end == len(pieces)), *(bytes([byte]) for byte in range(256))]
    spelt[end] = b""
    return package.LLTokenizer(package.TokenizerWrapper(_Spelt(spelt, end)), n_vocab=len(spelt), eos_token=end)


class _Spelt:
    """The face of a tokenizer that ``llguidance.TokenizerWrapper`` asks for. Special tokens are spelt b""."""

    bos_token_id = None

    def __init__(self, tokens: list[bytes], end: int) -> None:
        self.tokens, self.eos_token_id = tokens, end
        self.special_token_ids = [v for v, token in enumerate(tokens) if not token]

    def __call__(self, text: bytes) -> list[int]:
        ids: list[int] = []
        while text:
            fits = [v for v, token in enumerate(self.tokens) if token and text.startswith(token)]
            if not fits:
                break
            ids.append(max(fits, key=lambda v: len(self.tokens[v])))
            text = text[len(self.tokens[ids[-1]]) :]
        return ids


class _Place:
    """Where the matcher stands after a prefix. ``bits``: what may come next, computed when it is asked for."""

    __slots__ = ("accepting", "bits", "matcher")

    def __init__(self, matcher: Any) -> None:
        self.matcher = matcher
        self.accepting = bool(matcher.is_accepting())
        self.bits: np.ndarray | None = None


class GuidanceMatcher(Matcher):
    """A Lark grammar over the ids of ``lm``; ``what`` names the constraint in errors.

    In the last tokens before the length limit, what does not lead to an acceptable text in time is forbidden, as far
    as few enough continuations are to be tried; elsewhere the grammar looks ahead without regard to the tokens left.

    Raises ``InputError`` for a grammar that llguidance cannot read, or that no text of ``lm`` satisfies."""

    def __init__(self, lm: LM, grammar: str, what: str, foresee: Callable[[], Foreseen | None] | None = None) -> None:
        self.vocabulary, self.what, self.foresee = Vocabulary.of(lm), what, foresee
        self.can_foresee = foresee is not None
        self.root = _Place(_started(self.vocabulary.tokenizer, grammar, what))
        self.young: dict[Ids, _Place | None] = {}  # places of late; None: no text begins like this
        self.old: dict[Ids, _Place | None] = {}
        if not self.root.accepting and not self._bits(self.root).any():
            raise InputError(f"{what} cannot be met: {lm.name} can write no such text")

    @cached_property
    def _foreseen(self) -> Foreseen | None:
        found = None if self.foresee is None else self.foresee()
        if found is None:
            self.too_large = f"the automaton of {self.what} is too large"
        return found

    def foreseen(self) -> Foreseen | None:
        return self._foreseen

    def allowed(self, prefixes: Sequence[Ids], left: int, device: torch.device = CPU) -> Tensor:
        places = self._places(prefixes)
        bits = np.zeros((len(prefixes), self.vocabulary.num_words), dtype=np.int32)
        for i, place in enumerate(places):
            if place is not None:
                bits[i] = self._bits(place)
        if left < _NEAR:
            bits = self._only_in_time(places, bits, left)
        ends = [place is not None and place.accepting for place in places]
        for eos_id in self.vocabulary.eos_ids:
            byte, bit = divmod(eos_id, 8)
            bits.view(np.uint8)[:, byte] |= np.array(ends, dtype=np.uint8) << bit
        return self.vocabulary.mask(bits, device)

    def _only_in_time(self, places: Sequence[_Place | None], bits: np.ndarray, left: int) -> np.ndarray:
        """Without what does not lead to an acceptable text before the limit, in rows that allow few enough."""
        mask = self.vocabulary.unpacked(bits)
        few = mask.sum(1) <= (_TRIES if left else _CHEAP * _TRIES)
        for i, place in enumerate(places):
            if few[i] and place is not None:
                last = np.flatnonzero(mask[i])
                mask[i, last] = self._in_time(place, last.tolist(), left, _TRIES)
        return self.vocabulary.packed(mask)

    def accepts(self, prefixes: Sequence[Ids]) -> Tensor:
        return torch.tensor([place is not None and place.accepting for place in self._places(prefixes)])

    def viable(self, prefixes: Sequence[Ids], left: int) -> Tensor:
        places = dict(zip(map(tuple, prefixes), self._places(prefixes), strict=True))  # particles share prefixes
        verdicts = {prefix: self._viable(place, left, _TRIES) for prefix, place in places.items()}
        return torch.tensor([verdicts[tuple(prefix)] for prefix in prefixes])

    def _viable(self, place: _Place | None, left: int, tries: int) -> bool:
        if place is None or place.accepting or left < 1:
            return place is not None and place.accepting
        bits = self._bits(place)
        if left > _NEAR or not bits.any():
            return bool(bits.any())
        mask = self.vocabulary.unpacked(bits[None])[0]
        if mask.sum() > (tries if left > 1 else _CHEAP * tries):
            return True
        return any(self._in_time(place, np.flatnonzero(mask).tolist(), left - 1, tries))

    def _in_time(self, place: _Place, tokens: list[int], left: int, tries: int) -> list[bool]:
        """Can the text become acceptable within ``left`` more tokens after each of these? True where it takes more
        than ``tries`` to tell."""
        if left == 0:
            return self._ends(place, tokens)
        tries //= max(1, len(tokens))
        return [self._viable(self._after(place, token), left, tries) for token in tokens]

    def _places(self, prefixes: Sequence[Ids]) -> list[_Place | None]:
        if len(self.young) > max(_REMEMBERED, 2 * len(prefixes)):
            self.young, self.old = {}, self.young
        return [self._place(tuple(prefix)) for prefix in prefixes]

    def _place(self, prefix: Ids) -> _Place | None:
        """From the longest prefix of it that is remembered: mostly its parent, after resampling perhaps the root."""
        known = len(prefix)
        while known and prefix[:known] not in self.young and prefix[:known] not in self.old:
            known -= 1
        begun = prefix[:known]
        place = self.young.setdefault(begun, self.old.get(begun)) if known else self.root
        for t in range(known, len(prefix)):
            place = None if place is None else self._after(place, prefix[t])
            self.young[prefix[: t + 1]] = place
        return place

    def _after(self, place: _Place, token: int) -> _Place | None:
        ids = self._spelt(place, token)
        if not self.vocabulary.spells[token] or place.matcher.validate_tokens(ids) < len(ids):
            return None
        matcher = place.matcher.deep_copy()
        matcher.consume_tokens(ids)
        if matcher.is_error():  # the token was valid, so this is a limit of llguidance and not an answer
            raise RunError(f"{self.what}: llguidance gave up: {cause_in(matcher.get_error())}")
        return _Place(matcher)

    def _spelt(self, place: _Place, token: int) -> list[int]:
        """The ids to give to the matcher for a token that is written there."""
        return self.vocabulary.first(token) if self.vocabulary.opens and place is self.root else [token]

    def _bits(self, place: _Place) -> np.ndarray:
        """``[W]`` int32: ids that spell an allowed continuation (EOS is none of them)."""
        if place.bits is None:
            place.bits = np.zeros(self.vocabulary.num_words, dtype=np.int32)
            if self.vocabulary.opens and place is self.root:
                place.bits = self._openings()
            elif not place.matcher.is_stopped():
                matcher = place.matcher.deep_copy()  # one that finds nothing to allow is of no use afterwards
                matcher.unsafe_compute_mask_ptr(place.bits.ctypes.data, place.bits.nbytes)
                if not matcher.is_error():
                    place.bits &= self.vocabulary.text_bits
                elif matcher.get_error().startswith("NoExtensionBias"):  # no token goes on from here
                    place.bits[:] = 0
                else:
                    raise RunError(f"{self.what}: llguidance gave up: {cause_in(matcher.get_error())}")
        return place.bits

    def _openings(self) -> np.ndarray:
        """``[W]`` int32: ids that may come first."""
        ids = ((v, self._spelt(self.root, int(v))) for v in np.flatnonzero(self.vocabulary.spells))
        mask = np.zeros((1, self.vocabulary.vocab_size), dtype=bool)
        mask[0, [v for v, spelt in ids if self.root.matcher.validate_tokens(spelt) == len(spelt)]] = True
        return self.vocabulary.packed(mask)[0]

    def _ends(self, place: _Place, tokens: list[int]) -> list[bool]:
        """Is the text acceptable once one of these allowed tokens is added?"""
        matcher, found = place.matcher.deep_copy(), []
        for token in tokens:
            ids = self._spelt(place, token)
            matcher.consume_tokens(ids)
            found.append(bool(matcher.is_accepting()))
            matcher.rollback(len(ids))
        return found
