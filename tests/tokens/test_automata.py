"""Automata over token ids, against what plain Python says of every short sequence and of its text."""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from toys.lms import OVERLAPPING
from toys.oracles import all_sequences

from ppl_align import MarkovLM
from ppl_align.core.errors import InputError
from ppl_align.tokens.automaton import Automaton
from ppl_align.tokens.regex import regex_characters


@pytest.mark.parametrize("ids", [[1], [1, 1], [0, 1, 0], [0, 0, 1, 0, 0], [1, 0, 1, 1], [0, 1, 0, 1, 2]])
def test_contains_is_what_a_search_finds(ids: list[int]) -> None:
    """Overlaps of the wanted sequence with itself included."""
    automaton = Automaton.contains(ids, 3)
    assert torch.equal(Automaton.contains(ids, MarkovLM(torch.zeros(3, 3))).transitions, automaton.transitions)
    tokens = all_sequences(3, 7)
    expected = [any(row[i : i + len(ids)] == ids for i in range(len(row))) for row in tokens.tolist()]
    assert automaton.accepting[automaton.run(tokens)].tolist() == expected
    assert automaton.minimal().num_states == automaton.num_states == len(ids) + 1


def test_a_run_of_a_batch_is_the_runs_of_its_rows() -> None:
    automaton = Automaton.contains([1, 2], 3)
    tokens = all_sequences(3, 4).reshape(9, 9, 4)
    assert torch.equal(automaton.run(tokens)[4, 7], automaton.run(tokens[4, 7]))
    assert automaton.run(tokens[..., :0]).tolist() == [[0] * 9] * 9
    assert torch.equal(automaton.run(tokens, torch.full((9, 9), 2)), automaton.run(tokens[..., :2]))


def test_minimal_merges_what_cannot_be_told_apart_and_drops_what_cannot_be_reached() -> None:
    # States 1 and 3 do the same; 4 is never entered.
    table = torch.tensor([[1, 3], [2, 0], [2, 2], [2, 0], [0, 1]])
    wide = Automaton(table, 0, torch.tensor([False, False, True, False, True]))
    small = wide.minimal()
    assert small.num_states == 3
    tokens = all_sequences(2, 8)
    assert torch.equal(small.accepting[small.run(tokens)], wide.accepting[wide.run(tokens)])


@pytest.mark.parametrize(
    ("ask", "says"),
    [
        (lambda: Automaton.contains([], 3), "at least one"),
        (lambda: Automaton.contains([3], 3), "ids from 0 to 2"),
        (lambda: Automaton.contains([0], "3"), "ids and an LM or its vocab_size, got '3'"),
        (lambda: Automaton.contains("ab", OVERLAPPING), "a list of ids, got 'ab'; for text: Automaton.contains_text"),
        (lambda: Automaton.contains_text("", OVERLAPPING), "at least one character"),
        (lambda: Automaton.contains_text("a", 5), "takes a text and the LM .* got str and int"),
        (lambda: Automaton.regex("a", 5), "takes a text and the LM .* got str and int"),
        (lambda: Automaton(torch.zeros(2), 0, torch.zeros(2)), r"shape \[S, V\]"),
        (lambda: Automaton(torch.zeros(2, 3), 0, torch.zeros(3)), r"shape \[2\]"),
        (lambda: Automaton(torch.full((2, 3), 2), 0, torch.zeros(2)), "from 0 to 1"),
        (lambda: Automaton(torch.zeros(2, 3), 2, torch.zeros(2)), "from 0 to 1"),
        (lambda: Automaton.regex("a", MarkovLM(torch.zeros(9, 9))), "tokens=\\[...\\]"),
    ],
)
def test_mistakes_are_one_line(ask: Callable[[], Any], says: str) -> None:
    with pytest.raises(InputError, match=says) as error:
        ask()
    assert "\n" not in str(error.value)


PATTERNS = [
    r"a*b",
    r"(a|b)*a",
    r"(ab)+",
    r".*b.*",
    r"(?s:.)*é(?s:.)*",
    r"[^a]*",
    r"\w*",
    r"(\w|\W){2}",
    r"\s?\S*",
    r"(?i:a)+\d?.*",
    r"a{2,3}b?",
    r"(?:_\.|a)*?",
    r"[ab\n]*",
    r"",
    r"x",
    r"(|b)a+",
    r"[._]+a?",
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_regex_is_fullmatch_of_the_text(pattern: str) -> None:
    """Every sequence of up to four tokens; texts are cut into tokens in several ways ("ab" is "a" + "b")."""
    automaton = Automaton.regex(pattern, OVERLAPPING)
    matcher = re.compile(pattern, re.ASCII)
    for length in range(5):
        tokens = all_sequences(9, length)
        expected = [matcher.fullmatch(OVERLAPPING.decode(row)) is not None for row in tokens.tolist()]
        assert automaton.accepting[automaton.run(tokens)].tolist() == expected


@pytest.mark.parametrize("text", ["a", "aba", "ba\nb", "é_", ".a", "x", "abab"])
def test_contains_text_is_in(text: str) -> None:
    automaton = Automaton.contains_text(text, OVERLAPPING)
    for length in range(5):
        tokens = all_sequences(9, length)
        expected = [text in OVERLAPPING.decode(row) for row in tokens.tolist()]
        assert automaton.accepting[automaton.run(tokens)].tolist() == expected


IRREGULAR = ["(", "^a", "a$", r"\ba", r"(a)\1", "(?=a)a", "(?!a).*", "(?<=a)b", "(?<!a)b", "a++b", "a*+", "(?>a|ab)b"]
IRREGULAR += ["(?#note)a", "[]a]", "[^]a]", "(?i)é", "(?x)a b", "a{b}", r"\Aa", r"\p{L}", "(?u)a", "(?P<n>a)(?P=n)"]


@pytest.mark.parametrize("pattern", IRREGULAR)
def test_what_is_no_regular_pattern_here_is_refused(pattern: str) -> None:
    """interegular would read some of these as something else, without a word."""
    with pytest.raises(InputError, match=re.escape(repr(pattern))) as error:
        Automaton.regex(pattern, OVERLAPPING)
    assert "\n" not in str(error.value)


def test_brackets_inside_escapes_and_sets_are_no_look_around() -> None:
    for pattern in [r"\(?=a", r"[(?=]+", r"a\++", r"[*+]+"]:
        machine, matcher = regex_characters(pattern), re.compile(pattern)
        for text in map("".join, itertools.product("(?=a+*[", repeat=3)):
            state = machine.start
            for character in text:
                state = machine.step(state, character)
            assert bool(machine.accepting[state]) == (matcher.fullmatch(text) is not None)


def test_without_interegular_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "interegular", None)
    with pytest.raises(InputError, match=r"pip install ppl-align\[oracles\]"):
        Automaton.regex("a", OVERLAPPING)
    assert Automaton.contains_text("a", OVERLAPPING).num_states == 2
