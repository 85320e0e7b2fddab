"""Rewards of token ids, against what plain Python says of every short sequence."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from toys.lms import OVERLAPPING
from toys.oracles import all_sequences

from ppl_align import SMC, Enumeration, MarkovLM, completion, reward
from ppl_align.core.errors import InputError
from ppl_align.rewards import Accepts, Automaton, LastToken, TokenSum, evaluate


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
    ],
)
def test_mistakes_are_one_line(ask: Callable[[], Any], says: str) -> None:
    with pytest.raises(InputError, match=says) as error:
        ask()
    assert "\n" not in str(error.value)


# -- acceptance ---------------------------------------------------------------------------------------------------


def test_accepts_reads_up_to_the_terminal_token_and_this_one_too() -> None:
    automaton = Automaton.contains([1, 2], 3)
    tokens = all_sequences(3, 5)
    for terminal in [(), (2,), (0, 1)]:
        rows = [kept(row, terminal) for row in tokens.tolist()]
        expected = [0.0 if any(row[i : i + 2] == [1, 2] for i in range(len(row))) else -3.5 for row in rows]
        fn = Accepts(automaton, reject=-3.5, terminal=terminal)
        assert fn(tokens).tolist() == expected
        assert fn.upper == 0.0


def test_a_pattern_on_tokens_and_on_the_text_give_the_same_posterior() -> None:
    """EOS has no text, a stop token has its own, padding has none: as ``Completion.text`` says."""
    lm = OVERLAPPING

    def on_tokens() -> None:
        x = completion("x", lm, [], max_new_tokens=3, stop="_")
        reward("r", Accepts(Automaton.regex(r"[ab]+(_\.)?", lm), reject=-2.0, terminal=x.source.terminal), x.tokens)

    def on_text() -> None:
        x = completion("x", lm, [], max_new_tokens=3, stop="_")
        reward("r", lambda texts: [0.0 if re.fullmatch(r"[ab]+(_\.)?", text) else -2.0 for text in texts], x)

    one, other = Enumeration().run(on_tokens), Enumeration().run(on_text)
    assert torch.equal(one.rewards["r"], other.rewards["r"])
    assert set(one.rewards["r"].unique().tolist()) == {0.0, -2.0}
