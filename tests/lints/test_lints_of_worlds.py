"""Lints of programs in which the world answers: who depends on it, who is not told, and who cannot be held fixed."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from toys.lint_programs import WORDS, count_a, found, text
from toys.rewards import noisy

from ppl_align import Enumeration, choose, completion, environment, reward
from ppl_align.lints import Finding, lint
from ppl_align.lints.world import AGAIN


def coin(name: str = "coin") -> Tensor:
    return environment(name, dist.Bernoulli(0.5))


def says(what: Any, name: str = "x") -> Any:
    """One word after "a" or "b", as the world has it."""
    return completion(name, WORDS, choose(what.long(), [" a", " b"]), max_new_tokens=1)


def blind(name: str = "x") -> Any:
    return completion(name, WORDS, " a", max_new_tokens=1)


def match(name: str, word: Any, side: Tensor, dead: bool = False) -> None:
    """Even words for heads, odd ones for tails."""
    hit = word.tokens[..., 0] % 2 == side
    pyro.factor(name, torch.where(hit, 0.0, -math.inf) if dead else 2.0 * hit)


# -- who depends on it -----------------------------------------------------------------------------------------------


def two_completions() -> None:
    """Only the second one has heard the coin; the last factor is about the first."""
    x = text()
    reward("about z", count_a, says(coin(), "z"))
    reward("about x", count_a, x)


def two_worlds() -> None:
    first, second = coin("first"), coin("second")
    x = text(1)
    pyro.factor("of second", second * (x.tokens[..., 0] == 0))
    pyro.factor("of first", first * (x.tokens[..., 0] == 1))


def through_another_answer() -> None:
    """The coin changes how likely the guest is to laugh; no factor reads the coin itself."""
    x = text(1)
    laughs = environment("laughs", dist.Bernoulli(0.2 + 0.6 * coin()))
    pyro.factor("joy", 2.0 * laughs + (x.tokens[..., 0] == 0))


def in_bounds() -> None:
    """Values that other particles have are often impossible here."""
    top = environment("top", dist.Uniform(0.1, 1.0))
    pyro.factor("low", -3 * pyro.sample("u", dist.Uniform(torch.zeros_like(top), top)))
    text()


@pytest.mark.parametrize(
    ("program", "blamed"),
    [
        (two_completions, {"coin": "about z"}),
        (two_worlds, {"first": "of first", "second": "of second"}),
        (through_another_answer, {"coin": "joy", "laughs": "joy"}),
        (in_bounds, {"top": "low"}),
    ],
)
def test_the_factor_that_depends_on_the_answer_is_named(program: Callable[[], None], blamed: dict[str, str]) -> None:
    said = [f.text for f in found(program, "tilted environment")]
    assert len(said) == len(blamed)
    for line, (world, factor) in zip(said, blamed.items(), strict=True):
        assert line.startswith(f"{world!r} is what the world answers, and {factor!r} depends on it")


def completion_without_effect() -> None:
    """The coin is in a prompt, but what is written there matters to nobody."""
    reward("about x", count_a, text())
    says(coin(), "z")


def noise_beside_a_coin() -> None:
    """A factor that always changes has not changed because of the coin."""
    x = text()
    coin()
    pyro.factor("noise", torch.rand(x.tokens.shape[0]))


@pytest.mark.parametrize("program", [completion_without_effect, noise_beside_a_coin])
def test_an_answer_without_effect_tilts_nothing(program: Callable[[], None]) -> None:
    assert found(program, "tilted environment") == []


def test_values_that_never_come_together_are_no_error() -> None:
    def strict() -> None:
        side = coin()
        copy = pyro.sample("copy", dist.Delta(side))

        def judge(tokens: Tensor) -> Tensor:
            assert bool((copy == side).all())
            return tokens[..., 0].double()

        reward("r", judge, text().tokens)

    assert found(strict, "tilted environment") == []


# -- who is not told -------------------------------------------------------------------------------------------------


def guess() -> None:
    """The agent bets on a coin that it has not seen."""
    side = coin()
    match("pay", blind(), side)


def guess_or_die() -> None:
    side = coin()
    match("pay", blind(), side, dead=True)


def half_shown() -> None:
    """Four answers: the prompt says whether it is one of the first two, the pay which of these."""
    card = environment("coin", dist.Categorical(torch.ones(4)))
    match("pay", says(card // 2), card % 2)


def through_a_verdict() -> None:
    """No factor reads the coin, but the judge does."""
    side = coin()
    x = blind()
    hit = (x.tokens[..., 0] % 2 == side).double()
    pyro.factor("pay", 2.0 * environment("verdict", dist.Bernoulli(0.1 + 0.8 * hit)))


def through_a_second_turn() -> None:
    """What is said second, in the light of the coin, has to go with what was said first, in the dark."""
    side = coin()
    x = blind()
    match("pay", says(side, "z"), x.tokens[..., 0] % 2)


def two_guesses() -> None:
    """Two coins side by side, and a word for each."""
    with pyro.plate("pair", 2):
        side = coin()
        match("pay", completion("x", WORDS, "", max_new_tokens=1), side)


HIDDEN = [guess, guess_or_die, half_shown, through_a_verdict, through_a_second_turn, two_guesses]


@pytest.mark.parametrize("program", HIDDEN)
def test_a_partially_observed_environment(program: Callable[[], None]) -> None:
    (finding,) = found(program, "partially observed environment")
    assert finding.severity == "warning"
    for named in ("'coin'", "the prompt of 'x'", "'pay'", "TreePlanner and the best J of Enumeration"):
        assert named in finding.text
    (tilted,) = [f for f in found(program, "tilted environment") if f.text.startswith("'coin'")]
    assert tilted.remedy.endswith("use SVI")


def shown() -> None:
    side = coin()
    match("pay", says(side), side)


def told_in_words() -> None:
    """The seed is a latent that no prompt shows; the answer that comes of it is shown."""
    side = environment("coin", lambda rng: rng.choice([" a", " b"]))
    x = completion("x", WORDS, side, max_new_tokens=1)
    match("pay", x, side.map(lambda s: s == " b"))


def two_shown() -> None:
    with pyro.plate("pair", 2):
        side = coin()
        match("pay", says(side), side)


def comes_last() -> None:
    x = blind()
    match("pay", x, coin())


def each_for_itself() -> None:
    """Luck is paid for, and so are words: whoever knew the coin would say the same."""
    side = coin()
    pyro.factor("both", 2.0 * side + (blind().tokens[..., 0] == 0))
    pyro.factor("luck", torch.where(side > 0, 0.0, -math.inf))


def already_heard() -> None:
    """The coin is not shown, but all that it has done by then is: what the guest answered."""
    x = text(1)
    guest = environment("guest", dist.Bernoulli(0.2 + 0.6 * coin()))
    match("pay", says(guest, "z"), guest)
    reward("as", count_a, x)


@pytest.mark.parametrize("program", [shown, told_in_words, two_shown, comes_last, each_for_itself, already_heard])
def test_an_environment_that_is_fully_observed(program: Callable[[], None]) -> None:
    assert found(program, "partially observed environment") == []
    assert all(f.remedy.endswith("SVI or TreePlanner") for f in found(program, "tilted environment"))


def test_the_best_of_exact_is_not_to_be_had_in_a_partially_observed_environment() -> None:
    """Half of the words hit: max J = log E_p0[exp(2/2)] in the dark, E[log E_p0[exp(2 hit)]] for who has seen it."""
    best = Enumeration().run(guess).optimism
    assert best is not None
    assert best.best == pytest.approx(math.log((math.exp(2) + 1) / 2))
    assert best.best > 1.0
    last = Enumeration().run(comes_last).optimism
    assert last is not None
    assert last.best == pytest.approx(1.0)


# -- who cannot be held fixed ----------------------------------------------------------------------------------------


def asked(world: Callable[..., Any], fn: Any = count_a) -> None:
    answer = environment("world", world, text())
    reward("r", fn, completion("x2", WORDS, answer, max_new_tokens=2))
    reward("heard", count_a, answer)


def by_chance(said: str) -> str:
    return random.choice([" a", " b"])


def drawn(said: str, rng: random.Random) -> str:
    return rng.choice([" a", " b"])


def turned_round(said: str) -> str:
    return said[2:] + said[:2]


def numbers(world: Callable[..., Any]) -> None:
    count = environment("world", world, text())
    reward("r", lambda t: t[..., 0], count[..., None])


def blames(findings: list[Finding]) -> list[str]:
    return [f.text.split("'")[1] for f in findings]


def test_undeclared_randomness_of_the_world() -> None:
    (finding,) = found(asked, "undeclared randomness", by_chance)
    assert "environment 'world'" in finding.text
    assert "rng" in finding.remedy
    assert found(asked, "reward with a state", by_chance) == []  # it says the same of the same texts
    assert found(asked, "undeclared randomness", drawn) == []
    assert found(asked, "undeclared randomness", turned_round) == []


def test_numbers_of_the_world() -> None:
    clock = itertools.count()
    assert len(found(numbers, "undeclared randomness", lambda said: next(clock))) == 1
    assert found(numbers, "undeclared randomness", lambda said: len(said) + 1e-9 * next(clock)) == []


def test_the_world_is_asked_no_more_often_than_that() -> None:
    asked_about: Counter[str] = Counter()

    def tool(said: str) -> float:
        asked_about[said] += 1
        return float(said.count("a"))

    lint(numbers, tool)
    assert max(asked_about.values()) == 1 + AGAIN


def test_who_only_passes_it_on_is_not_to_blame() -> None:
    def passed_on() -> None:
        first = environment("first", by_chance, text())
        reward("as", count_a, environment("second", turned_round, first))

    assert blames(found(passed_on, "undeclared randomness")) == ["first"]


def test_a_reward_with_a_state_beside_undeclared_randomness() -> None:
    findings = lint(asked, by_chance, noisy)
    assert blames([f for f in findings if f.lint == "undeclared randomness"]) == ["world"]
    assert blames([f for f in findings if f.lint == "reward with a state"]) == ["r"]
