"""Constraints on text that have a grammar: regular expressions, JSON schemas, and grammars in Lark's notation.

All three are a Lark grammar for llguidance. What they accept is what its documentation says: regular expressions are
those of Rust's ``regex`` (no look-around, no back-references), the terminals of a grammar match greedily, as in a
lexer, and of a JSON schema the properties come in the order in which the schema lists them.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

from ppl_align.constraints.base import Constraint
from ppl_align.constraints.byte_machine import TooLarge, byte_machine
from ppl_align.constraints.foreseen import Foreseen, of_bytes
from ppl_align.constraints.llg import GuidanceMatcher, check_grammar, llguidance
from ppl_align.constraints.meaning import exact_float, no_constant, read_pattern, refuse_rounded_numbers
from ppl_align.constraints.numbers import by_value
from ppl_align.constraints.translation import translated
from ppl_align.core.errors import InputError
from ppl_align.lm.base import LM

_OPTIONS = '\n%llguidance {"no_forcing": true}\n'  # at the end: messages tell line numbers


class _Lark(Constraint):
    @property
    @abstractmethod
    def lark(self) -> str:
        """The grammar as llguidance reads it."""

    def __post_init__(self) -> None:
        check_grammar(self.lark, self._shown, located=isinstance(self, Grammar))

    @property
    def _shown(self) -> str:
        (argument, *_) = vars(self).values()
        return f"{type(self).__name__}({_short(argument)})"

    def compile(self, lm: LM) -> GuidanceMatcher:
        return GuidanceMatcher(lm, self.lark, self._shown)


@dataclass(frozen=True)
class Regex(_Lark):
    r"""The whole text matches ``pattern``: what ``re.fullmatch`` says, or an error.

    As in ``re``, character by character: ``\w``, ``\d``, ``\s`` and ``(?i)`` take what this Python's ``re`` takes, and
    ``.`` anything but a newline; ``(?s)`` and ``(?i)`` in front work.

    Raises ``InputError`` for a pattern that ``re`` cannot read, and for what has no counterpart in the engine:
    look-around, back-references, ``\b``, anchors inside of a pattern, possessive quantifiers, atomic groups, operations
    on sets.

    >>> Regex(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
    Regex(pattern='[0-9]{4}-[0-9]{2}-[0-9]{2}')
    """

    pattern: str

    def __post_init__(self) -> None:
        if not isinstance(self.pattern, str):
            raise InputError(f"Regex takes a pattern as text, got {type(self.pattern).__name__}")
        check_grammar(_pattern(self.pattern), self._shown, located=False)
        tree = read_pattern(self.pattern, self._shown)
        object.__setattr__(self, "_translated", translated(tree, self._shown))
        super().__post_init__()

    @property
    def lark(self) -> str:
        return _pattern(self.__dict__["_translated"])

    def compile(self, lm: LM) -> GuidanceMatcher:
        return GuidanceMatcher(lm, self.lark, self._shown, lambda: self._foreseen(lm))

    def _foreseen(self, lm: LM) -> Foreseen | None:
        """The same language as an automaton over tokens, for looking ahead; None where that would be too large."""
        try:
            return of_bytes(lm, byte_machine(read_pattern(self.pattern, self._shown)))
        except TooLarge:
            return None


@dataclass(frozen=True, init=False)
class JsonSchema(_Lark):
    """The text is a JSON value that ``schema`` describes: a dict, or JSON text.

    ``separators``  what stands between items and after keys, as in ``json.dumps``; None: any white space that JSON
                    allows there (an LM may then write white space for ever)

    Properties come in the order of the schema; unless it says ``"additionalProperties": false``, others may follow.

    A number is judged by its exact value. One that has to meet a bound, a ``const``, an ``enum`` or ``multipleOf`` is
    written plainly: no exponent, no point in an integer, no zeros at the end of a constant (``1.0`` is no way to write
    ``1``; texts of a bare ``{"type": "number"}`` are free).

    Raises ``InputError`` for numbers that a double does not hold, for what is no JSON, for an invalid schema, for one
    that nothing satisfies, and for keywords that llguidance does not know how to enforce.

    >>> JsonSchema({"type": "integer", "minimum": 1})
    JsonSchema(schema='{"type": "integer", "minimum": 1}', separators=(', ', ': '))
    """

    schema: str
    separators: tuple[str, str] | None

    def __init__(self, schema: dict[str, Any] | bool | str, separators: tuple[str, str] | None = (", ", ": ")) -> None:
        object.__setattr__(self, "schema", _as_json(schema))
        object.__setattr__(self, "separators", None if separators is None else _pair(separators))
        self.__post_init__()

    @property
    def lark(self) -> str:
        schema = by_value(json.loads(self.schema))
        options: dict[str, Any] = {"whitespace_flexible": self.separators is None}
        if self.separators is not None:
            options["item_separator"], options["key_separator"] = self.separators
        return f"start: %json {json.dumps({**schema, 'x-guidance': options})}" + _OPTIONS


def _pattern(pattern: str) -> str:
    return f"start: /{llguidance().regex_to_lark(pattern, '')}/" + _OPTIONS


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 70 else shown[:67] + "..."


def _as_json(schema: Any) -> str:
    if isinstance(schema, str):
        try:
            schema = json.loads(schema, parse_float=exact_float, parse_constant=no_constant)
        except json.JSONDecodeError as error:
            raise InputError(f"JsonSchema({_short(schema)}) is not JSON: {error}") from error
    if schema is True:
        schema = {}
    if schema is False:
        raise InputError("JsonSchema(False) cannot be met: no value satisfies the schema false")
    if not isinstance(schema, dict):
        raise InputError(f"JsonSchema takes a schema as a dict or as JSON text, got {_short(schema)}")
    refuse_rounded_numbers(schema)
    try:
        return json.dumps(schema)
    except (TypeError, ValueError) as error:
        raise InputError(f"JsonSchema: the schema is not JSON: {error}") from error


def _pair(separators: Any) -> tuple[str, str]:
    pair = tuple(separators)
    if len(pair) != 2 or pair[0].strip(" \t\r\n") != "," or pair[1].strip(" \t\r\n") != ":":
        raise InputError(f"JsonSchema: separators are a comma and a colon, with white space or without, got {pair}")
    return pair


@dataclass(frozen=True)
class Grammar(_Lark):
    '''The text is a sentence of ``grammar``: context-free, in Lark's notation; its rule ``start`` is the whole text.

    Terminals are written in upper case and match greedily, as in a lexer. See
    https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md for what can be written.

    Raises ``InputError`` for a grammar that cannot be read.

    >>> balanced = Grammar("""
    ... start: "(" start ")" start | ""
    ... """)
    '''

    grammar: str

    def __post_init__(self) -> None:
        if not isinstance(self.grammar, str):
            raise InputError(f"Grammar takes a grammar as text, got {type(self.grammar).__name__}")
        super().__post_init__()

    @property
    def lark(self) -> str:
        return self.grammar + _OPTIONS
