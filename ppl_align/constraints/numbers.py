"""Numbers of a JSON schema by value: what llguidance would leave out is put back in, what it cannot tell is refused.

A bound is a pattern of digits for llguidance, and so is a multiple; not all of them say what they should. A number
with fewer decimals than the bound above it (``10.1`` below ``10.154``), a multiple with fewer decimals than its step
(``0.5`` of ``0.25``) would not be accepted, without a word. So the numbers around each bound and multiple are tried.
Where some are missing, the schema gets them as further choices:

    maximum b          or one of the numbers that b begins with
    multipleOf m       or a multiple of lcm(m, 10^-d), for each d below the decimals of m

and is tried again; what is still judged wrongly is refused.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Callable, Iterator
from decimal import Decimal, localcontext
from functools import lru_cache
from math import lcm
from typing import Any

from ppl_align.constraints.llg import accepted
from ppl_align.core.errors import InputError

BOUNDS: dict[str, Callable[[Decimal, Decimal], bool]] = {
    "minimum": operator.ge,
    "maximum": operator.le,
    "exclusiveMinimum": operator.gt,
    "exclusiveMaximum": operator.lt,
}
KEYWORDS = {**BOUNDS, "multipleOf": lambda x, step: x % step == 0}
"""What they say of a number, and of their own value."""
_DATA = ("enum", "const", "default", "examples")
_BY_NAME = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_DIGITS = 1100  # of any number that a double holds
MOST_REMAINDERS = 20_000
"""A multiple is told by its remainder, a state for each; powers of two and five apart, which the last digits tell."""

Schema = dict[str, Any]


def by_value(schema: Any) -> Any:
    """The schema with the numbers that llguidance would leave out. Raises ``InputError`` for what cannot be mended."""
    if isinstance(schema, list):
        return [by_value(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    rest = {key: _part(key, value) for key, value in schema.items()}
    numeric = {key: value for key, value in rest.items() if key in KEYWORDS and _is_number(value)}
    if not numeric:
        return rest
    if "multipleOf" in numeric:
        _refuse_step(numeric["multipleOf"])
    said = numeric | ({"type": _number_type(rest)} if "type" in rest else {})
    choices = json.loads(_choices(json.dumps(said)))
    if not choices:
        return rest
    own = {key: rest.pop(key) for key in (*numeric, "type") if key in rest}
    every = {"anyOf": [own, *choices]}
    return {**rest, "allOf": [*rest.get("allOf", ()), every]} if "anyOf" in rest else {**rest, **every}


def _part(key: str, value: Any) -> Any:
    """The value of a keyword: data, schemas by name, or schemas."""
    if key in _DATA:
        return value
    if key in _BY_NAME and isinstance(value, dict):
        return {name: by_value(part) for name, part in value.items()}
    return by_value(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _number_type(schema: Schema) -> str:
    """ "integer" where no other numbers may be written."""
    types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    return "integer" if "integer" in types and "number" not in types else "number"


def _refuse_step(step: float) -> None:
    if step <= 0:
        raise InputError(f"JsonSchema: multipleOf must be above 0, got {step}")
    numerator = int(_units(_decimal(step))[0])
    for prime in (2, 5):
        while numerator and numerator % prime == 0:
            numerator //= prime
    if numerator > MOST_REMAINDERS:
        raise InputError(
            f"JsonSchema: multiples of {step} are told apart by {numerator:,} remainders, more than {MOST_REMAINDERS:,}"
        )


@lru_cache(maxsize=256)
def _choices(numeric: str) -> str:
    """What has to be added to these keywords, a list of schemas as JSON."""
    schema = json.loads(numeric)
    texts = list(dict.fromkeys(_around(schema)))
    right = [_meets(schema, Decimal(text)) for text in texts]
    try:
        if _judged(schema, (), texts, right) is None:
            return "[]"
    except InputError:  # llguidance says why when it reads the whole
        return "[]"
    choices = [*_coarser(schema), *_beginnings(schema)]
    wrong = _judged(schema, choices, texts, right)
    if wrong is None:
        return json.dumps(choices)
    kept = ", ".join(f"{key} {schema[key]}" for key in KEYWORDS if key in schema)
    verdict = "refused" if _meets(schema, Decimal(wrong)) else "accepted"
    raise InputError(f"JsonSchema: {kept}: {wrong} would be {verdict}; choose bounds with fewer digits")


def _readable(schema: Schema) -> bool:
    """Does llguidance read it? Not a schema that no number meets."""
    try:
        accepted(f"start: %json {json.dumps(schema)}", ())
    except InputError:
        return False
    return True


def _judged(schema: Schema, choices: Any, texts: list[str], right: list[bool]) -> str | None:
    """The first of the texts that is judged wrongly."""
    found = accepted(f"start: %json {json.dumps({'anyOf': [schema, *choices]} if choices else schema)}", texts)
    return next((text for text, a, r in zip(texts, found, right, strict=True) if a != r), None)


def _coarser(schema: Schema) -> Iterator[Schema]:
    """Multiples with fewer decimals than the step has."""
    if "multipleOf" not in schema or schema.get("type") == "integer":
        return
    units, decimals = _units(_decimal(schema["multipleOf"]))
    for d in range(1, decimals):
        step = Decimal(lcm(units, 10 ** (decimals - d))).scaleb(-decimals)
        coarser = {**schema, "type": "number", "multipleOf": float(step)}
        if _readable(coarser):
            yield coarser


def _beginnings(schema: Schema) -> Iterator[Schema]:
    """The numbers that a bound begins with."""
    found = dict.fromkeys(
        text for key in BOUNDS if key in schema for text in _cut(_decimal(schema[key])) if _fits(schema, text)
    )
    if found:
        yield {"enum": [json.loads(text) for text in found]}


def _cut(x: Decimal) -> list[str]:
    """A number with the last decimals left out, one after the other, as it is written plainly."""
    decimals = _units(x)[1]
    return [_plain(x.quantize(Decimal(1).scaleb(-d), "ROUND_DOWN")) for d in range(decimals + 1)]


def _around(schema: Schema) -> Iterator[str]:
    """Numbers at which a schema changes its mind, written plainly."""
    integer = schema.get("type") == "integer"
    with localcontext() as context:
        context.prec = _DIGITS
        for key in BOUNDS:
            if key in schema:
                bound = _decimal(schema[key])
                for d in range(_units(bound)[1] + 2):
                    unit = Decimal(1).scaleb(-d)
                    cut = bound.quantize(unit, "ROUND_DOWN")
                    yield from (_plain(x) for k in range(-11, 12) if not (integer and d) for x in (cut + k * unit,))
        if "multipleOf" in schema:
            step = _decimal(schema["multipleOf"])
            starts = [0, *(int(_decimal(schema[key]) / step) for key in BOUNDS if key in schema)]
            for x in (step * (start + k) for start in starts for k in range(-30, 31)):
                if not integer or x == x.to_integral_value():
                    yield _plain(x)
            units, decimals = _units(step)
            for d in range(decimals + 1):
                each = Decimal(lcm(units, 10 ** (decimals - d))).scaleb(-decimals)
                yield from (_plain(each * k) for k in (-3, -1, 1, 2, 7, 10, 13) if not (integer and d))
        yield from ("0", "1", "-1", "7", "10", "-10")


def _fits(schema: Schema, text: str) -> bool:
    return _meets(schema, Decimal(text)) and (schema.get("type") != "integer" or "." not in text)


def _meets(schema: Schema, x: Decimal) -> bool:
    """Does a number meet the keywords, by exact arithmetic?"""
    with localcontext() as context:
        context.prec = 2 * _DIGITS
        if schema.get("type") == "integer" and x != x.to_integral_value():
            return False
        return all(holds(x, _decimal(schema[key])) for key, holds in KEYWORDS.items() if key in schema)


def _decimal(value: float) -> Decimal:
    return Decimal(repr(value))


def _units(x: Decimal) -> tuple[int, int]:
    """``(n, d)`` with |x| = n / 10^d, d the fewest decimals."""
    _, digits, exponent = x.normalize().as_tuple()
    number = int("".join(map(str, digits)))
    assert isinstance(exponent, int)
    return (number, -exponent) if exponent < 0 else (number * 10**exponent, 0)


def _plain(x: Decimal) -> str:
    """As ``json.dumps`` writes an integer, or with decimals of which the last is no zero."""
    text = format(x, "f")
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text in ("-0", "") else text
