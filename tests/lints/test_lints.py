"""Lints: each on a program that has the sin, and on one that has not."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from toys.constrained_programs import LETTERS
from toys.lint_programs import ENDING, WORDS, count_a, found, scaled, scored_by, sound, text

from ppl_align import Predicate, choose, completion, constrain, environment, reward
from ppl_align.constraints import Contains
from ppl_align.lints import lint
from ppl_align.testing.programs import PROGRAMS


def test_a_sound_program_has_no_findings() -> None:
    assert lint(sound) == []


@pytest.mark.parametrize("name", list(PROGRAMS))
def test_no_false_alarms(name: str) -> None:
    assert [f for f in lint(PROGRAMS[name]) if f.severity != "note"] == []


def test_the_same_seed_finds_the_same_and_the_global_stream_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    assert lint(unknown_quality, seed=5) == lint(unknown_quality, seed=5)
    assert torch.equal(torch.random.get_rng_state(), before)


# -- a tilted environment --------------------------------------------------------------------------------------------


def coin_after_text() -> None:
    x = text()
    coin = environment("coin", dist.Bernoulli(0.5))
    reward("luck", lambda t: t.sum(-1).double(), torch.stack([x.tokens[..., 0], coin], -1))


def coin_at_the_end() -> None:
    reward("as", count_a, text())
    environment("coin", dist.Bernoulli(0.5))


def coin_nobody_reads() -> None:
    x = text()
    environment("coin", dist.Bernoulli(0.5))
    reward("as", count_a, x)


def coin_in_a_prompt() -> None:
    coin = environment("coin", dist.Bernoulli(0.5))
    reward("as", count_a, completion("x", WORDS, choose(coin.long(), [" a", " b"]), max_new_tokens=3))


def a_tool() -> None:
    x = text()
    answer = environment("length", lambda t: float(len(t)), x)
    reward("long", lambda t: t[..., 0], answer[..., None])


def test_a_tilted_environment() -> None:
    (finding,) = found(coin_after_text, "tilted environment")
    assert "'coin'" in finding.text
    assert "'luck'" in finding.text
    assert len(found(coin_in_a_prompt, "tilted environment")) == 1
    assert found(coin_at_the_end, "tilted environment") == []
    assert found(coin_nobody_reads, "tilted environment") == []
    assert found(a_tool, "tilted environment") == []  # no randomness, nothing to be lucky with


# -- a reward parameter, marginalised --------------------------------------------------------------------------------


def unknown_quality(spread: float = 2.0) -> None:
    x = text()
    theta = pyro.sample("theta", dist.Normal(1.0, spread))
    reward("quality", lambda t: theta.reshape(-1) * (t == 0).double().sum(-1), x.tokens)


def topic_of_the_prompt() -> None:
    which = pyro.sample("topic", dist.Categorical(torch.ones(2)))
    x = completion("x", WORDS, choose(which, [" a", " b"]), max_new_tokens=3)
    reward("as", lambda prompts, completions: [float(p.count("a")) for p in prompts], x)


def test_a_marginalised_parameter_and_its_bonus() -> None:
    (finding,) = found(unknown_quality, "marginalised reward parameter", 0.5)
    assert "'theta'" in finding.text
    bonus = float(finding.text.split("uncertainty of ")[1].split(" nats")[0])
    # log E exp(theta n) - E[theta] n = (n s)^2 / 2 for n times " a" in four tokens, each with probability 1/4
    exact = 0.5**2 / 2 * (4 * 0.25 * 0.75 + 1)
    assert exact / 2 < bonus < 2 * exact
    assert found(topic_of_the_prompt, "marginalised reward parameter") == []  # it steers the text
    assert found(coin_after_text, "marginalised reward parameter") == []  # the world's, named by another lint


# -- a reward with a state -------------------------------------------------------------------------------------------


class Tired:
    """Pays less each time it is asked."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, texts: list[str]) -> list[float]:
        self.calls += 1
        return [t.count("a") / self.calls for t in texts]


def by_rank(texts: list[str]) -> list[float]:
    return [float(i) for i in range(len(texts))]


def by_batch(texts: list[str]) -> list[float]:
    values = sorted(count_a(texts))
    return [c - values[-1] + len(texts) for c in count_a(texts)]


@pytest.mark.parametrize(
    ("fn", "says"),
    [
        (Tired(), "asked again"),
        (lambda texts: torch.rand(len(texts)), "asked again"),
        (by_rank, "order of the batch"),
        (by_batch, "what else is in the batch"),
    ],
)
def test_a_reward_with_a_state(fn: Any, says: str) -> None:
    (finding,) = found(scored_by, "reward with a state", fn)
    assert says in finding.text
    assert found(scored_by, "reward with a state", count_a) == []


def test_rounding_is_no_state() -> None:
    def nearly(texts: list[str]) -> list[float]:
        return [c + 1e-7 * len(texts) for c in count_a(texts)]

    assert found(scored_by, "reward with a state", nearly) == []


def test_a_factor_with_a_state() -> None:
    def noisy() -> None:
        x = text()
        pyro.factor("noise", torch.rand(x.tokens.shape[0]) + (x.tokens == 0).double().sum(-1))

    (finding,) = found(noisy, "reward with a state")
    assert "factor 'noise'" in finding.text


# -- partial text ----------------------------------------------------------------------------------------------------


def needs_all(texts: list[str]) -> list[float]:
    return [float(t.split()[3] == "a") for t in texts]


def at_the_end(texts: list[str]) -> list[float]:
    return [float(t.split()[3] == "a") if len(t.split()) > 3 else 0.0 for t in texts]


def only_whole(texts: list[str]) -> list[float | None]:
    return [float(t.count("a")) if len(t.split()) > 3 else None for t in texts]


def wild(texts: list[str]) -> list[float]:
    return [t.count("a") * (1.0 if len(t.split()) > 3 else 20.0) for t in texts]


@pytest.mark.parametrize(
    ("fn", "severity", "says"),
    [
        (needs_all, "warning", "raised IndexError"),
        (at_the_end, "note", "the same on all halves"),
        (only_whole, "note", "does not apply to unfinished"),
        (wild, "warning", "would follow noise"),
    ],
)
def test_rewards_on_partial_text(fn: Any, severity: str, says: str) -> None:
    (finding,) = found(scored_by, "reward on partial text", fn)
    assert finding.severity == severity
    assert says in finding.text
    assert found(scored_by, "reward on partial text", count_a) == []


def test_a_tool_on_partial_text() -> None:
    def asks_a_tool() -> None:
        environment("tool", lambda said: said.split()[3], text())

    (finding,) = found(asks_a_tool, "world on partial text")
    assert "environment 'tool' raised IndexError" in finding.text


def test_prefix_closed_is_a_promise() -> None:
    def ends_in_a(closed: bool) -> None:
        x = text()
        rejecting = lambda t: torch.where(t[..., -1] == 0, 0.0, -torch.inf)  # noqa: E731
        reward("ends in a", rejecting, x.tokens, prefix_closed=closed)

    assert any("prefix_closed" in f.text for f in found(ends_in_a, "reward on partial text", True))
    assert not any("prefix_closed" in f.text for f in found(ends_in_a, "reward on partial text", False))


# -- truncation ------------------------------------------------------------------------------------------------------


def ending(limit: int, fussy: bool, penalty: float = 0.1) -> None:
    x = completion("x", ENDING, "", max_new_tokens=limit)
    ended = (x.tokens == 3).any(-1)
    pyro.factor("whole", torch.where(ended, 0.0, -torch.inf if fussy else -penalty))


def test_truncation() -> None:
    (normal,) = found(ending, "truncation", 2, False)
    assert normal.severity == "note"
    (fussy,) = found(ending, "truncation", 2, True)
    assert fussy.severity == "warning"
    share = float(fussy.text.split("%")[0])
    assert abs(share / 100 - 9 / 16) < 4.5 * math.sqrt(9 / 16 * 7 / 16 / 32)
    (soft,) = found(ending, "truncation", 2, False, 20.0)
    assert "20 nats less than any that ends" in soft.text
    assert found(ending, "truncation", 20, False) == []
    assert found(sound, "truncation") == []  # texts of a fixed length have no end


# -- scale -----------------------------------------------------------------------------------------------------------


def test_constant_rewards() -> None:
    (finding,) = found(scored_by, "constant reward", lambda texts: [1.0] * len(texts))
    assert "1 on every draw" in finding.text
    (finding,) = found(scored_by, "constant reward", lambda texts: [None] * len(texts))
    assert "none of the draws" in finding.text
    assert found(sound, "constant reward") == []


@pytest.mark.parametrize(("beta", "says"), [(50.0, "lower beta"), (0.05, "raise beta"), (1.0, None), (5.0, None)])
def test_beta_out_of_scale(beta: float, says: str | None) -> None:
    findings = [f for f in found(scaled, "beta out of scale", beta) if "outweighs" not in f.text]
    assert len(findings) == (says is not None)
    assert says is None or says in findings[0].text


def test_a_yes_or_no_is_not_out_of_scale() -> None:
    def rejecting() -> None:
        reward("no a", lambda texts: [0.0 if "a" not in t else -math.inf for t in texts], text())

    assert found(rejecting, "beta out of scale") == []


def constrained(*, judge: bool = False, foreseen: bool = True) -> None:
    x = completion("x", ENDING, "", max_new_tokens=8)
    if not foreseen:
        {"yes": 1}[environment("tool", lambda said: "yes", x).tolist()[0]]  # engines that look ahead make up its answer
    constrain("six of them", Contains(" c c c c c c"), x)
    reward("as", count_a, x)
    if judge:
        reward("picky", lambda texts: [-math.inf] * len(texts), x)


def test_a_hard_constraint_wastes_no_draws() -> None:
    (finding,) = found(constrained, "beta out of scale")
    assert finding.severity == "note"
    assert "'six of them': engines draw from within" in finding.text
    for rejecting in ({"judge": True}, {"foreseen": False}):
        (finding,) = [f for f in lint(constrained, **rejecting) if f.lint == "beta out of scale"]
        assert finding.severity == "warning"
        assert "all 32 draws are rejected" in finding.text


# -- structure -------------------------------------------------------------------------------------------------------


def branches_on_a_batch() -> None:
    x = text()
    if x.tokens[..., 0] == 1:
        reward("as", count_a, x)


def branches_on_text() -> None:
    x = text()
    if "a" in x.text:
        reward("as", count_a, x)


def changes_by_chance() -> None:
    x = text()
    reward("as", count_a, x)
    if torch.rand(()) < 0.5:
        pyro.factor("more", (x.tokens == 1).double().sum(-1))


@pytest.mark.parametrize("program", [branches_on_a_batch, branches_on_text, changes_by_chance])
def test_non_static_structure(program: Callable[[], None]) -> None:
    findings = found(program, "dynamic structure")
    assert findings
    assert findings[0].severity == "error"


def test_a_branch_on_the_whole_batch_shows_in_half_of_it() -> None:
    def by_average() -> None:
        x = text()
        first = (x.tokens[..., 0] == 0).double()
        pyro.factor("popular", first * (1.0 if len(first) > 20 else 2.0))

    (finding,) = found(by_average, "reward with a state")
    assert "what else is in the batch" in finding.text


# -- a no that is not final ------------------------------------------------------------------------------------------


def limited_by(accepts: Callable[[str], bool], viable: Callable[[str], bool] | None = None) -> Callable[[], None]:
    def model() -> None:
        constrain("form", Predicate(accepts, viable), completion("x", LETTERS, [], max_new_tokens=4))

    return model


def test_a_no_that_is_taken_back_is_found() -> None:
    (later,) = found(limited_by(lambda t: True, lambda t: t != "a"), "predicate")
    assert "viable of 'form' says no to 'a', but" in later.text
    (accepted,) = found(limited_by(lambda t: t.endswith("b"), lambda t: len(t) < 2), "predicate")
    assert accepted.severity == "warning"
    assert re.search(r"says no to '[ab]{2,}', but '[ab]*b' is accepted: a no is final", accepted.text)
    assert "say yes to every beginning" in accepted.remedy


def test_a_no_that_is_final_is_not() -> None:
    assert found(limited_by(lambda t: t.endswith("a") and "bb" not in t, lambda t: "bb" not in t), "predicate") == []
    assert found(limited_by(lambda t: "bb" not in t and t != "", lambda t: "bb" not in t), "predicate") == []


def test_without_viable_there_is_a_note() -> None:
    (note,) = found(limited_by(lambda t: "bb" not in t), "predicate")
    assert note.severity == "note"
    assert "acts only at the end" in note.text
