"""How long a completion may be: a constraint that counts, and knows what the tokens left can still add.

A token adds words to a text: as many as begin within it. How many can come with k more tokens is a set of numbers,

    G_k(in a word?) = union over tokens v of  (words that v begins) + G_{k-1}(in a word after v?),     G_0 = {0},

so that looking ahead is exact: a token is allowed if the words read so far plus some number out of G_k are within the
bounds, for some k that the bounds on tokens and the tokens left permit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ppl_align.constraints.base import Constraint, Reader
from ppl_align.errors import InputError
from ppl_align.lm.transfer import CPU, Resident, upload

if TYPE_CHECKING:
    from ppl_align.lm.base import LM, Ids

Move = tuple[int, int]  # words that begin, inside of a word afterwards
_BROKEN = "\ufffd"  # a token that is a part of a character


@dataclass(frozen=True, kw_only=True)
class Length(Constraint):
    """The completion has so many tokens (EOS not counted) and so many words (as ``text.split()`` counts them).

    Bounds are inclusive; None leaves one open. For characters: ``Regex("(?s).{10,200}")``.

    Raises ``InputError`` for bounds that are negative, cross each other, or are not given at all.

    >>> Length(min_words=3, max_words=5)
    Length(min_words=3, max_words=5)
    """

    min_tokens: int | None = None
    max_tokens: int | None = None
    min_words: int | None = None
    max_words: int | None = None

    def __post_init__(self) -> None:
        given = {name: bound for name, bound in vars(self).items() if bound is not None}
        if not given:
            raise InputError("Length needs a bound: min_tokens=, max_tokens=, min_words= or max_words=")
        for name, bound in given.items():
            if isinstance(bound, bool) or not isinstance(bound, int) or bound < 0:
                raise InputError(f"Length: {name} must be a number of {name[4:]}, at least 0, got {bound!r}")
        for unit in ("tokens", "words"):
            low, high = given.get(f"min_{unit}", 0), given.get(f"max_{unit}")
            if high is not None and low > high:
                raise InputError(f"Length: min_{unit}={low} is more than max_{unit}={high}: no text is both")

    def __repr__(self) -> str:
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        return f"Length({', '.join(f'{name}={bound}' for name, bound in given.items() if bound is not None)})"

    def compile(self, lm: LM) -> LengthReader:
        return LengthReader(self, lm)


class LengthReader(Reader):
    """Counts tokens and words of prefixes. Tokens are of few kinds, as far as words are concerned:

    ``kind``    [V] the kind of each token; EOS is one of its own, the last
    ``moves``   by kind, for a prefix that ends outside of a word and for one that ends inside of one: how many words
                begin, and whether the text ends inside of one afterwards"""

    def __init__(self, bounds: Length, lm: LM) -> None:
        self.bounds, self.eos_id = bounds, lm.eos_id
        self.low, self.high = bounds.min_words or 0, bounds.max_words
        counts_words = bounds.min_words is not None or bounds.max_words is not None
        kinds: dict[tuple[Move, Move], int] = {}
        texts = _texts(lm) if counts_words else [""] * lm.vocab_size
        kind = [kinds.setdefault(_moves(text), len(kinds)) if v != lm.eos_id else -1 for v, text in enumerate(texts)]
        self.moves = list(kinds)
        self.kind = Resident(torch.tensor([k if k >= 0 else len(kinds) for k in kind]))
        self.possible = [sorted({move[inside] for move in self.moves}) for inside in (0, 1)]
        self.gains: list[tuple[int, int]] = [(1, 1)]  # G_k outside of a word and inside: bit g stands for the number g
        self.unions: dict[tuple[int, int], tuple[int, int]] = {}

    def allowed(self, prefixes: Sequence[Ids], left: int, device: torch.device = CPU) -> Tensor:
        verdicts = []  # by kind, EOS last
        for prefix in prefixes:
            words, inside = self._read(prefix)
            reachable = self._reachable(len(prefix) + 1, left)
            moves = (kind[inside] for kind in self.moves)
            ends = self._meets(words, self._reachable(len(prefix), 0)[inside])
            verdicts.append([*(self._meets(words + begun, reachable[then]) for begun, then in moves), ends])
        return upload(torch.tensor(verdicts, dtype=torch.bool), device)[:, self.kind.on(device)]

    def accepts(self, prefixes: Sequence[Ids]) -> Tensor:
        return self.viable(prefixes, 0)

    def viable(self, prefixes: Sequence[Ids], left: int) -> Tensor:
        verdicts = []
        for prefix in prefixes:
            words, inside = self._read(prefix)
            verdicts.append(self._meets(words, self._reachable(len(prefix), left)[inside]))
        return torch.tensor(verdicts, dtype=torch.bool)

    def _read(self, prefix: Ids) -> tuple[int, int]:
        """The words of a prefix, and whether it ends inside of one."""
        words = inside = 0
        for kind in self.kind.host[list(prefix)].tolist():
            begun, inside = self.moves[kind][inside]
            words += begun
        return words, inside

    def _meets(self, words: int, gains: int) -> bool:
        """Can the number of words come within the bounds by one of these gains?"""
        if self.high is not None:
            gains &= (1 << max(0, self.high - words + 1)) - 1
        return gains >> max(0, self.low - words) != 0

    def _reachable(self, tokens: int, left: int) -> tuple[int, int]:
        """The gains that may follow after ``tokens`` tokens, from outside of a word and from inside."""
        fewest = max(0, (self.bounds.min_tokens or 0) - tokens)
        most = left if self.bounds.max_tokens is None else min(left, self.bounds.max_tokens - tokens)
        if (fewest, most) not in self.unions:
            outside = inside = 0
            for k in range(fewest, most + 1):
                exactly = self._exactly(k)
                outside, inside = outside | exactly[0], inside | exactly[1]
            self.unions[fewest, most] = outside, inside
        return self.unions[fewest, most]

    def _exactly(self, k: int) -> tuple[int, int]:
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
            self.gains.append((found[0], found[1]))
        return self.gains[k]


def _moves(text: str) -> tuple[Move, Move]:
    """What a token does outside of a word, and inside of one."""
    if not text:
        return (0, 0), (0, 1)
    words, then = len(text.split()), int(not text[-1].isspace())
    return (words, then), (words - int(not text[0].isspace()), then)


def _texts(lm: LM) -> list[str]:
    """What each token spells; the text of a sequence must be these, one after the other."""
    texts = lm.vocabulary
    whole = [v for v, text in enumerate(texts) if _BROKEN not in text]
    if lm.decode(whole) != "".join(texts[v] for v in whole):
        raise InputError(
            f"Length cannot count the words of {lm.name}: its text is not its tokens' texts one after the other; "
            f"count tokens, or give it tokens=[...]"
        )
    return texts
