"""What llguidance would read in another way than Python does is refused: patterns, and numbers of a JSON schema.

A pattern means what ``re.fullmatch`` says. The tree that ``re`` itself makes of it shows what has no counterpart in the
engine; the rest is translated (:mod:`ppl_align.constraints.translation`).
"""

from __future__ import annotations

import math
import re
import warnings
from decimal import Decimal
from re import _parser  # type: ignore[attr-defined]
from typing import Any, NoReturn

from ppl_align.core.errors import InputError
from ppl_align.tokens.patterns import REFUSED, operations

EXACT_INTEGERS = 2**53
"""Beyond this llguidance, which computes in double precision, rounds an integer to another one."""


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
    for operation in operations(tree):
        if operation in REFUSED:
            raise InputError(f"{shown} cannot be read: {REFUSED[operation]}")
    if tree.state.flags & re.VERBOSE:
        raise InputError(f"{shown} cannot be read: (?x) is not supported")
    if tree.state.flags & re.ASCII:
        raise InputError(f"{shown} cannot be read: (?a) is not supported, write [0-9], [A-Za-z0-9_] and the like")
    return tree


def refuse_rounded_numbers(schema: Any) -> None:
    """Raise ``InputError`` for a number in a JSON schema that llguidance would round (it computes in doubles), and for
    what is no number of JSON."""
    if isinstance(schema, dict):
        for value in schema.values():
            refuse_rounded_numbers(value)
    elif isinstance(schema, (list, tuple)):
        for value in schema:
            refuse_rounded_numbers(value)
    elif isinstance(schema, float) and not math.isfinite(schema):
        raise InputError(f"JsonSchema: {schema} is no number of JSON")
    elif isinstance(schema, (int, float)) and abs(schema) > EXACT_INTEGERS:
        raise InputError(f"JsonSchema: {schema} lies beyond 2**53, where numbers are rounded; write it as a string")


def exact_float(written: str) -> float:
    """A decimal number of a JSON text. Raises ``InputError`` where a double would be another number."""
    value = float(written)
    if math.isinf(value) or Decimal(written) != Decimal(repr(value)):
        raise InputError(f"JsonSchema: {written} has more digits than a double holds, it would be read as {value!r}")
    return value


def no_constant(written: str) -> NoReturn:
    """``NaN`` and ``Infinity``, which Python's ``json`` takes."""
    raise InputError(f"JsonSchema: {written} is no number of JSON")
