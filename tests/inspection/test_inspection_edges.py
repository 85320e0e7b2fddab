"""``inspect`` on targets at the edges: betas far off, small pools, rewards of two values, latents after the text."""

from __future__ import annotations

import math
import random

import pyro
import pyro.distributions as dist
import pytest
import torch

from ppl_align import CallableLM, completion, environment, inspect, reward
from ppl_align.inspection.strengths import useful_range

LM = CallableLM(8, lambda prefix: torch.zeros(len(prefix), 8).double(), tokens=list("abcdefgh"))


def said(scale: float, beta: float = 1.0, length: int = 4) -> None:
    x = completion("x", LM, "", max_new_tokens=length)
    reward("r", lambda texts: [scale * text.count("a") for text in texts], x, beta=beta)


def test_betas_that_are_far_off_the_scale_of_the_reward() -> None:
    """Readability has a spread of 30, sentiment one of .4: a beta fit for one is no reason to give up on the other."""
    low, high = useful_range(list(inspect(said, 300.0, num_prefixes=0).strengths)) or (math.nan, math.nan)
    assert 100 < low < high < 3000
    again = useful_range(list(inspect(said, 300.0, beta=300.0, num_prefixes=0).strengths))
    assert again == pytest.approx((low / 300, high / 300), rel=0.2)
    small = useful_range(list(inspect(said, 0.001, num_prefixes=0).strengths)) or (math.nan, math.nan)
    assert 1e-4 < small[0] < small[1] < 0.01


def test_what_is_left_without_a_beta_does_not_count_as_the_rewards_doing() -> None:
    """An observation 2 nats away at any beta, and a reward that moves it by half a nat."""

    def observed() -> None:
        x = completion("x", LM, "", max_new_tokens=2)
        pyro.factor("seen", torch.where(x.tokens[..., 0] == 0, 0.0, -6.0).double())
        reward("r", lambda tokens: 1.5 * (tokens[..., 1] == 1).double(), x.tokens)

    found = inspect(observed, num_draws=4000, num_prefixes=0)
    kept = 1 / 8 * math.exp(1.5)
    exact = kept / (kept + 7 / 8) * 1.5 - math.log(kept + 7 / 8)
    assert abs(found.written.moved.value - exact) < 4.5 * found.written.moved.standard_error < 0.2
    assert found.strengths[-1].moved.value < 0.1 < 1.5 < found.strengths[-1].kl.value
    low, high = useful_range(list(found.strengths)) or (math.nan, math.nan)
    assert low <= 1 < high < 4


@pytest.mark.parametrize(("draws", "seeds"), [(32, 6), (48, 6), (64, 6), (512, 2)])
def test_a_small_pool_can_be_enough(draws: int, seeds: int) -> None:
    tried = [inspect(said, 0.3, num_draws=draws, num_prefixes=0, seed=seed) for seed in range(seeds)]
    told = [found for found in tried if "importance sampling will do" in found.advice[1]]
    assert told
    assert all(found.written.enough for found in told)
    assert not inspect(said, 4.0, num_draws=draws, num_prefixes=0).written.enough


def test_a_reward_of_two_values_and_one_that_only_rejects() -> None:
    def rejecting(finite: float = 0.0) -> None:
        x = completion("x", LM, "", max_new_tokens=1)
        reward("ok", lambda texts: [finite if text == "a" else -math.inf for text in texts], x)

    found = inspect(rejecting, num_draws=256, num_prefixes=0)
    assert not found.pool.told_apart
    assert "they reject, or say the same of all" in found.advice[0]
    assert "raise beta" not in str(found)
    assert "wherever it does not reject" in str(found)

    text = str(inspect(said, 0.0, num_draws=64, num_prefixes=0))
    assert "At no beta" in text

    def binary() -> None:
        x = completion("x", LM, "", max_new_tokens=1)
        reward("a_reward_with_quite_a_long_name", lambda texts: [float(t < "e") for t in texts], x, beta=0.05)

    text = str(inspect(binary, num_draws=512, num_prefixes=0))
    table = text[text.index("The strength") : text.index("What each factor")]
    assert max(map(len, text.splitlines())) <= 80
    assert "a_reward_with_quite…" in text
    numbers = [line.split() for line in table.splitlines() if line.startswith(("16", "8 ", "1  <-", "0.0625"))]
    assert len(numbers) >= 4
    assert not any("000000" in cell for row in numbers for cell in row), "errors of rounding are no errors"


def test_what_is_drawn_after_the_text_is_no_part_of_it() -> None:
    """The text says nothing about the world here: nothing is paid until the world has answered."""

    def world() -> None:
        x = completion("x", LM, "", max_new_tokens=3)
        y = environment("y", lambda text, rng: "ab"[rng.random() < 0.2], x)
        reward("r", lambda texts: [2.0 * (text == "b") for text in texts], y)

    def latent() -> None:
        completion("x", LM, "", max_new_tokens=3)
        pyro.factor("f", 2 * pyro.sample("z", dist.Bernoulli(torch.tensor(0.2).double())))

    share = 0.2 * math.exp(2) / (0.8 + 0.2 * math.exp(2))
    kl = 2 * share - math.log(0.8 + 0.2 * math.exp(2))
    for program, last in ((world, "y"), (latent, "z")):
        found = inspect(program, num_draws=2000, num_prefixes=60, num_continuations=40).profile
        assert found is not None
        *inside, text, end = found.cuts
        assert (text.site, text.tokens) == ("x", 3)
        assert (end.site, end.tokens) == (last, None)
        assert abs(end.middle - kl) < 4.5 * end.lower.standard_error
        for cut in (*inside, text):
            assert cut.lower.value - 4 * cut.lower.standard_error < 0 < cut.upper.value + 4 * cut.upper.standard_error
            assert cut.upper.value < kl / 3


def test_an_event_in_every_draw_is_not_certain() -> None:
    """One text in 500 has a weight of e^8; a pool that does not hold it must not claim to know."""
    lucky = lambda text: random.Random(text).random() < 0.002  # noqa: E731

    def rare() -> None:
        x = completion("x", LM, "", max_new_tokens=6)
        reward("r", lambda texts: [8.0 * lucky(text) for text in texts], x, upper=8.0)

    for seed in range(20):
        found = inspect(rare, num_draws=100, num_prefixes=0, seed=seed, events={"usual": lambda t: not lucky(t)})
        if found.events[0].hits == 100:
            assert "> 0.97" in str(found)
            assert "no other seen" in str(found)
            break
    else:
        raise AssertionError("no pool without the lucky text: choose fewer draws")
