"""A pattern means what ``re.fullmatch`` says, or is refused; a number of a JSON schema is that number, or refused."""

from __future__ import annotations

import itertools
import re
import warnings

import pytest
from toys.lms import of_characters

from ppl_align import JsonSchema, Regex
from ppl_align.core.errors import InputError

CHARS = [*"abA1_ \n\\/.^$|-]{},2+é٣"]
LM = of_characters(CHARS)
TEXTS = [
    "",
    *CHARS,
    *map("".join, itertools.product("abA1\n]2", repeat=2)),
    "aaa",
    "aab",
    "a/b",
    "a\\/b",
    "a++",
    "a\nb",
    "}",
]

READ = [
    *(
        r"^a$",
        r"a$|b",
        r"\Aab",
        r"(?i)ab",
        r"(?i:a)b",
        r"(?s).",
        r".",
        r"a{2,}",
        r"a{1,2}?",
        r"a+?",
        r"(?:a|b)*?",
        r"|a",
    ),
    *(
        r"\d",
        r"\D",
        r"\w",
        r"\W",
        r"\s",
        r"[a\]]",
        r"[]a]",
        r"[^]a]",
        r"[a-]",
        r"[^\n]",
        r"\x41",
        r"\u00e9",
        r"(?P<x>a)",
    ),
    *("a/b", r"a\/b", re.escape("a\\/b"), "a\nb", r"\.", r"\-", r"\ ", "}"),
]
REFUSED = [
    *("a++ab", "a*+a", "a?+", "a{1,2}+a", "(?>a|ab)", "(?:a++)b", "a\\", "x/\\", "(a", "[a", "a**", "(?i"),
    *(r"(a)\1", r"(?=a)a", r"(?<!b)a", r"\ba", r"a\B", "(a)?(?(1)b|a)", "(?x) a", "(?a)a", r"\101", r"\z", r"\p{L}"),
    *("[a&&b]", "[[a]b]", "[[:alpha:]]", "[a~~b]", "[ab||c]"),
]


def accepted(pattern: str) -> list[str]:
    matcher = Regex(pattern).compile(LM)
    return [text for text in TEXTS if matcher.accepts([tuple(map(CHARS.index, text))])[0]]


@pytest.mark.parametrize("pattern", READ)
def test_a_pattern_accepts_what_fullmatch_accepts(pattern: str):
    meant = [text for text in TEXTS if re.fullmatch(pattern, text)]
    assert meant
    assert accepted(pattern) == meant


@pytest.mark.parametrize("pattern", REFUSED)
def test_a_pattern_that_would_be_read_differently_is_refused_in_one_line(pattern: str):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(InputError, match=r"Regex\(.*cannot be read") as refused:
            Regex(pattern)
    assert "\n" not in str(refused.value)


def test_a_plus_that_only_looks_possessive_is_read():
    assert accepted(r"a[+]+") == ["a++"]
    assert accepted(r"a\++") == ["a++"]


@pytest.mark.parametrize("number", [2**53 + 1, -(2**53) - 1, 1234567890123456789, 2**63 + 1, 1e17])
@pytest.mark.parametrize("where", ["const", "enum", "minimum", "nested"])
def test_a_number_that_would_be_rounded_is_refused(number: float, where: str):
    schemas = {"enum": {"enum": [1, number]}, "nested": {"properties": {"id": {"anyOf": [{"const": number}]}}}}
    with pytest.raises(InputError, match="rounded"):
        JsonSchema(schemas.get(where, {where: number}))
