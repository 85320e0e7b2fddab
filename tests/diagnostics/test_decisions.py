"""Who conditions says how much of the world it bends; who decides leaves it alone."""

from __future__ import annotations

import logging
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from toys.worlds import dialogue, game, risky, talk

from ppl_align import (
    SMC,
    SVI,
    Enumeration,
    ImportanceSampling,
    Posterior,
    Rejection,
    TreePlanner,
    compare,
    completion,
    environment,
    moment_constraint,
    reward,
)
from ppl_align.claims import optimism
from ppl_align.claims._turns import Turns
from ppl_align.core.errors import InputError
from ppl_align.lm.distribution import CompletionDistribution
from ppl_align.posterior.policy import decision_value
from ppl_align.testing import Oracle

# -- conditioning is optimistic ----------------------------------------------------------------------------------------


def test_exact_reproduces_the_numbers_of_the_claim():
    found = Enumeration().run(game).optimism
    assert found.how == "exact"
    assert found.sites == ("outcome",)
    assert round(found.posterior_mean["pay"].value, 3) == 2.705
    assert round(found.executed_mean["pay"].value, 5) == 0.57966
    assert math.isclose(found.best - found.value, 0.247445, abs_tol=1e-6)
    win, chosen = 0.858486, 0.700567  # KL(p*(outcome | risky) || (.9, .1)) times P(risky); safe says nothing of luck
    by_hand = chosen * (win * math.log(win / 0.1) + (1 - win) * math.log((1 - win) / 0.9))
    assert math.isclose(found.environment_tilt.value, by_hand, rel_tol=1e-4)


def test_exact_agrees_with_backward_induction_over_two_turns():
    oracle = Oracle(dialogue)
    turns = Turns(oracle, ["first", "second"])
    conditioning, found = turns.policy_of(oracle.log_target), oracle.posterior.optimism
    assert math.isclose(found.best, turns.soft_bellman()[1], rel_tol=1e-9)
    assert math.isclose(found.value, float(oracle.elbo(turns.play(conditioning))), rel_tol=1e-9)
    assert math.isclose(
        found.executed_mean["pay"].value, float(oracle.mean("pay", turns.play(conditioning))), rel_tol=1e-9
    )
    acted = sum(_forward(turns, oracle, name) for name in ("first", "second"))
    total = float((oracle.log_target.exp() * (oracle.log_target - oracle.log_prior)).sum())
    assert math.isclose(found.environment_tilt.value + acted, total, rel_tol=1e-9), (
        "agent's and world's share add up to KL(p*||p0)"
    )


def _forward(turns, oracle, name):
    shift = turns.policy_of(oracle.log_target)[name] - turns.prior[name]
    return float((oracle.log_target.exp() * shift).sum())


ENGINES = [ImportanceSampling(num_particles=800), SMC(num_particles=800), Rejection(num_particles=100)]


@pytest.mark.parametrize("program", [game, dialogue, talk])
@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.name)
def test_draws_show_what_the_table_shows(engine, program, caplog):
    with caplog.at_level(logging.WARNING):
        run = engine.run(program)
    exact, found = Enumeration().run(program).optimism, run.optimism
    name = next(iter(run.rewards))
    assert found.how == "at least"
    assert found.environment_tilt.value < exact.environment_tilt.value + 3 * found.environment_tilt.standard_error
    assert found.environment_tilt.value > 3 * found.environment_tilt.standard_error / 2, "there is something to see"
    got, error = found.executed_mean[name]
    assert abs(got - exact.executed_mean[name].value) < 4 * error
    assert got + error < found.posterior_mean[name].value
    line = next(r.getMessage() for r in caplog.records if "conditions the world" in r.getMessage())
    assert found.sites[0] in line
    assert "To decide instead, use SVI or TreePlanner" in line
    assert "\n" not in line


def test_the_measure_changes_nothing_about_the_run_but_its_bill():
    def silent(beta=1.0):
        action = completion("action", optimism.COIN, [], max_new_tokens=1)
        outcome = pyro.sample("outcome", dist.Categorical(logits=optimism.LUCK[action.tokens[..., 0]]))
        reward("pay", lambda tokens: optimism.PAY[tokens[..., 0], outcome], action.tokens, beta=beta, upper=4.0)

    marked, plain = (ImportanceSampling().run(program) for program in (game, silent))
    assert torch.equal(marked.log_weight, plain.log_weight)
    assert plain.optimism is None
    assert marked.cost.reward_calls > plain.cost.reward_calls, "what it takes to measure the tilt is on the bill"


# -- deciding ----------------------------------------------------------------------------------------------------------

TRAINED = SVI(num_steps=150, num_particles=64, num_replicates=8, learning_rate=0.05)


def test_svi_decides():
    run = TRAINED.run(game)
    assert run.target == "decision"
    assert run.log_weight.eq(0).all()
    assert run.log_evidence.isnan().all()
    chosen, error = run.mean(risky)
    assert abs(chosen - 0.354344) < 4 * error + 0.02, "conditioning would choose it with .700567"
    won = run.mean(lambda p: risky(p) * p["outcome"])
    assert abs(won.value - 0.1 * chosen) < 4 * won.standard_error, "the luck it has is the world's"
    value, error = decision_value(run)
    assert abs(value - 0.744341) < 4 * error
    assert "outcome" not in run.guide.sites


def test_svi_finds_the_soft_bellman_policy_of_a_dialogue():
    oracle = Oracle(dialogue)
    best = Turns(oracle, ["first", "second"]).soft_bellman()[1]
    run = SVI(num_steps=250, num_particles=128, learning_rate=0.03).run(dialogue)
    with torch.no_grad():
        left = best - float(oracle.elbo(oracle.log_q(run.guide)))
    lost_by_conditioning = best - oracle.posterior.optimism.value
    assert 0 <= left < 0.3 * lost_by_conditioning


def test_a_simulated_user_is_drawn_and_not_trained():
    run = SVI(num_steps=60, num_particles=32, learning_rate=0.1).run(talk)
    assert set(run.guide.sites) == {"said"}
    heard = run.particles["heard"].tokens
    assert abs(float((heard == 1).double().mean()) - 0.7) < 4 * 0.5 / heard.numel() ** 0.5
    once = 2 * 32 * 2  # a plain function does not tell whether it is being learned: both are asked, in the first step
    assert run.cost.scored_tokens == once, "what the world's network drew is not scored again"


def test_a_guide_may_not_touch_the_world():
    def choose_and_dream():
        action = completion("action", optimism.chooser(pyro.param("p", torch.zeros(2).double())), [], max_new_tokens=1)
        pyro.sample(
            "outcome", dist.Categorical(logits=pyro.param("luck", torch.zeros(2, 2).double())[action.tokens[..., 0]])
        )

    def forgetful():
        completion("action", optimism.chooser(pyro.param("p", torch.zeros(2).double())), [], max_new_tokens=1)

    def fair():
        action = completion("action", optimism.chooser(pyro.param("p", torch.zeros(2).double())), [], max_new_tokens=1)
        environment("outcome", dist.Categorical(logits=optimism.LUCK[action.tokens[..., 0]]))

    with pytest.raises(InputError, match="the guide changes the world at 'outcome'"):
        SVI(guide=choose_and_dream, num_steps=2).run(game)
    with (
        pytest.warns(UserWarning, match="outcome"),
        pytest.raises(InputError, match="the guide leaves out the world at 'outcome'"),
    ):
        SVI(guide=forgetful, num_steps=2).run(game)
    chosen, error = SVI(guide=fair, num_steps=120, num_particles=64, learning_rate=0.05).run(game).mean(risky)
    assert abs(chosen - 0.354344) < 4 * error + 0.03


# -- results -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs():
    with torch.random.fork_rng():
        engines = (Enumeration(), ImportanceSampling(), TRAINED, TreePlanner(num_particles=40))
        return {engine.name: engine.run(game) for engine in engines}


def test_what_is_saved_comes_back(runs, tmp_path):
    for name, run in runs.items():
        back = Posterior.load(run.save(tmp_path / f"{name}.nc"))
        assert (back.target, back.environment, back.optimism) == (run.target, run.environment, run.optimism)
        assert back.summary() == run.summary()
    believed = {
        name: run.optimism.posterior_mean["pay"].stated for name, run in runs.items() if run.optimism is not None
    }
    assert believed == {"exact": True, "importance": False}, "an error that is not stated is none after loading"


def test_two_questions_in_one_comparison(runs, tmp_path):
    compared = compare(runs)
    table, text = compared.table, str(compared)
    assert table["log_evidence"].isna().tolist() == [False, False, True, True]
    assert table["decision_value"].isna().tolist() == [False, True, False, False]
    assert table.loc["svi", ["ess", "rhat", "khat", "largest_weight", "elbo_gap", "kl_to_prior"]].isna().all()
    assert compared.reference["best_run"] == "exact"
    assert "0.58 when executed" in text
    assert "Two questions: exact and importance condition" in " ".join(text.split())
    assert compared.advice.verdict.startswith("Act by ")
    assert max(map(len, text.splitlines())) <= 80
    assert compared.save(tmp_path)
    assert compared.plots(tmp_path)


def test_a_comparison_of_decisions_alone(runs, tmp_path):
    compared = compare({name: runs[name] for name in ("svi", "nested")})
    assert "log Z" not in [column.header for column in compared.columns]
    assert compared.advice.verdict.startswith("Act by ")
    assert compared.advice.standing == "sound", "two engines that decide agree"
    assert compared.plots(tmp_path)
    taken = runs["svi"].take(torch.tensor([[0, 1]]))
    assert taken.log_weight.eq(0).all()
    assert runs["svi"].draws(3)["action"].map(len).min() > 0
    assert "log Z" not in runs["svi"].summary()
    assert isinstance(runs["svi"].particles["action"].source, CompletionDistribution)


def test_a_promise_that_was_fitted_for_conditioning_is_not_kept_by_deciding():
    """lambda solves E[risky] = .2 under the posterior; an engine that decides says that its mean is another one."""
    risk = moment_constraint({"risk": lambda texts: [float(t == "1") for t in texts]}, {"risk": 0.2}, num_pool=4096)

    def careful():
        action = completion("action", optimism.COIN, [], max_new_tokens=1)
        outcome = environment("outcome", dist.Categorical(logits=optimism.LUCK[action.tokens[..., 0]]))
        reward("pay", lambda tokens: optimism.PAY[tokens[..., 0], outcome], action.tokens)
        risk(action)

    exact, decided = (
        Enumeration().run(careful),
        TreePlanner(num_particles=64, num_actions=8, num_outcomes=8).run(careful),
    )
    # lambda is fitted on draws of the prior: E[risk] under it errs as a self-normalised mean over them does
    chosen, w = exact.rewards["risk"], exact.weights
    ratio = w / sum(exact.log_prior.values()).exp()
    error = float((w * ratio * (chosen - 0.2) ** 2).sum() / risk.fitted.num_draws) ** 0.5
    assert abs(exact.mean("risk").value - 0.2) < 4 * error
    assert not any("its target" in line for line in exact.warnings)
    assert any("not its target 0.2" in line for line in decided.warnings)
