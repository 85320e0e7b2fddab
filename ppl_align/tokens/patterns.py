"""What a regular expression consists of, by the tree that Python's ``re`` makes of it: the only reading of patterns.

``re`` knows operations that are no sets of texts (look-around, ...), or that the engines which make automata of
patterns read as something else (``a++``). Whoever hands a pattern on looks them up here.
"""

from __future__ import annotations

from collections.abc import Iterator
from re import _parser  # type: ignore[attr-defined]
from typing import Any

REFUSED = {
    "POSSESSIVE_REPEAT": "possessive quantifiers are not supported",
    "ATOMIC_GROUP": "atomic groups are not supported",
    "ASSERT": "look-around is not supported",
    "ASSERT_NOT": "look-around is not supported",
    "GROUPREF": "back-references are not supported",
    "GROUPREF_EXISTS": "conditional groups are not supported",
}
"""By operation of the tree: why no automaton is made of it."""


def operations(tree: Any) -> Iterator[str]:
    """The names of all operations in a parsed pattern, however deep."""
    if isinstance(tree, _parser.SubPattern):
        for name, argument in tree:
            yield str(name)
            yield from operations(argument)
    elif isinstance(tree, (list, tuple)):
        for part in tree:
            yield from operations(part)
