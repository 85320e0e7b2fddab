"""Known bounds of rewards: where they come from, what holds a reward to them, and what bounds a log-factor."""

from __future__ import annotations

import math
from contextlib import nullcontext
from functools import partial

import pyro
import pytest
import torch

from ppl_align import ImportanceSampling, Rejection, completion, reward
from ppl_align.core.errors import InputError, RewardError
from ppl_align.particles.particles import Particles
from ppl_align.program import Program
from ppl_align.rewards import Toxicity, Vader, each
from ppl_align.testing.programs import FIXED, count_score


def one_reward(fn, what="tokens", within=nullcontext, **options):
    def program():
        x = completion("x", FIXED, [0], max_new_tokens=2)
        with within():
            reward("r", fn, x.tokens if what == "tokens" else x, **options)

    return program


def log_upper(program):
    given = Particles(3, {"x": FIXED.completion([0], 2).sample((3,))})
    return Program(program).run(given, draw=True).log_upper["r"]


def test_shipped_rewards_carry_their_bounds():
    assert (Vader().lower, Vader().upper) == (-1.0, 1.0)
    assert (Toxicity().lower, Toxicity().upper) == (-1.0, 0.0)
    assert log_upper(one_reward(Vader(), "text", beta=0.2)) == 5.0
    assert log_upper(one_reward("vader", "text", beta=0.5, weight=-2.0)) == 4.0
    assert log_upper(one_reward("vader", "text", upper=0.5)) == 0.5
    assert log_upper(one_reward("vader", "text", upper=math.inf)) is None
    assert log_upper(one_reward("vader", "text", weight=0.0, upper=math.inf)) == 0.0


def test_a_function_may_carry_bounds_and_adapters_pass_them_on():
    def length(text):
        return -len(text)

    assert log_upper(one_reward(each(length), "text")) is None
    length.upper = 0.0
    assert log_upper(one_reward(each(length), "text")) == 0.0
    assert log_upper(one_reward(each(length), "text", weight=-1.0)) is None


@pytest.mark.parametrize(("options", "r"), [({"upper": 1.0}, 1.0 + 1e-5), ({"lower": 0.0}, -1e-5)])
def test_a_value_outside_its_bounds_is_an_error_that_shows_the_text(options, r):
    near = one_reward(lambda texts: [float(r)] * len(texts), "text", **options)
    with pytest.raises(RewardError, match=r"reward 'r' is .* for the text '. .', outside .*correct") as caught:
        ImportanceSampling(4, 1).run(near)
    assert "\n" not in str(caught.value)
    within = one_reward(lambda t: torch.full(t.shape[:-1], round(r) + (r - round(r)) / 100), **options)
    ImportanceSampling(4, 1).run(within)  # 1e-7: rounding
    with pytest.raises(RewardError, match=r"for the value \[., .\], outside"):
        ImportanceSampling(4, 1).run(one_reward(lambda t: torch.full(t.shape[:-1], r), **options))
    with pytest.raises(RewardError, match="for the text 'by hand'"):
        reward("r", lambda texts: [r], "by hand", **options)


def test_a_rejection_lies_below_every_bound():
    kept = one_reward(lambda t: torch.where(t[..., 0] == 0, -torch.inf, 0.5), lower=0.0, upper=0.5)
    assert bool(Rejection(4, 2).run(kept).rewards["r"].eq(0.5).all())
    turned = one_reward(lambda t: torch.full(t.shape[:-1], -torch.inf), lower=0.0, weight=-1.0)
    with pytest.raises(RewardError, match="is -inf"):
        ImportanceSampling(4, 1).run(turned)


def test_none_is_a_factor_of_one_and_must_be_within_the_bound():
    low = one_reward(lambda texts: [None if text[0] == "1" else -1.0 for text in texts], "text", upper=-0.5)
    with pytest.raises(RewardError, match=r"is None, a factor of 1, for the text '1 .'.*upper= of at least 0"):
        ImportanceSampling(64, 1).run(low)
    high = one_reward(lambda texts: [None if text[0] == "1" else 1.0 for text in texts], "text", weight=-1.0, lower=0.5)
    with pytest.raises(RewardError, match="lower= of at most 0"):
        ImportanceSampling(64, 1).run(high)


def test_handlers_that_scale_or_mask_a_reward_move_its_bound():
    half = partial(pyro.poutine.scale, scale=0.5)
    assert log_upper(one_reward(lambda t: t[..., 0].double(), within=half, upper=2.0)) == 1.0
    nowhere = partial(pyro.poutine.mask, mask=torch.tensor(False))
    for within, bound in ((nullcontext, -1.0), (nowhere, 0.0)):
        below = one_reward(lambda t: -t[..., 0].double() - 1, within=within, upper=-1.0)
        assert log_upper(below) == bound

    def per_particle():
        x = completion("x", FIXED, [0], max_new_tokens=2)
        with pyro.poutine.scale(scale=1.0 + x.tokens[..., 0]):
            reward("r", lambda t: t[..., 0].double(), x.tokens, upper=2.0)

    assert log_upper(per_particle) is None


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"upper": "high"}, "upper must be a number"),
        ({"upper": math.nan}, "upper must be a number"),
        ({"upper": 0.0, "lower": 1.0}, "leave no value"),
        ({"lower": math.inf}, "leave no value"),
    ],
)
def test_what_is_no_bound_is_refused(options, says):
    with pytest.raises(InputError, match=says):
        ImportanceSampling(4, 1).run(one_reward(count_score, **options))
