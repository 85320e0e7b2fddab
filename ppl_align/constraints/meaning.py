"""What llguidance would read in another way than Python does is refused: patterns, and numbers of a JSON schema.

A pattern means what ``re.fullmatch`` says. The tree that ``re`` itself makes of it shows what has no counterpart in the
engine; the rest is translated (:mod:`ppl_align.constraints.translation`).
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from re import _parser  # type: ignore[attr-defined]
from typing import Any

from ppl_align.errors import InputError

EXACT_INTEGERS = 2**53
"""Beyond this llguidance, which computes in double precision, rounds an integer to another one."""
_REFUSED = {
    "POSSESSIVE_REPEAT": "possessive quantifiers are not supported",
    "ATOMIC_GROUP": "atomic groups are not supported",
    "ASSERT": "look-around is not supported",
    "ASSERT_NOT": "look-around is not supported",
    "GROUPREF": "back-references are not supported",
    "GROUPREF_EXISTS": "conditional groups are not supported",
}


def read_pattern(pattern: str, shown: str) -> Any:
    """The tree of a pattern. Raises ``InputError`` where ``re`` cannot read it, and for what is no set of texts."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", FutureWarning)  # sets that Rust reads as nested, or as an operation on sets
            re.compile(pattern)
            tree = _parser.parse(pattern)
    except FutureWarning as error:
        raise InputError(f"{shown} cannot be read: {str(error).lower()}, escape it with a backslash") from None
    except (re.error, OverflowError, RecursionError) as error:
        raise InputError(f"{shown} cannot be read: Python's re says {error}") from None
    for operation in _operations(tree):
        if operation in _REFUSED:
            raise InputError(f"{shown} cannot be read: {_REFUSED[operation]}")
    if tree.state.flags & re.VERBOSE:
        raise InputError(f"{shown} cannot be read: (?x) is not supported")
    if tree.state.flags & re.ASCII:
        raise InputError(f"{shown} cannot be read: (?a) is not supported, write [0-9], [A-Za-z0-9_] and the like")
    return tree


def _operations(tree: Any) -> Iterator[str]:
    """The names of all operations in a parsed pattern, however deep."""
    if isinstance(tree, _parser.SubPattern):
        for name, argument in tree:
            yield str(name)
            yield from _operations(argument)
    elif isinstance(tree, (list, tuple)):
        for part in tree:
            yield from _operations(part)


def refuse_rounded_numbers(schema: Any) -> None:
    """Raise ``InputError`` for a number in a JSON schema that llguidance would round: it computes in doubles."""
    if isinstance(schema, dict):
        for value in schema.values():
            refuse_rounded_numbers(value)
    elif isinstance(schema, list):
        for value in schema:
            refuse_rounded_numbers(value)
    elif isinstance(schema, (int, float)) and abs(schema) > EXACT_INTEGERS:
        raise InputError(f"JsonSchema: {schema} lies beyond 2**53, where numbers are rounded; write it as a string")
