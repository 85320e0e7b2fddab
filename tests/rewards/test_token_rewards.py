"""Rewards of token ids and automata, against what plain Python says of every short sequence."""

from __future__ import annotations

import itertools
import math
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from ppl_align import SMC, Enumeration, MarkovLM, completion, reward
from ppl_align.core.errors import InputError
from ppl_align.rewards import Accepts, Automaton, LastToken, TokenSum, evaluate
from ppl_align.tokens.regex import regex_characters

SPELLED = ["a", "b", "ab", "ba\n", "é", "A1", "_.", "", "$"]


def spelled(tokens: Sequence[str] | None = SPELLED, eos_id: int | None = 8) -> MarkovLM:
    size = 9 if tokens is None else len(tokens)
    return MarkovLM(torch.zeros(size, size, dtype=torch.float64), torch.zeros(size), eos_id=eos_id, tokens=tokens)


def all_sequences(vocab: int, length: int) -> Tensor:
    return torch.tensor(list(itertools.product(range(vocab), repeat=length))).reshape(vocab**length, length).long()


def kept(row: list[int], terminal: tuple[int, ...]) -> list[int]:
    """The tokens that belong to a sequence, its first terminal token included."""
    end = next((t for t, v in enumerate(row) if v in terminal), len(row))
    return row[: end + 1]


# -- sums and last tokens -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("terminal", [(), (2,), (0, 2)])
@pytest.mark.parametrize("width", [0, 1, 3, 4])
def test_sums_and_last_tokens_of_every_sequence_and_prefix(terminal: tuple[int, ...], width: int) -> None:
    tokens = all_sequences(3, width)
    values = torch.randn(4, 3, dtype=torch.float64)
    rows = [kept(row, terminal) for row in tokens.tolist()]
    expected = {
        "placed": [sum(float(values[t, v]) for t, v in enumerate(row)) for row in rows],
        "sum": [sum(float(values[0, v]) for v in row) for row in rows],
        "last": [float(values[0, row[-1]]) if row else 0.0 for row in rows],
    }
    found = {
        "placed": TokenSum(values, terminal)(tokens),
        "sum": TokenSum(values[0], terminal)(tokens),
        "last": LastToken(values[0], terminal)(tokens),
    }
    for name, r in found.items():
        assert r.dtype == torch.float64
        assert r.tolist() == pytest.approx(expected[name], abs=1e-12)
    batched = TokenSum(values, terminal)(tokens[:, None].expand(-1, 2, -1))
    assert torch.equal(batched, found["placed"][:, None].expand(-1, 2))


def test_they_are_values_with_an_identity_and_do_not_follow_their_input() -> None:
    values = torch.zeros(3)
    one, other = TokenSum(values, 2), TokenSum(values, 2)
    values[:] = 7.0
    assert one(torch.tensor([0, 1, 1])).item() == 0.0
    assert one != other
    assert len({one, other, one}) == 2
    assert repr(one) == "TokenSum([V=3], terminal=(2,))"
    assert repr(LastToken(values, (2, 1, 1))) == "LastToken([V=3], terminal=(1, 2))"
    assert repr(TokenSum(torch.zeros(5, 3))) == "TokenSum([T=5, V=3], terminal=())"
    with pytest.raises(AttributeError):
        one.values = values  # type: ignore[misc]


def test_every_engine_can_ask_them() -> None:
    lm = MarkovLM(torch.zeros(3, 3, dtype=torch.float64), eos_id=2)

    def model() -> None:
        x = completion("x", lm, [0], max_new_tokens=3)
        reward("sum", TokenSum(torch.tensor([0.0, 1.0, 0.5]), 2), x.tokens, beta=0.7)
        reward("has", Accepts(Automaton.contains([1], 3), terminal=2), x.tokens, prefix_closed=False)

    def by_hand() -> None:
        x = completion("x", lm, [0], max_new_tokens=3)
        ended = (x.tokens == 2).cumsum(-1)
        reward("sum", lambda t: ((t == 1) + 0.5 * ((t == 2) & (ended == 1))).sum(-1), x.tokens, beta=0.7)
        reward("has", lambda t: torch.where((t == 1).any(-1), 0.0, -torch.inf), x.tokens)

    assert torch.equal(Enumeration().run(model).log_weight, Enumeration().run(by_hand).log_weight)
    steered = SMC(num_particles=64, num_replicates=2, twist="prefix").run(model)
    assert bool((steered.rewards["has"] == 0).any())


@pytest.mark.parametrize(
    ("ask", "says"),
    [
        (lambda: TokenSum(torch.zeros(2, 2, 2)), r"shape \[V\] or \[T, V\], got \[2, 2, 2\]"),
        (lambda: LastToken(torch.zeros(2, 2)), r"shape \[V\], got \[2, 2\]"),
        (lambda: LastToken(torch.tensor([0.0, math.nan])), "NaN or"),
        (lambda: TokenSum(torch.tensor([math.inf])), "NaN or"),
        (lambda: TokenSum(torch.zeros(3))(torch.tensor([0, 3])), "0 to 2, got 3"),
        (lambda: TokenSum(torch.zeros(2, 3))(torch.tensor([0, 1, 1])), "2 positions, the completion has 3"),
        (lambda: evaluate("r", TokenSum(torch.zeros(3)), "0 1"), "write reward.name, fn, x.tokens."),
        (lambda: evaluate("r", LastToken(torch.zeros(3)), "0 1"), "write reward.name, fn, x.tokens."),
        (lambda: evaluate("r", Accepts(Automaton.contains([1], 3)), "0 1"), "write reward.name, fn, x.tokens."),
        (lambda: Accepts(Automaton.contains([1], 3), reject=0.1), "at most 0"),
        (lambda: Accepts(Automaton.contains([1], 3), reject=math.nan), "at most 0"),
        (lambda: Automaton.contains([], 3), "at least one"),
        (lambda: Automaton.contains([3], 3), "ids from 0 to 2"),
        (lambda: Automaton.contains([0], "3"), "ids and an LM or its vocab_size, got '3'"),
        (lambda: Automaton.contains("ab", spelled()), "a list of ids, got 'ab'; for text: Automaton.contains_text"),
        (lambda: Automaton.contains_text("", spelled()), "at least one character"),
        (lambda: Automaton.contains_text("a", 5), "takes a text and the LM .* got str and int"),
        (lambda: Automaton.regex("a", 5), "takes a text and the LM .* got str and int"),
        (lambda: Automaton(torch.zeros(2), 0, torch.zeros(2)), r"shape \[S, V\]"),
        (lambda: Automaton(torch.zeros(2, 3), 0, torch.zeros(3)), r"shape \[2\]"),
        (lambda: Automaton(torch.full((2, 3), 2), 0, torch.zeros(2)), "from 0 to 1"),
        (lambda: Automaton(torch.zeros(2, 3), 2, torch.zeros(2)), "from 0 to 1"),
        (lambda: Automaton.regex("a", spelled(tokens=None)), "tokens=\\[...\\]"),
    ],
)
def test_mistakes_are_one_line(ask: Callable[[], Any], says: str) -> None:
    with pytest.raises(InputError, match=says) as error:
        ask()
    assert "\n" not in str(error.value)


# -- automata -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ids", [[1], [1, 1], [0, 1, 0], [0, 0, 1, 0, 0], [1, 0, 1, 1], [0, 1, 0, 1, 2]])
def test_contains_is_what_a_search_finds(ids: list[int]) -> None:
    """Overlaps of the wanted sequence with itself included."""
    automaton = Automaton.contains(ids, 3)
    assert torch.equal(Automaton.contains(ids, MarkovLM(torch.zeros(3, 3))).transitions, automaton.transitions)
    tokens = all_sequences(3, 7)
    expected = [any(row[i : i + len(ids)] == ids for i in range(len(row))) for row in tokens.tolist()]
    assert automaton.accepting[automaton.run(tokens)].tolist() == expected
    assert automaton.minimal().num_states == automaton.num_states == len(ids) + 1


def test_accepts_reads_up_to_the_terminal_token_and_this_one_too() -> None:
    automaton = Automaton.contains([1, 2], 3)
    tokens = all_sequences(3, 5)
    for terminal in [(), (2,), (0, 1)]:
        rows = [kept(row, terminal) for row in tokens.tolist()]
        expected = [0.0 if any(row[i : i + 2] == [1, 2] for i in range(len(row))) else -3.5 for row in rows]
        fn = Accepts(automaton, reject=-3.5, terminal=terminal)
        assert fn(tokens).tolist() == expected
        assert fn.upper == 0.0


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
    lm = spelled()
    automaton = Automaton.regex(pattern, lm)
    matcher = re.compile(pattern, re.ASCII)
    for length in range(5):
        tokens = all_sequences(9, length)
        expected = [matcher.fullmatch(lm.decode(row)) is not None for row in tokens.tolist()]
        assert automaton.accepting[automaton.run(tokens)].tolist() == expected


@pytest.mark.parametrize("text", ["a", "aba", "ba\nb", "é_", ".a", "x", "abab"])
def test_contains_text_is_in(text: str) -> None:
    lm = spelled()
    automaton = Automaton.contains_text(text, lm)
    for length in range(5):
        tokens = all_sequences(9, length)
        expected = [text in lm.decode(row) for row in tokens.tolist()]
        assert automaton.accepting[automaton.run(tokens)].tolist() == expected


def test_a_pattern_on_tokens_and_on_the_text_give_the_same_posterior() -> None:
    """EOS has no text, a stop token has its own, padding has none: as ``Completion.text`` says."""
    lm = spelled()

    def on_tokens() -> None:
        x = completion("x", lm, [], max_new_tokens=3, stop="_")
        reward("r", Accepts(Automaton.regex(r"[ab]+(_\.)?", lm), reject=-2.0, terminal=x.source.terminal), x.tokens)

    def on_text() -> None:
        x = completion("x", lm, [], max_new_tokens=3, stop="_")
        reward("r", lambda texts: [0.0 if re.fullmatch(r"[ab]+(_\.)?", text) else -2.0 for text in texts], x)

    one, other = Enumeration().run(on_tokens), Enumeration().run(on_text)
    assert torch.equal(one.rewards["r"], other.rewards["r"])
    assert set(one.rewards["r"].unique().tolist()) == {0.0, -2.0}


IRREGULAR = ["(", "^a", "a$", r"\ba", r"(a)\1", "(?=a)a", "(?!a).*", "(?<=a)b", "(?<!a)b", "a++b", "a*+", "(?>a|ab)b"]
IRREGULAR += ["(?#note)a", "[]a]", "[^]a]", "(?i)é", "(?x)a b", "a{b}", r"\Aa", r"\p{L}", "(?u)a", "(?P<n>a)(?P=n)"]


@pytest.mark.parametrize("pattern", IRREGULAR)
def test_what_is_no_regular_pattern_here_is_refused(pattern: str) -> None:
    """interegular would read some of these as something else, without a word."""
    with pytest.raises(InputError, match=re.escape(repr(pattern))) as error:
        Automaton.regex(pattern, spelled())
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
        Automaton.regex("a", spelled())
    assert Automaton.contains_text("a", spelled()).num_states == 2
