"""Every character means in a pattern what this Python's ``re`` says: of the classes, all of Unicode is tried."""

from __future__ import annotations

import re
from re import _parser  # type: ignore[attr-defined]

import pytest
from toys.lms import of_characters

from ppl_align import Regex
from ppl_align.constraints.translation import translated
from ppl_align.core.errors import InputError

ODD = [*"aAbBzZ019_ \n\t-iIkKsS"]
ODD += [*"²½٣é\u0301\u00df\u1e9e\u017f\u212a\u0130\u0131\u03c3\u03c2\u03a3\u00b5\u03bc\u00a0\x1c\x85ǅᾳΐ"]
LM = of_characters(ODD)
PLACES = [
    *(r"\w", r"\W", r"\d", r"\D", r"\s", r"\S", r".", r"(?s).", r"[\w-]", r"[^\W\d]", r"[^\s]", r"[a-z\d]", r"[^a]"),
    *(r"(?i)[a-z]", r"(?i)[^a-z]", r"(?i)\w", r"(?i)[^\W_]", r"(?i)[A-Z_]", r"(?i)(?-i:k)", r"(?i:k)", r"(?i)[^s]"),
    *(f"(?i){c}" for c in "ikKsSßẞſKİıσςΣµμéǅǆᾳΐ"),
    *(r"\x41", r"\u00e9", r"\t", r"[\x00-\x1f]", r"[\b]", r"\-", "[]a]", "[^]a]", "[a-]"),
]

EVERYWHERE = (r"\w", r"\d", r"\S", r"(?i)[a-z]")


@pytest.mark.parametrize("pattern", PLACES)
def test_a_place_for_one_character_takes_what_re_takes(pattern: str) -> None:
    """By Python's own reading of the translation's sets."""
    found = translated(_parser.parse(pattern), pattern)
    python = re.sub(r"\\x\{([0-9A-F]+)\}", lambda m: rf"\U{int(m[1], 16):08x}", found)
    takes, meant = re.compile(python).fullmatch, re.compile(pattern).fullmatch
    codes = (
        range(0x110000) if pattern in EVERYWHERE else [*range(0x600), *range(0x1C80, 0x2190), *range(0xA640, 0xAB70)]
    )
    every = map(chr, (c for c in codes if not 0xD800 <= c <= 0xDFFF))
    assert [c for c in every if bool(takes(c)) != bool(meant(c))] == []


@pytest.mark.parametrize("pattern", [p for p in PLACES if p != r"[\b]"])
def test_the_engine_reads_the_translation_as_re_reads_the_pattern(pattern: str) -> None:
    matcher = Regex(pattern).compile(LM)
    accepted = matcher.accepts([(v,) for v in range(len(ODD))]).tolist()
    assert accepted == [re.fullmatch(pattern, c) is not None for c in ODD]
    mask = matcher.allowed([()], 1)[0][: len(ODD)].tolist()
    assert mask == accepted


@pytest.mark.parametrize("pattern", [r"a$\n", r"a^b", r"(?:^a)*", r"(a$)+b", r"\ba", r"(?m)a$\nb", r"a?^b"])
def test_an_anchor_inside_is_refused(pattern: str) -> None:
    with pytest.raises(InputError, match="cannot be read") as error:
        Regex(pattern)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("pattern", ["^a$", "^a|b$", "(^a)|(b$)", r"\Aa", "^(?:a|b)+$", "a$|b", "(?i:a)b|^B"])
def test_an_anchor_at_the_border_says_nothing(pattern: str) -> None:
    matcher = Regex(pattern).compile(LM)
    for text in ("", "a", "b", "ab", "aB", "Ab", "B", "aa", "a\n", "\na", "bb"):
        accepted = bool(matcher.accepts([tuple(map(ODD.index, text))])[0])
        assert accepted == (re.fullmatch(pattern, text) is not None), text
