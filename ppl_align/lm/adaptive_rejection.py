r"""Next tokens that pass a test, with a test that is asked about few of them: adaptive weighted rejection sampling.

A test of text says yes or no to one token at a time; a mask would ask it about the whole vocabulary. So tokens are
drawn from q (the prior, or what masks, twists and proposals make of it), and one that the test rejects is not drawn
again: q is restricted to what is left. What is accepted first has the law of q given that the test says yes,

    q(v | A) = q(v) / a,      A: the tokens that pass,  a = q(A)

but a, which the weight needs, is not known. So the search goes on until the *second* acceptance (what was accepted may
be drawn again). With m_k = 1 - q(the first k that were rejected), and n of them in all,

    T = 1 / sum_{k=0}^{n} 1 / m_k

is an unbiased estimate of a, whatever the first acceptance was, and T > 0: log q of the draw is log q(v) - log T.
Proof: n rejections r_1 ... r_n, the first acceptance after j of them, have probability
prod_k q(r_k) / m_{k-1} * a^2 / (m_j m_n), and the acceptance is independent of them; sum_j T / m_j = 1, so that the sum
of these times T is a * sum prod_k q(r_k) / m_{k-1} * a / m_n. That last sum is 1: they are the probabilities of all
searches that end with their first acceptance. (Without removal m_k is 1, and T = 1 / (n + 1) the estimate of Haldane
1945.) Tokens that are known to be ruled out from an earlier search have been removed beforehand: then m_0 < 1.

The same lines give the law of T for a token that is *given* (the retained draw of conditional SMC, a beginning that is
kept), where every search counts T / a times as much as it comes: that of a search which ends with its first acceptance.
Then E[1 / T] = 1 / a, and E[1 / Zhat_c] = 1 / Z, as conditional SMC has it. (What one search finds out is not told to
others of the same step: a search that saw half of another one would be size-biased in another way.)

Where hardly anything passes, a search would go through the vocabulary. So every ``PATIENCE`` rejections it may be given
up, the r-th time with probability 1 / (r + 1), and T counts r + 1 times as much for those that go on (Russian
roulette: still E[T] = a). What is given up writes a token that was rejected, and so has weight zero.

Source: Lipkin et al. 2025 (arXiv:2504.05410).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ppl_align.lm.sampling import TokenTree
from ppl_align.lm.transfer import upload

PATIENCE = 64
"""Rejections after which a search may be given up."""
FIRST = 16
"""Candidates of each search that are drawn together, at first."""
_ROWS = 256  # rows over the vocabulary that are copied at a time

Judge = Callable[[Sequence[tuple[int, int]]], Sequence[bool]]
"""``[(text, token)] -> [bool]``: does the test pass the token after the text of this number?"""
Uniform = Callable[[int, int], Tensor]
"""``(m, n) -> [m, n]`` float64 in [0, 1), on the device."""


class Search:
    """The search for the next token of one text.

    ``row``    where its q is        ``known``  tokens that are ruled out, from earlier searches
    ``token``  the first that passed, or the one that is ``given``     ``rejected``  those that did not, in order
    ``ended``  there is no second acceptance: it was given up, nothing was left, or it was ``hopeless`` from the start
    """

    def __init__(self, row: int, known: Collection[int] = (), given: int | None = None, hopeless: bool = False) -> None:
        self.row, self.known, self.token, self.is_given = row, known, given, given is not None
        self.ended = hopeless
        self.missing = 2 if given is None else 1
        self.rejected: list[int] = []
        self._out: set[int] = set()
        self._first: int | None = None
        self._queue: Iterator[int] = iter(())
        self._coin = 0.0

    @property
    def done(self) -> bool:
        return self.ended or not self.missing

    @property
    def rounds(self) -> int:
        """How many times it could have been given up, R."""
        return len(self.rejected) // PATIENCE

    @property
    def out(self) -> list[int]:
        """All that is ruled out by now."""
        return [*self.known, *self.rejected]

    @property
    def written(self) -> int:
        """The token that the text goes on with; where the search has failed, one that does not pass."""
        failed = self.ended and not self.is_given
        token = (self.rejected[0] if self.rejected else self._first) if failed else self.token
        assert token is not None
        return token

    def begin(self, candidates: list[int], coin: float) -> None:
        """Draws of q, at most ``PATIENCE`` of them, and a uniform number."""
        self._queue, self._coin = iter(candidates), coin
        self._first = candidates[0] if self._first is None else self._first

    def next(self) -> int | None:
        """The next candidate that is not ruled out: a draw of what is left of q. None: no more are needed, or there."""
        if self.done:
            return None
        return next((v for v in self._queue if v not in self._out and v not in self.known), None)

    def hear(self, token: int, passes: bool) -> None:
        """What the test says of it."""
        if passes:
            self.missing -= 1
            self.token = token if self.token is None else self.token
            return
        self.rejected.append(token)
        self._out.add(token)
        if len(self.rejected) % PATIENCE == 0 and not self.is_given:
            self.ended = self._coin * (self.rounds + 1) >= self.rounds

    def log_mass(self, q: np.ndarray, left: float) -> float:
        """log T. ``q [n]``: of the rejected tokens; ``left``: m_n. Sums of what is left, not differences from 1."""
        if self.ended:
            return 0.0
        m = left + np.append(np.cumsum(q[::-1])[::-1], 0.0)
        return math.log(self.rounds + 1) - math.log(float((1 / m).sum()))


class Found(NamedTuple):
    """``tokens [m]`` int64 on the host; ``log_mass [m]`` log T, nats, on the device."""

    tokens: np.ndarray
    log_mass: Tensor


def search(logits: Tensor, tree: TokenTree, searches: Sequence[Search], judge: Judge, uniform: Uniform) -> Found:
    """Bring all searches to their end. ``logits [rows, V]``: log q, unnormalised; ``tree``: of these.

    Candidates come in rounds, some for each text that needs more. The host waits for the device once in the first
    round, twice in each that follows, and once more for the masses where anything was rejected."""
    size = min(FIRST, PATIENCE)
    rows = np.array([one.row for one in searches])
    _offer(list(enumerate(searches)), _drawn(tree, rows, size, uniform), judge)
    while open_ := [(i, one) for i, one in enumerate(searches) if not one.done]:
        size = min(2 * size, PATIENCE)
        for part in (open_[at : at + _ROWS] for at in range(0, len(open_), _ROWS)):
            _again(part, logits, size, judge, uniform)
    return Found(np.array([one.written for one in searches]), _log_mass(logits, tree, searches))


def _drawn(tree: TokenTree, rows: np.ndarray, size: int, uniform: Uniform) -> np.ndarray:
    """``size`` draws from each row and a coin, ``[m, size + 1]`` float64 on the host."""
    u = uniform(len(rows), size * tree.depth + 1)
    ids = tree.draw(np.repeat(rows, size), u[:, 1:].reshape(-1, tree.depth)).reshape(len(rows), size)
    return torch.cat([ids.double(), u[:, :1]], 1).cpu().numpy()


def _again(part: Sequence[tuple[int, Search]], logits: Tensor, size: int, judge: Judge, uniform: Uniform) -> None:
    """A round of candidates from what is left of q."""
    rest = _rest(logits, [one for _, one in part])
    some = ~rest.isneginf().all(-1).cpu().numpy()
    for (_, one), any_left in zip(part, some, strict=True):
        one.ended = not any_left
    part = [pair for pair, any_left in zip(part, some, strict=True) if any_left]
    if part:
        _offer(part, _drawn(TokenTree(rest), np.flatnonzero(some), size, uniform), judge)


def _offer(part: Sequence[tuple[int, Search]], drawn: np.ndarray, judge: Judge) -> None:
    """On through the candidates, as far as each search needs them; the test is asked about all texts together."""
    for (_, one), row in zip(part, drawn, strict=True):
        one.begin(row[:-1].astype(np.int64).tolist(), float(row[-1]))
    while asked := [(i, one, token) for i, one in part if (token := one.next()) is not None]:
        for (_, one, token), passes in zip(asked, judge([(i, token) for i, _, token in asked]), strict=True):
            one.hear(token, passes)


def _rest(logits: Tensor, searches: Sequence[Search]) -> Tensor:
    """log q ``[m, V]`` of each search, without what is ruled out."""
    rest = logits[upload(np.array([one.row for one in searches]), logits.device)]
    place = [(i, token) for i, one in enumerate(searches) for token in one.out]
    if place:
        i, token = upload(np.array(place).T.copy(), logits.device)
        rest[i, token] = -torch.inf
    return rest


def _log_mass(logits: Tensor, tree: TokenTree, searches: Sequence[Search]) -> Tensor:
    """log T of each search, [m] float64; 0 where nothing was ruled out, for then T is 1."""
    found = np.zeros(len(searches))
    some = [i for i, one in enumerate(searches) if not one.ended and one.out]
    for chunk in (some[at : at + _ROWS] for at in range(0, len(some), _ROWS)):
        these = [searches[i] for i in chunk]
        total = tree.log_total[upload(np.array([one.row for one in these]), logits.device)]
        left = (_rest(logits, these).double().logsumexp(-1) - total).exp().tolist()
        of = np.repeat(np.arange(len(these)), [len(one.rejected) for one in these])
        tokens = np.array([token for one in these for token in one.rejected], dtype=np.int64)
        rows = np.array([one.row for one in these])[of]
        log_q = logits[upload(rows, logits.device), upload(tokens, logits.device)].double()
        q = (log_q - total[upload(of, logits.device)]).exp().cpu().numpy()
        for k, (i, one) in enumerate(zip(chunk, these, strict=True)):
            found[i] = one.log_mass(q[of == k], left[k])
    return upload(torch.from_numpy(found), logits.device)
