"""What looking ahead needs to know of a constraint: where each token leads, from where success is possible, what ends
well.

    state after a prefix = (s, n):  s of a finite automaton, n a number that tokens add to (words, for a bound on words)

Tokens that lead to the same place from every state are of one *kind*; of 49152 tokens, patterns tell apart a few
hundred or thousand. So the tables have a column for each kind, and a row over the vocabulary is one look-up in them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np

from ppl_align.lm.base import LM, Ids
from ppl_align.lm.spelling import Machine, Spelling

DEAD = -1
MOST_STATES = 4096  # over tokens
MOST_MOVES = 2**24  # of single tokens from single states: 8 bytes each, while the tables are made
_FAR = np.iinfo(np.int32).max  # as a distance: no way
_REMEMBERED = 1024  # prefixes whose places are kept, at least

Place = tuple[int, int]  # (s, n)


class Foreseen:
    """An automaton over token ids that may count.

    ``kind``    [V] of each token         ``moves``   [S, K] int32, the state afterwards; -1: nothing can follow
    ``counts``  [S, K], what n grows by   ``most``    n is counted up to here, which stands for more as well
    ``ends_well(t)``      [n, S] bool: is a text of t tokens acceptable there?
    ``possible(t, left)``  [n, S] bool: can it be with at most ``left`` more? (May err towards True.)

    EOS leads nowhere, and no token that spells nothing where the constraint does not allow one."""

    def __init__(
        self,
        kind: np.ndarray,
        moves: np.ndarray,
        counts: np.ndarray,
        start: int,
        most: int,
        ends_well: Callable[[int], np.ndarray],
        possible: Callable[[int, int], np.ndarray],
    ) -> None:
        self.kind, self.moves, self.counts, self.start, self.most = kind, moves, counts, start, most
        self.ends_well, self.possible = ends_well, possible
        self._known: dict[Ids, Place] = {}

    @property
    def num_states(self) -> int:
        return len(self.moves)

    @cached_property
    def distinct_moves(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Different (s, s', growth of n) that some token makes: three columns."""
        size, growth = self.num_states, int(self.counts.max(initial=0)) + 1
        live = self.moves >= 0
        states = np.broadcast_to(np.arange(size)[:, None], self.moves.shape)
        keys = np.unique((states[live].astype(np.int64) * size + self.moves[live]) * growth + self.counts[live])
        return keys // growth // size, keys // growth % size, keys % growth

    def places(self, prefixes: Sequence[Ids]) -> list[Place]:
        """Where each prefix stands; (-1, 0) where nothing can follow."""
        if len(self._known) > max(_REMEMBERED, 4 * len(prefixes)):
            self._known = {}
        return [self._place(prefix) for prefix in prefixes]

    def _place(self, prefix: Ids) -> Place:
        place = self._known.get(prefix)
        if place is None:
            before = self._known.get(prefix[:-1])
            place, rest = ((self.start, 0), prefix) if before is None else (before, prefix[-1:])
            for token in rest:
                place = self._after(place, token)
            self._known[prefix] = place
        return place

    def _after(self, place: Place, token: int) -> Place:
        state, number = place
        kind = self.kind[token]
        then = int(self.moves[state, kind]) if state >= 0 else DEAD
        return (then, min(number + int(self.counts[state, kind]), self.most)) if then >= 0 else (DEAD, 0)


def of_bytes(lm: LM, machine: Machine) -> Foreseen | None:
    """A machine over bytes, over the tokens of ``lm``; None where its tables would be too large.

    A token that spells nothing is not written (llguidance writes none either). Only states that tokens lead to are
    kept, and of those only the ones that something acceptable can follow."""
    spelling = Spelling.of(lm)
    opens = spelling.first is not spelling.within
    within = _Pieces(spelling.within, lm.eos_ids)
    first = _Pieces(spelling.first, lm.eos_ids) if opens else within
    number = {-1 if opens else machine.start: 0}  # by state of the machine; -1 in front of a first token of its own
    useful = _coaccessible(machine)
    marks = np.random.default_rng(0)  # what a token does from all states, in 64 bits: the sum of a mark for each move
    effect = np.zeros(lm.vocab_size, dtype=np.uint64)
    moved: list[tuple[np.ndarray, np.ndarray]] = []
    todo, entries = list(number), 0
    for state in todo:
        pieces, begin = (first, machine.start) if state < 0 else (within, state)
        tokens, to = pieces.read(machine, begin, useful)
        for new in np.unique(to).tolist():
            if new not in number:
                number[new] = len(number)
                todo.append(new)
        entries += len(tokens)
        if entries > MOST_MOVES or len(number) > MOST_STATES:
            return None
        then = np.array([number[one] for one in to.tolist()], dtype=np.int32)
        effect[tokens] += marks.integers(1, 2**64, dtype=np.uint64) * (then.astype(np.uint64) + np.uint64(1))
        moved.append((tokens.astype(np.int32), then))
    kinds, kind = np.unique(effect, return_inverse=True)
    moves = np.full((len(todo), len(kinds)), DEAD, dtype=np.int32)
    for state, (tokens, then) in enumerate(moved):
        moves[state, kind[tokens]] = then
    accepting = machine.accepting[[machine.start if state < 0 else state for state in todo]]
    distance = _distances(moves, accepting)
    moves[np.where(moves >= 0, distance[moves], _FAR) == _FAR] = DEAD
    return Foreseen(
        kind.reshape(-1),
        moves,
        np.zeros_like(moves),
        0,
        0,
        lambda t: accepting[None],
        lambda t, left: (distance <= left)[None],
    )


class _Pieces:
    """What tokens spell: ``bytes`` [V, longest], and of each token how many; by the first of them, the tokens."""

    def __init__(self, pieces: Sequence[bytes], eos_ids: Sequence[int]) -> None:
        lengths = np.array([len(piece) for piece in pieces])
        lengths[list(eos_ids)] = 0
        self.bytes = np.zeros((len(pieces), int(lengths.max(initial=0))), dtype=np.uint8)
        for v, piece in enumerate(pieces):
            self.bytes[v, : lengths[v]] = list(piece[: lengths[v]])
        self.lengths = lengths
        spelt = np.flatnonzero(lengths)
        self.by_first = [spelt[self.bytes[spelt, 0] == byte] for byte in range(256)] if len(spelt) else []

    def read(self, machine: Machine, state: int, useful: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tokens after which something acceptable may follow, and the states that they lead to."""
        begin = [self.by_first[byte] for byte in np.flatnonzero(useful[machine.moves[state]])] if self.by_first else []
        tokens = np.concatenate([np.zeros(0, dtype=np.int64), *begin])
        states = machine.moves[state][self.bytes[tokens, 0]]
        found = [(tokens[:0], tokens[:0])]
        for k in range(1, self.bytes.shape[1] + 1):
            live = useful[states]
            tokens, states = tokens[live], states[live]
            over = self.lengths[tokens] == k
            found.append((tokens[over], states[over]))
            tokens, states = tokens[~over], states[~over]
            if not len(tokens):
                break
            states = machine.moves[states, self.bytes[tokens, k]]
        return np.concatenate([one for one, _ in found]), np.concatenate([one for _, one in found])


def _coaccessible(machine: Machine) -> np.ndarray:
    """States from which some text is accepted, [S] bool."""
    useful = machine.accepting.copy()
    while True:
        more = useful | useful[machine.moves].any(1)
        if (more == useful).all():
            return useful
        useful = more


def _distances(moves: np.ndarray, accepting: np.ndarray) -> np.ndarray:
    """The fewest tokens from each state to an accepting one, [S]; ``_FAR`` where none leads there."""
    distance = np.where(accepting, 0, _FAR).astype(np.int64)
    while True:
        after = np.where(moves >= 0, distance[moves], _FAR).min(1, initial=_FAR)
        nearer = np.minimum(distance, np.minimum(after + 1, _FAR))
        if (nearer == distance).all():
            return distance
        distance = nearer
