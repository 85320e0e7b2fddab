"""Verdicts that were not earned, and what is said to do next: in numbers that make sense, and that help."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from toys.lms import chain
from toys.rewards import ones

from ppl_align import (
    SMC,
    SVI,
    ConditionalSMC,
    Enumeration,
    ImportanceSampling,
    MarkovLM,
    Posterior,
    Regex,
    Rejection,
    TreePlanner,
    compare,
    completion,
    constrain,
    environment,
    reward,
)
from ppl_align.core.errors import InputError
from ppl_align.posterior import evidence, policy
from ppl_align.posterior.unstated import unstated

FLAT = MarkovLM(torch.zeros(3, 3, dtype=torch.float64))
LM = chain(4, 0)


def two_ways() -> None:
    """Many of token 1, or many of token 2: a guide learns one of them."""
    x = completion("x", FLAT, [1], max_new_tokens=8)
    reward("r", lambda t: torch.maximum(ones(t), (t == 2).sum(-1).double()), x.tokens, beta=0.3, upper=8.0, lower=0.0)


def near() -> None:
    x = completion("x", LM, [1], max_new_tokens=6)
    reward("r", ones, x.tokens, beta=2.0, upper=6.0, lower=0.0)


def far() -> None:
    x = completion("x", LM, [1], max_new_tokens=6)
    reward("r", ones, x.tokens, beta=0.35, upper=6.0, lower=0.0)


@pytest.fixture(scope="module")
def one_way() -> Posterior:
    return SVI(guide="markov", num_steps=150, num_particles=8, learning_rate=0.1).run(two_ways, seed=0)


def test_a_guide_is_confirmed_by_nobody_who_draws_from_it(one_way: Posterior) -> None:
    """It found half of the posterior; replicates, another engine and the run that trained it see the same half."""
    weighted = ImportanceSampling(2048, 4, proposal=one_way.guide).run(two_ways, seed=0)
    resampled = SMC(256, 4, proposal=one_way.guide).run(two_ways, seed=0)
    assert evidence.log_z(weighted).value < evidence.log_z(Enumeration().run(two_ways)).value - 0.5
    for runs in ({"a": weighted}, {"a": resampled}, {"a": weighted, "b": one_way}, {"a": weighted, "b": resampled}):
        advice = compare(runs).advice
        assert advice.standing != "sound", runs
        assert any("without a proposal" in reason for reason in advice.reasons) or advice.standing == "unsound"


def test_a_guide_is_confirmed_by_draws_of_the_prior() -> None:
    guide = SVI(guide="table", num_steps=60, num_particles=64).run(near, seed=0).guide
    weighted = ImportanceSampling(512, 4, proposal=guide).run(near, seed=0)
    assert compare({"guide": weighted}).advice.standing == "unconfirmed"
    both = compare({"guide": weighted, "prior": ImportanceSampling(512, 4).run(near, seed=0)})
    assert both.advice.standing == "sound"


def test_a_conditional_run_is_not_compared_and_states_no_bar() -> None:
    retained = Rejection(4, 4, max_draws=10**7).run(far, seed=0)
    run = ConditionalSMC(ImportanceSampling(100, 16), retained).run(far, seed=0)
    assert not run.mean("r").stated
    assert "a draw of the posterior was put among its particles" in " ".join(unstated(run))
    with pytest.raises(InputError, match="'c' is a conditional run") as error:
        compare({"c": run, "is": ImportanceSampling(100, 4).run(far)})
    assert len(str(error.value).splitlines()) == 1


LUCK = torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def world() -> None:
    x = completion("x", LM, [1], max_new_tokens=2)
    luck = environment("o", dist.Categorical(logits=LUCK[x.tokens[..., 0]]))
    pay = torch.cat([x.tokens, luck[..., None].long()], -1)
    reward("r", lambda t: ones(t[..., :-1]) * t[..., -1].double(), pay, beta=0.5, upper=2.0, lower=0.0)


def test_a_few_episodes_know_nothing_of_a_decision() -> None:
    exact = Enumeration().run(world)
    few = [SVI(num_steps=1, num_replicates=1, num_particles=4).run(world, seed=seed) for seed in range(8)]
    for seed, run in enumerate(few):
        beside = TreePlanner(num_particles=4, num_replicates=1).run(world, seed=seed)
        for runs in ({"exact": exact, "svi": run}, {"svi": run, "nested": beside}):
            assert compare(runs).advice.standing == "unconfirmed"
        said = " ".join(compare({"svi": run}).advice.reasons)
        episodes = int(re.search(r"About ([\d,]+) episodes", said)[1].replace(",", ""))  # type: ignore[index]
        assert episodes >= 20


def test_many_episodes_do() -> None:
    exact = Enumeration().run(world)
    run = SVI(num_steps=150, num_particles=64, num_replicates=16).run(world, seed=0)
    assert compare({"exact": exact, "svi": run}).advice.standing == "sound"


def nothing() -> None:
    completion("x", LM, [1], max_new_tokens=3)


def weightless() -> None:
    x = completion("x", LM, [1], max_new_tokens=3)
    reward("r", ones, x.tokens, weight=0.0)


@pytest.mark.parametrize("program", [nothing, weightless])
def test_where_nothing_weighs_log_z_is_known(program: Callable[[], None]) -> None:
    run = ImportanceSampling(64, 4).run(program)
    for estimate in (evidence.log_z(run), evidence.kl(run)):
        assert tuple(estimate) == (0.0, 0.0)
        assert estimate.stated
    assert "would tell" not in " ".join(compare([run]).advice.reasons)


def test_a_constraint_that_one_text_meets_is_no_collapse() -> None:
    generator = torch.Generator().manual_seed(2)
    words = MarkovLM(torch.randn(4, 4, dtype=torch.float64, generator=generator), tokens=["a", "b", "c", " "])

    def single() -> None:
        x = completion("x", words, "a", max_new_tokens=3)
        constrain("c", Regex("abc"), x)

    exact = Enumeration().run(single)
    for engine in (ImportanceSampling(64, 4), SMC(64, 4)):
        run = engine.run(single)
        assert torch.allclose(run.log_evidence, exact.log_evidence)
        assert compare([run]).advice.standing != "unsound"


@pytest.mark.parametrize(("shape", "standing"), [((2, 4), "unsound"), ((10, 1), "unconfirmed")])
def test_few_exact_draws_are_told_to_be_more(shape: tuple[int, int], standing: str) -> None:
    advice = compare([Rejection(*shape).run(near)]).advice
    assert advice.standing == standing
    text = str(advice)
    assert "proposal" not in text
    assert "draws" in text
    assert ("20 exact draws" in text) == (standing == "unsound")


def test_exact_draws_in_many_small_replicates_are_as_good() -> None:
    """log Z of each replicate of two draws spreads; that is no fault of the draws."""
    assert compare([Rejection(2, 600).run(near)]).advice.standing == "sound"


def test_the_kl_of_exact_draws_of_a_hard_reward_has_the_bar_of_log_z() -> None:
    def hard() -> None:
        x = completion("x", FLAT, [1], max_new_tokens=2)
        reward("r", lambda t: torch.where(ones(t) > 0, 0.0, -math.inf), x.tokens, upper=0.0)

    run = Rejection(32, 4).run(hard)
    assert evidence.kl(run).interval() == pytest.approx([-x for x in evidence.log_z(run).interval()[::-1]])


def test_few_particles_of_smc_are_told_to_be_more() -> None:
    advice = compare([SMC(16, 4, twist="prefix").run(far)]).advice
    assert advice.standing != "sound"
    assert re.search(r"About [\d,]+ draws|num_particles=\d+", str(advice)), advice
    assert "would not tell" not in str(advice)


def test_one_population_is_told_to_be_four() -> None:
    assert "num_replicates=4" in str(compare([SMC(1024, 1, twist="prefix").run(near)]).advice)


def test_very_far_is_no_traceback() -> None:
    logits = torch.zeros(4, 4, dtype=torch.float64)
    logits[:, 1] = -6
    prior, other = MarkovLM(logits), MarkovLM(-logits / 2)

    def program() -> None:
        x = completion("x", prior, [1], max_new_tokens=150)
        reward("r", ones, x.tokens, beta=0.1)

    for engine in (ImportanceSampling(16, 4, proposal=other), ImportanceSampling(16, 4), SMC(16, 4, twist="prefix")):
        advice = compare([engine.run(program)]).advice
        assert advice.standing == "unsound"
        assert not re.search(r"\d{3}(,\d{3}){4}", str(advice)), "nobody reads such numbers"


def test_draws_of_a_guide_that_are_all_alike_do_not_tell_their_error() -> None:
    def rare() -> None:
        x = completion("x", LM, [1], max_new_tokens=4)
        reward("r", lambda t: (t == 3).all(-1).double() * 0.0, x.tokens, beta=0.2)

    run = SVI(num_steps=2, num_particles=8).run(rare)
    mean = policy.own_mean(run, "r")
    assert mean is not None
    assert not mean.stated
    assert "?" in str(mean)


def test_remedies_help() -> None:
    """Who does what is said is told something better, or is believed."""

    def latent() -> None:
        z = pyro.sample("z", dist.Bernoulli(0.3))
        x = completion("x", LM, [1], max_new_tokens=4)
        reward("r", ones, x.tokens, weight=0.5 + z, upper=4.0, lower=0.0)

    engine: Any = SMC(16, 4, twist="prefix")
    for _ in range(4):
        advice = compare([engine.run(latent)]).advice
        if advice.standing == "sound":
            return
        said = re.search(r"About ([\d,]+) draws", str(advice)) or re.search(r"num_particles=([\d,]+)", str(advice))
        assert said is not None, advice
        wanted = int(said[1].replace(",", ""))
        more = wanted if "num_particles=" in said[0] else math.ceil(wanted / 4)
        assert more > engine.num_particles
        engine = SMC(more, 4, twist="prefix")
    pytest.fail(f"four times did not help: {advice}")


def test_more_draws_of_the_same_share_are_believed_in_the_end() -> None:
    """Of what is a nat away, 64,000 draws tell all there is to tell."""
    run, exact = ImportanceSampling(16_000, 4).run(middling), Enumeration().run(middling)
    assert abs(run.mean("r").value - exact.mean("r").value) < 3 * run.mean("r").standard_error
    assert compare([run]).advice.standing == "sound"


def middling() -> None:
    x = completion("x", LM, [1], max_new_tokens=6)
    reward("r", ones, x.tokens, beta=0.7, upper=6.0, lower=0.0)
