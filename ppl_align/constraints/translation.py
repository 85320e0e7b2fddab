"""A pattern of Python's ``re`` in the words of llguidance, character by character.

The two disagree about single characters: which letters are ``\\w`` (``²`` and no combining marks in Python), which are
``\\s``, what ``(?i)`` folds (``K`` for ``k`` in both, ``İ`` for ``i`` in Python alone), and each follows the Unicode of
its own year. So every place that stands for one character becomes the set of characters that ``re`` takes there, and of
the tree that ``re`` makes of a pattern nothing is left but sets, sequences, choices and repetitions.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from re import _constants  # type: ignore[attr-defined]
from typing import Any

from ppl_align.core.errors import InputError

Ranges = list[tuple[int, int]]
_LAST = sys.maxunicode
_SURROGATES = (0xD800, 0xDFFF)
"""No text holds these, and UTF-8 has no bytes for them."""
_CATEGORIES: dict[str, Callable[[str], bool]] = {
    "WORD": lambda c: c.isalnum() or c == "_",
    "DIGIT": str.isdecimal,
    "SPACE": str.isspace,
}
_STARTS = ("AT_BEGINNING", "AT_BEGINNING_STRING")
_ENDS = ("AT_END", "AT_END_STRING")


def translated(tree: Any, shown: str) -> str:
    """The pattern of a parsed tree (``re._parser.parse``), for Rust's ``regex``; the language of ``re.fullmatch``.

    Raises ``InputError`` for an anchor that is not at the border of the text."""
    return _sequence(tree, tree.state.flags, True, True, shown)


def _sequence(tree: Any, flags: int, first: bool, last: bool, shown: str) -> str:
    """``first``, ``last``: is the text's beginning before it, its end behind it?"""
    items = [(str(name), argument) for name, argument in tree]
    solid = [i for i, (name, _) in enumerate(items) if name != "AT"]
    begin, end = (solid[0], solid[-1]) if solid else (len(items), -1)
    parts = []
    for i, (name, argument) in enumerate(items):
        before, behind = first and i <= begin, last and i >= end
        if name == "AT":
            at_border = (before and str(argument) in _STARTS) or (behind and str(argument) in _ENDS)
            if not at_border:
                raise InputError(f"{shown} cannot be read: an anchor inside of a pattern is not supported")
        else:
            parts.append(_item(name, argument, flags, before, behind, shown))
    return "".join(parts)


def _item(name: str, argument: Any, flags: int, first: bool, last: bool, shown: str) -> str:
    if name == "BRANCH":
        return "(?:" + "|".join(_sequence(part, flags, first, last, shown) for part in argument[1]) + ")"
    if name == "SUBPATTERN":
        _, added, removed, part = argument
        return f"(?:{_sequence(part, (flags | added) & ~removed, first, last, shown)})"
    if name in ("MAX_REPEAT", "MIN_REPEAT"):  # greedy or not: the same texts
        least, most, part = argument
        once = most == 1
        inner = _sequence(part, flags, first and once, last and once, shown)
        return f"(?:{inner}){_times(int(least), None if most == _constants.MAXREPEAT else int(most))}"
    return _class(characters(name, argument, flags))


def _times(least: int, most: int | None) -> str:
    if most is None:
        return {0: "*", 1: "+"}.get(least, f"{{{least},}}")
    return "?" if (least, most) == (0, 1) else f"{{{least},{most}}}"


def _class(ranges: Ranges) -> str:
    """A set of characters as Rust writes it; one without members matches nothing."""
    if not ranges:
        return r"[^\x{0}-\x{10FFFF}]"
    return "[" + "".join(rf"\x{{{a:X}}}" + (rf"-\x{{{b:X}}}" if a < b else "") for a, b in ranges) + "]"


def characters(name: str, argument: Any, flags: int) -> Ranges:
    """What a place for one character takes."""
    if name == "ANY":
        return _without([] if flags & re.DOTALL else [(10, 10)])
    if name in ("LITERAL", "NOT_LITERAL"):
        members, negated = [("LITERAL", argument)], name == "NOT_LITERAL"
    elif name == "IN":
        members = [(str(kind), value) for kind, value in argument]
        negated = members[0][0] == "NEGATE"
        members = members[negated:]
    else:
        raise AssertionError(f"{name} was refused before")
    ranges = _merged(one for kind, value in members for one in _member(kind, value, flags))
    if flags & re.IGNORECASE:
        ranges = _merged([*ranges, *((c, c) for c in _folded(tuple(members), flags & re.ASCII))])
    return _without(ranges) if negated else _merged(_within(ranges))


def _member(kind: str, value: Any, flags: int) -> Iterator[tuple[int, int]]:
    if kind == "LITERAL":
        yield value, value
    elif kind == "RANGE":
        yield value
    else:
        category = str(value).removeprefix("CATEGORY_")
        ranges = _category(category.removeprefix("NOT_"), bool(flags & re.ASCII))
        yield from _without(ranges) if category.startswith("NOT_") else ranges


@cache
def _category(name: str, ascii_only: bool) -> Ranges:
    belongs = _CATEGORIES[name]
    return _merged((c, c) for c in range(128 if ascii_only else _LAST + 1) if belongs(chr(c)))


@cache
def _cased() -> list[str]:
    """Characters that have anything to do with upper and lower case."""
    every = map(chr, (c for c in range(_LAST + 1) if not _SURROGATES[0] <= c <= _SURROGATES[1]))
    return [c for c in every if c.lower() != c or c.upper() != c or c.casefold() != c]


def _folded(members: tuple[tuple[str, Any], ...], ascii_only: int) -> list[int]:
    """The cased characters that ``re`` takes for one of these, upper and lower case aside."""
    written = "".join(_written(kind, value) for kind, value in members)
    takes = re.compile(f"[{written}]", re.IGNORECASE | (re.ASCII if ascii_only else 0)).fullmatch
    return [ord(c) for c in _cased() if takes(c)]


def _written(kind: str, value: Any) -> str:
    if kind == "LITERAL":
        return rf"\U{value:08x}"
    if kind == "RANGE":
        return rf"\U{value[0]:08x}-\U{value[1]:08x}"
    category = str(value).removeprefix("CATEGORY_")
    letter = {"WORD": "w", "DIGIT": "d", "SPACE": "s"}[category.removeprefix("NOT_")]
    return "\\" + (letter.upper() if category.startswith("NOT_") else letter)


def _merged(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """In order, without overlaps or neighbours."""
    found: Ranges = []
    for a, b in sorted(ranges):
        if found and a <= found[-1][1] + 1:
            found[-1] = found[-1][0], max(b, found[-1][1])
        else:
            found.append((a, b))
    return found


def _without(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """All other characters."""
    found, at = [], 0
    for a, b in _merged([*ranges, _SURROGATES]):
        if at < a:
            found.append((at, a - 1))
        at = b + 1
    return [*found, (at, _LAST)] if at <= _LAST else found


def _within(ranges: Ranges) -> Ranges:
    """Without the surrogates."""
    return _without(_without(ranges))
