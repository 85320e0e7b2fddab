"""A pattern of Python's ``re`` as a finite automaton over the bytes of UTF-8.

Three steps, each a textbook one: the tree that ``re`` makes of the pattern becomes an automaton with silent moves
(Thompson 1968), that becomes one that always knows where it is (the subset construction), and each set of characters
becomes the byte ranges that spell it. Characters are told apart only as far as the pattern does: its sets cut the code
points into *classes*, mostly a handful.

What a place for one character takes is asked of :mod:`ppl_align.constraints.translation`, as llguidance is told it:
both read the same language.
"""

from __future__ import annotations

from collections.abc import Iterator
from re import _constants  # type: ignore[attr-defined]
from typing import Any

import numpy as np

from ppl_align.constraints.translation import Ranges, characters
from ppl_align.lm.spelling import Machine

MOST_STATES = 1024  # of an automaton over characters: beyond, a pattern is too large
_MOST_PLACES = 20_000  # of the one with silent moves
_LENGTHS = ((0, 0x7F), (0x80, 0x7FF), (0x800, 0xFFFF), (0x10000, 0x10FFFF))  # one to four bytes

ByteRanges = tuple[tuple[int, int], ...]


class TooLarge(Exception):
    """The automaton of the pattern has too many states."""


def byte_machine(tree: Any) -> Machine:
    """Accepts the bytes of the texts that ``re.fullmatch`` accepts. The last state is the dead one.

    ``tree``: of ``re._parser.parse``, already held to be translatable. Raises ``TooLarge``."""
    places = _Places()
    end = places.sequence(tree, tree.state.flags, 0)
    classes, belongs = _classes(places.sets)
    moves, accepting = _determined(places, end, belongs)
    small = Machine(moves, 0, accepting, np.zeros_like(moves)).minimal()
    return _spelt(small, classes)


class _Places:
    """An automaton with silent moves: ``silent[place]``, and ``steps[place]``, pairs of (a set, the place after it)."""

    def __init__(self) -> None:
        self.silent: list[list[int]] = [[]]
        self.steps: list[list[tuple[int, int]]] = [[]]
        self.sets: dict[tuple[tuple[int, int], ...], int] = {}

    def new(self) -> int:
        if len(self.silent) >= _MOST_PLACES:
            raise TooLarge
        self.silent.append([])
        self.steps.append([])
        return len(self.silent) - 1

    def sequence(self, tree: Any, flags: int, at: int) -> int:
        """Builds it from the place ``at`` on; returns the place behind it."""
        for name, argument in tree:
            at = self.item(str(name), argument, flags, at)
        return at

    def item(self, name: str, argument: Any, flags: int, at: int) -> int:
        if name == "AT":  # anchors stand at the border of the text only: that was checked before
            return at
        if name == "SUBPATTERN":
            _, added, removed, part = argument
            return self.sequence(part, (flags | added) & ~removed, at)
        if name == "BRANCH":
            after = self.new()
            for part in argument[1]:
                begin = self.new()
                self.silent[at].append(begin)
                self.silent[self.sequence(part, flags, begin)].append(after)
            return after
        if name in ("MAX_REPEAT", "MIN_REPEAT"):
            least, most, part = argument
            return self.repeated(least, most, part, flags, at)
        after = self.new()
        ranges = tuple(characters(name, argument, flags))
        self.steps[at].append((self.sets.setdefault(ranges, len(self.sets)), after))
        return after

    def repeated(self, least: Any, most: Any, part: Any, flags: int, at: int) -> int:
        for _ in range(int(least)):
            at = self.sequence(part, flags, at)
        if most == _constants.MAXREPEAT:
            begin, after = self.new(), self.new()
            self.silent[at] += [begin, after]
            self.silent[self.sequence(part, flags, begin)] += [begin, after]
            return after
        after = self.new()
        for _ in range(int(most) - int(least)):
            self.silent[at].append(after)
            at = self.sequence(part, flags, at)
        self.silent[at].append(after)
        return after

    def reached(self, places: set[int]) -> frozenset[int]:
        """With those that silent moves lead to."""
        found, todo = set(places), list(places)
        while todo:
            for place in self.silent[todo.pop()]:
                if place not in found:
                    found.add(place)
                    todo.append(place)
        return frozenset(found)


def _classes(sets: dict[tuple[tuple[int, int], ...], int]) -> tuple[list[Ranges], np.ndarray]:
    """Characters that no set tells apart: their ranges, by class, and ``[sets, classes]`` bool, which set has which."""
    cuts = np.unique([edge for ranges in sets for a, b in ranges for edge in (a, b + 1)]).astype(np.int64)
    if len(cuts) < 2:
        return [], np.zeros((len(sets), 0), dtype=bool)
    has = np.zeros((len(sets), len(cuts) - 1), dtype=bool)
    for ranges, row in sets.items():
        for a, b in ranges:
            has[row, np.searchsorted(cuts, a) : np.searchsorted(cuts, b + 1)] = True
    columns, which = np.unique(has, axis=1, return_inverse=True)
    classes: list[Ranges] = [[] for _ in range(columns.shape[1])]
    for piece, number in enumerate(which.reshape(-1).tolist()):
        classes[number].append((int(cuts[piece]), int(cuts[piece + 1]) - 1))
    return classes, columns


def _determined(places: _Places, end: int, belongs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``moves`` [D, classes] and ``accepting`` [D]: the subset construction; the empty set is dead."""
    members = [np.flatnonzero(row).tolist() for row in belongs]
    number = {places.reached({0}): 0}
    moves: list[list[int]] = []
    todo = list(number)
    for subset in todo:
        after: list[set[int]] = [set() for _ in range(belongs.shape[1])]
        for place in subset:
            for which, then in places.steps[place]:
                for one in members[which]:
                    after[one].add(then)
        row = []
        for reached in map(places.reached, after):
            if reached not in number:
                if len(number) >= MOST_STATES:
                    raise TooLarge
                number[reached] = len(number)
                todo.append(reached)
            row.append(number[reached])
        moves.append(row)
    table = np.array(moves, dtype=np.int64).reshape(len(moves), belongs.shape[1])
    return table, np.array([end in subset for subset in number])


def _spelt(machine: Machine, classes: list[Ranges]) -> Machine:
    """The same over bytes: states between the bytes of a character are shared wherever the same may follow."""
    size = len(machine.moves)
    spellings = [[one for a, b in ranges for one in _byte_ranges(a, b)] for ranges in classes]
    number: dict[frozenset[tuple[ByteRanges, int]], int] = {}
    rows: dict[int, dict[int, int]] = {}

    def row(what: frozenset[tuple[ByteRanges, int]]) -> dict[int, int]:
        """By byte, where it leads from a place in front of these spellings (and the states behind them)."""
        after: dict[int, set[tuple[ByteRanges, int]]] = {}
        for spelling, target in what:
            for byte in range(spelling[0][0], spelling[0][1] + 1):
                after.setdefault(byte, set()).add((spelling[1:], target))
        return {byte: place(frozenset(then)) for byte, then in after.items()}

    def place(what: frozenset[tuple[ByteRanges, int]]) -> int:
        (rest, target) = next(iter(what))
        if not rest:
            return target
        if what not in number:
            number[what] = size + len(number)
            rows[number[what]] = row(what)
        return number[what]

    dead = _dead(machine)
    for state in range(size):
        wanted = [(target, spelt) for target, spelt in zip(machine.moves[state].tolist(), spellings, strict=True)]
        live = frozenset((one, target) for target, spelt in wanted if target != dead for one in spelt)
        rows[state] = row(live)
    table = np.full((size + len(number) + 1, 256), size + len(number), dtype=np.int64)
    for state, found in rows.items():
        table[state, list(found)] = list(found.values())
    accepting = np.zeros(len(table), dtype=bool)
    accepting[:size] = machine.accepting
    return Machine(table, machine.start, accepting, np.zeros_like(table))


def _dead(machine: Machine) -> int:
    """The state that is never left and does not accept; -1 where there is none (a minimal machine has at most one)."""
    stays = (machine.moves == np.arange(len(machine.moves))[:, None]).all(1) & ~machine.accepting
    return int(stays.argmax()) if stays.any() else -1


def _byte_ranges(first: int, last: int) -> Iterator[ByteRanges]:
    """The spellings of the characters ``first`` to ``last`` (no surrogates), as products of ranges of bytes.

    >>> list(_byte_ranges(0x7E, 0x81))
    [((126, 127),), ((194, 194), (128, 129))]
    """
    for low, high in _LENGTHS:
        a, b = max(first, low), min(last, high)
        if a <= b:
            yield from _same_length(a, b)


def _same_length(a: int, b: int) -> Iterator[ByteRanges]:
    """Cut where a later byte does not run through all of its values."""
    begin, end = chr(a).encode("utf-8", "surrogatepass"), chr(b).encode("utf-8", "surrogatepass")
    for k in range(1, len(begin)):
        block = (1 << 6 * k) - 1  # what the last k bytes hold
        if a & ~block != b & ~block:
            if a & block:
                yield from _same_length(a, a | block)
                yield from _same_length((a | block) + 1, b)
                return
            if b & block != block:
                yield from _same_length(a, (b & ~block) - 1)
                yield from _same_length(b & ~block, b)
                return
    yield tuple(zip(begin, end, strict=True))
