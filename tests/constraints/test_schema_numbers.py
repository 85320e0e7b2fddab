"""Numbers of a JSON schema by exact arithmetic: nothing that is accepted breaks the schema, and what is written plainly
is accepted. All strings of a small alphabet, and long ones around the bounds."""

from __future__ import annotations

import itertools
import json
import random
import re
from decimal import Decimal, localcontext
from typing import Any

import pytest
from toys.lms import of_characters

from ppl_align import JsonSchema
from ppl_align.core.errors import InputError

CHARS = "0123456789.-e+E"
LM = of_characters(CHARS)
BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
WRITTEN = ("0.30000000000000000001", "1e400", "1e-400", "NaN", "-Infinity", "9007199254740993")
INTEGER, DECIMAL = r"0|-?[1-9][0-9]*", r"-?(0|[1-9][0-9]*)\.[0-9]*[1-9]"


def drawn(seed: int) -> dict[str, Any]:
    """A schema of a few bounds, of any number of digits, that some number meets."""
    rng = random.Random(seed)
    centre = round(rng.uniform(-5, 15), rng.randint(0, 3))
    schema: dict[str, Any] = {"type": rng.choice(["integer", "number"])}
    for bound in rng.sample(BOUNDS, rng.randint(1, 3)):
        away = round(rng.uniform(1, 20), rng.randint(0, 4))
        schema[bound] = round(centre - away if "inimum" in bound else centre + away, 5)
    return schema | ({"multipleOf": rng.choice([1, 2, 0.5, 0.1, 0.25])} if rng.random() < 0.4 else {})


SHORT = ["".join(t) for n in range(1, 5) for t in itertools.product("015.-e", repeat=n)]
SCHEMAS: list[dict[str, Any]] = [
    *({"const": n} for n in (0, 1, 1.0, 100, 0.5, 1e-7, -5, 2**53)),
    *({"enum": e} for e in ([1, 0.5], [5.0, 10, -1])),
    *({"type": t, "minimum": 1} for t in ("integer", "number")),
    *({"type": t, "exclusiveMinimum": 1.0} for t in ("integer", "number")),
    *({"type": t, "maximum": 0.5} for t in ("integer", "number")),
    *({"type": "number", bound: 0.1} for bound in BOUNDS),
    *({"type": "integer", bound: 2**53 - 1} for bound in BOUNDS),
    *({"type": "integer", "exclusiveMinimum": 0.5, "exclusiveMaximum": 1.5}, {"type": "number", "minimum": 1e-7}),
    *({"type": "integer", "multipleOf": m} for m in (5, 7)),
    *({"type": "number", "multipleOf": m} for m in (0.1, 0.05, 2.5, 0.25, 0.125, 0.01)),
    *({"type": "number", bound: b} for bound in BOUNDS for b in (10.154, -1.172, 0.05, 5.55)),
    *({"maximum": 1.505}, {"type": ["number", "null"], "minimum": -0.55}, {"minimum": 0.001, "maximum": 0.999}),
    *(
        {"type": "number", "multipleOf": 0.25, "minimum": -1.25, "maximum": 5.05},
        {"multipleOf": 1.5, "maximum": 10.155},
    ),
    *(drawn(seed) for seed in range(40)),
]


def by_value(text: str) -> Decimal | None:
    try:
        json.loads(text)
    except ValueError:
        return None
    return Decimal(text)


def meets(schema: dict[str, Any], x: Decimal) -> bool:
    def said(key: str) -> Decimal:
        return Decimal(str(schema[key]))

    with localcontext() as context:
        context.prec = 400
        return (
            ("const" not in schema or x == said("const"))
            and ("enum" not in schema or x in [Decimal(str(e)) for e in schema["enum"]])
            and (schema.get("type") != "integer" or x == x.to_integral_value())
            and ("minimum" not in schema or x >= said("minimum"))
            and ("maximum" not in schema or x <= said("maximum"))
            and ("exclusiveMinimum" not in schema or x > said("exclusiveMinimum"))
            and ("exclusiveMaximum" not in schema or x < said("exclusiveMaximum"))
            and ("multipleOf" not in schema or (abs(x.adjusted()) < 300 and x % said("multipleOf") == 0))
        )


def around(value: Any) -> list[str]:
    """Numbers near this one: by a last digit, however far behind the point, and by powers of ten."""
    x = Decimal(str(value))
    with localcontext() as context:
        context.prec = 100
        close = [format(x + sign * Decimal(10) ** -k, "f") for k in range(30) for sign in (-1, 0, 1)]
    return [*close, *(str(int(x) + a * 10**k) for k in range(0, 30, 3) for a in (-7, -1, 1, 3))]


def plain(schema: dict[str, Any], text: str) -> bool:
    """Written as ``json.dumps`` writes an integer, or with decimals of which the last is no zero."""
    pattern = INTEGER if schema.get("type") == "integer" else f"{INTEGER}|{DECIMAL}"
    return re.fullmatch(pattern, text) is not None


@pytest.mark.parametrize("schema", SCHEMAS, ids=str)
def test_what_is_accepted_meets_the_schema_and_what_is_plain_is_accepted(schema: dict[str, Any]) -> None:
    values = [v for v in (*schema.values(), *schema.get("enum", ())) if isinstance(v, (int, float))]
    texts = list(dict.fromkeys([*SHORT, *(text for value in values for text in around(value))]))
    matcher = JsonSchema(schema).compile(LM)
    accepted = matcher.accepts([tuple(map(CHARS.index, text)) for text in texts]).tolist()
    known = {text: x for text in texts if (x := by_value(text)) is not None}
    right = [text in known and meets(schema, known[text]) for text in texts]
    assert [t for t, a, r in zip(texts, accepted, right, strict=True) if a and not r] == []
    assert [t for t, a, r in zip(texts, accepted, right, strict=True) if r and not a and plain(schema, t)] == []
    assert any(accepted)


@pytest.mark.parametrize(
    "schema",
    [
        *({key: n} for key in ("const", "minimum", "maximum", "multipleOf") for n in (2**53 + 1, 1e300, 10**400)),
        *({"const": x} for x in (float("nan"), float("inf"))),
        {"enum": [1, [2**60]]},
        *({"multipleOf": n} for n in (0, -1, 0.0, 1000003, 196149652)),  # the last would take minutes, and gigabytes
        *({"type": "integer", key: n} for key, n in (("exclusiveMaximum", -(2**53)), ("exclusiveMinimum", 2**53))),
        *('{"const": ' + x + "}" for x in WRITTEN),
        '{"type": "number", "maximum": 1.00000000000000000001}',
    ],
    ids=str,
)  # fmt: skip
def test_a_number_that_would_be_another_is_refused_in_one_line(schema: Any) -> None:
    with pytest.raises(InputError, match="JsonSchema: ") as error:
        JsonSchema(schema)
    assert len(str(error.value).splitlines()) == 1


WITHIN: dict[str, Any] = {
    "a property": {"properties": {"x": {"type": "number", "maximum": 10.154}}},
    "a property of this name": {"properties": {"enum": {"type": "number", "maximum": 10.154}}},
    "an item": {"items": {"type": "number", "maximum": 10.154}},
    "a definition": {"$ref": "#/$defs/x", "$defs": {"x": {"type": "number", "maximum": 10.154}}},
    "all of": {"allOf": [{"type": "number"}, {"maximum": 10.154}, {"minimum": 1.15}]},
    "beside a choice": {"type": "number", "maximum": 10.154, "anyOf": [{"minimum": 5}, {"maximum": -5.25}]},
}


@pytest.mark.parametrize("where", WITHIN)
def test_wherever_it_stands_in_the_schema(where: str) -> None:
    around_it = {"a property": '{"x": %s}', "a property of this name": '{"enum": %s}', "an item": "[%s]"}
    chars = [*CHARS, *'{}[]":, xenum'.replace("e", "")]
    lm = of_characters(chars)
    matcher = JsonSchema(WITHIN[where]).compile(lm)
    for number, fits in (
        ("10.1", True),
        ("10.154", True),
        ("10", True),
        ("10.155", False),
        ("10.2", False),
        ("7", True),
    ):
        text = around_it.get(where, "%s") % number
        assert bool(matcher.accepts([tuple(map(chars.index, text))])[0]) == fits, text
