"""How long a completion may be: a constraint that counts, and knows what the tokens left can still add.

A token adds words to a text: as many as begin within it. How many can come with k more tokens is a set of numbers,

    G_k(s) = union over tokens v of  (words that v begins in state s) + G_{k-1}(state after v),     G_0(s) = {end of s},

so that looking ahead is exact: a token is allowed if the words read so far plus some number out of G_k are within the
bounds, for some k that the bounds on tokens and the tokens left permit.

The state is whether the text is inside of a word, and the bytes that may yet become a white space beyond ASCII (U+3000
takes three): whether they begin a word is known when the next byte comes. Where none comes, they are no character, and
no white space: in front of them, outside of a word, the end begins one, end of s = 1; elsewhere it is 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache, cached_property

import numpy as np
import torch
from torch import Tensor

from ppl_align.constraints.base import Constraint
from ppl_align.constraints.foreseen import DEAD, Foreseen
from ppl_align.core.errors import InputError
from ppl_align.lm.base import LM, Ids
from ppl_align.lm.matcher import Matcher
from ppl_align.lm.spelling import Machine, spell
from ppl_align.lm.transfer import CPU, Resident, upload

Move = tuple[int, int]  # words that begin, the state afterwards


@dataclass(frozen=True, kw_only=True)
class LengthLimit(Constraint):
    """The completion has so many tokens (EOS not counted) and so many words (as ``text.split()`` counts them).

    Bounds are inclusive; None leaves one open. For characters: ``Regex("(?s).{10,200}")``.

    Raises ``InputError`` for bounds that are negative, cross each other, or are not given at all.

    >>> LengthLimit(min_words=3, max_words=5)
    LengthLimit(min_words=3, max_words=5)
    """

    min_tokens: int | None = None
    max_tokens: int | None = None
    min_words: int | None = None
    max_words: int | None = None

    def __post_init__(self) -> None:
        given = {name: bound for name, bound in vars(self).items() if bound is not None}
        if not given:
            raise InputError("LengthLimit needs a bound: min_tokens=, max_tokens=, min_words= or max_words=")
        for name, bound in given.items():
            if isinstance(bound, bool) or not isinstance(bound, int) or bound < 0:
                raise InputError(f"LengthLimit: {name} must be a number of {name[4:]}, at least 0, got {bound!r}")
        for unit in ("tokens", "words"):
            low, high = given.get(f"min_{unit}", 0), given.get(f"max_{unit}")
            if high is not None and low > high:
                raise InputError(f"LengthLimit: min_{unit}={low} is more than max_{unit}={high}: no text is both")

    def __repr__(self) -> str:
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        return f"LengthLimit({', '.join(f'{name}={bound}' for name, bound in given.items() if bound is not None)})"

    def compile(self, lm: LM) -> LengthMatcher:
        return LengthMatcher(self, lm)


class LengthMatcher(Matcher):
    """Counts tokens and words of prefixes. Tokens are of few kinds, as far as words are concerned:

    ``kind``    [V] the kind of each token; EOS is one of its own, the last
    ``moves``   by kind and state: how many words begin, and the state afterwards
    ``ends``    by state: does the end of the text begin a word?"""

    def __init__(self, bounds: LengthLimit, lm: LM) -> None:
        self.bounds, self.eos_ids = bounds, lm.eos_ids
        self.low, self.high = bounds.min_words or 0, bounds.max_words
        words = (
            _nothing(lm) if bounds.min_words is None and bounds.max_words is None else spell(lm, _words()).reachable()
        )
        self.start, self.ends = words.start, words.accepting.astype(int).tolist()
        read = ~np.isin(np.arange(lm.vocab_size), lm.eos_ids)
        moves = np.stack([words.counts, words.moves], -1).transpose(1, 0, 2)[read]  # [V, S, 2]
        kinds: dict[bytes, int] = {}
        kind = [kinds.setdefault(one.tobytes(), len(kinds)) for one in moves]
        example = np.unique(kind, return_index=True)[1]
        self.moves: list[list[Move]] = [[(begun, then) for begun, then in one] for one in moves[example].tolist()]
        every = np.full(lm.vocab_size, len(kinds))
        every[read] = kind
        self.kind = Resident(torch.from_numpy(every))
        self.possible = [sorted({move[state] for move in self.moves}) for state in range(len(self.ends))]
        self.gains = [[1 << end for end in self.ends]]  # G_k by state: bit g stands for the number g
        self.unions: dict[tuple[int, int], list[int]] = {}

    def allowed(self, prefixes: Sequence[Ids], left: int, device: torch.device = CPU) -> Tensor:
        verdicts: dict[tuple[int, Move], list[bool]] = {}  # by kind, EOS last
        read = [(len(prefix), self._read(prefix)) for prefix in prefixes]
        for length, (words, state) in set(read):
            reachable = self._reachable(length + 1, left)
            moves = (kind[state] for kind in self.moves)
            ends = self._meets(words, self._reachable(length, 0)[state])
            found = [*(self._meets(words + begun, reachable[then]) for begun, then in moves), ends]
            verdicts[length, (words, state)] = found
        rows = torch.tensor([verdicts[what] for what in read], dtype=torch.bool)
        return upload(rows, device)[:, self.kind.on(device)]

    def accepts(self, prefixes: Sequence[Ids]) -> Tensor:
        return self.viable(prefixes, 0)

    def viable(self, prefixes: Sequence[Ids], left: int) -> Tensor:
        verdicts = []
        for prefix in prefixes:
            words, state = self._read(prefix)
            verdicts.append(self._meets(words, self._reachable(len(prefix), left)[state]))
        return torch.tensor(verdicts, dtype=torch.bool)

    can_foresee = True

    def foreseen(self) -> Foreseen:
        return self._foreseen

    @cached_property
    def _foreseen(self) -> Foreseen:
        """Words are counted up to one more than may be; where there is no such bound, up to what is needed."""
        most = self.low if self.high is None else self.high + 1
        moves = np.array([*self.moves, [(0, DEAD)] * len(self.ends)]).transpose(1, 0, 2)  # EOS is the last kind

        def met(gains: Sequence[int]) -> np.ndarray:
            return np.array([[self._meets(words, one) for one in gains] for words in range(most + 1)])

        return Foreseen(
            self.kind.host.numpy(),
            np.ascontiguousarray(moves[..., 1], dtype=np.int32),
            np.ascontiguousarray(moves[..., 0], dtype=np.int32),
            self.start,
            most,
            lambda t: met(self._reachable(t, 0)),
            lambda t, left: met(self._reachable(t, left)),
        )

    def _read(self, prefix: Ids) -> Move:
        """The words that have begun in a prefix, and the state that it ends in."""
        words, state = 0, self.start
        for kind in self.kind.host[list(prefix)].tolist():
            begun, state = self.moves[kind][state]
            words += begun
        return words, state

    def _meets(self, words: int, gains: int) -> bool:
        """Can the number of words come within the bounds by one of these gains?"""
        if self.high is not None:
            gains &= (1 << max(0, self.high - words + 1)) - 1
        return gains >> max(0, self.low - words) != 0

    def _reachable(self, tokens: int, left: int) -> list[int]:
        """The gains that may follow after ``tokens`` tokens, by state."""
        fewest = max(0, (self.bounds.min_tokens or 0) - tokens)
        most = left if self.bounds.max_tokens is None else min(left, self.bounds.max_tokens - tokens)
        if (fewest, most) not in self.unions:
            union = [0] * len(self.ends)
            for k in range(fewest, most + 1):
                union = [gains | more for gains, more in zip(union, self._exactly(k), strict=True)]
            self.unions[fewest, most] = union
        return self.unions[fewest, most]

    def _exactly(self, k: int) -> list[int]:
        """G_k. Gains above every bound are as good as the bound and one: that keeps the numbers short."""
        most = max(self.low, self.high or 0)
        while len(self.gains) <= k:
            after, found = self.gains[-1], []
            for possible in self.possible:
                gains = 0
                for begun, then in possible:
                    gains |= after[then] << begun
                beyond = gains >> (most + 1) != 0
                found.append((gains & ((1 << (most + 1)) - 1)) | (beyond << (most + 1)))
            self.gains.append(found)
        return self.gains[k]


def _nothing(lm: LM) -> Machine:
    """Nobody asks for words."""
    none = np.zeros((1, lm.vocab_size), dtype=np.int64)
    return Machine(none, 0, np.zeros(1, dtype=bool), none)


@cache
def _words() -> Machine:
    """The words of ``text.split()``, counted byte by byte; ``accepting``: states in which the end begins a word."""
    spaces = {character.encode() for character in map(chr, range(2**16)) if character.isspace()}  # none is beyond
    halves = {b""} | {space[:n] for space in spaces for n in range(1, len(space))}
    states = [(inside, half) for half in sorted(halves) for inside in (0, 1)]
    number = {state: i for i, state in enumerate(states)}

    def step(inside: int, half: bytes, byte: bytes) -> tuple[int, tuple[int, bytes]]:
        if half + byte in spaces:
            return 0, (0, b"")
        if half + byte in halves:
            return 0, (inside, half + byte)
        begun = 1 - inside  # by the half of a character, or by the whole that the byte makes of it
        if not half or 0x80 <= byte[0] < 0xC0:
            return begun, (1, b"")
        return begun + (more := step(1, b"", byte))[0], more[1]

    found = [[step(*state, bytes([byte])) for byte in range(256)] for state in states]
    moves = np.array([[number[then] for _, then in row] for row in found])
    counts = np.array([[begun for begun, _ in row] for row in found])
    return Machine(moves, number[0, b""], np.array([bool(half) and not inside for inside, half in states]), counts)
