"""Rejection sampling against enumeration, and the bounds of rewards that it needs."""

from __future__ import annotations

import math
from collections import Counter

import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import SEED

from ppl_align import CallableLM, Enumeration, ImportanceSampling, Posterior, Rejection, completion, reward
from ppl_align.particles.particles import Particles
from ppl_align.posterior import evidence
from ppl_align.posterior.prior import drew_from_prior
from ppl_align.program import Program
from ppl_align.runner.runner import Runner
from ppl_align.testing.contract import check_engine
from ppl_align.testing.programs import EOS, FIXED, MEMORY, PROGRAMS, STEP, count_score
from ppl_align.testing.statistics import evidence_z, g_test, key_rows, probabilities, weighting_test

# Some 40 z-tests with fixed seeds: at 4.5 standard errors they raise a false alarm for fewer than one in 3000 seeds.
Z = 4.5
FALSE_ALARM = 3e-5  # of each of 24 tests against enumeration: one in 1000 seeds for all of them


# -- programs whose factors all have a largest value --------------------------------------------------------------


def upstream_latent():
    z = pyro.sample("z", dist.Categorical(torch.tensor([0.2, 0.5, 0.3])))
    x = completion("x", FIXED, torch.stack([z, torch.ones_like(z)], -1), max_new_tokens=3)
    reward("r", count_score, x.tokens, beta=0.7, upper=3 * STEP)
    reward("tie", lambda same: same.double(), z == x.tokens[..., 0], weight=0.4, upper=1.0)


def downstream_latent():
    x = completion("x", EOS, [], max_new_tokens=3)
    z = pyro.sample("z", dist.Bernoulli(torch.sigmoid(0.9 * (x.tokens == 1).sum(-1) - 0.5)))
    reward("of z", lambda z: z.double(), z, weight=1.1, upper=1.0)
    reward("zeros", lambda t: (t == 0).sum(-1) - 0.5, x.tokens, weight=-0.2, lower=-0.5)


def discrete_observation():
    x = completion("x", EOS, [], max_new_tokens=3)
    pyro.sample("y", dist.Binomial(2, torch.sigmoid(0.7 * (x.tokens == 1).sum(-1) - 0.4)), obs=torch.tensor(1.0))


def observed_exactly():
    x = completion("x", FIXED, [1], max_new_tokens=3)
    completion("y", EOS, ([2], x), obs=[1])


def plated():
    with pyro.plate("pair", 2):
        x = completion("x", FIXED, [[0], [1]], max_new_tokens=2)
    same = (x.tokens[..., 0, 0] == x.tokens[..., 1, 0])[..., None]
    reward("same", lambda same: same.double(), same, weight=0.8, upper=1.0)
    with pyro.plate("pair again", 2):
        reward("r", count_score, x.tokens, beta=0.9, upper=2 * STEP)


def does_not_apply():
    x = completion("x", FIXED, [1], max_new_tokens=3)
    reward("early", lambda texts: [None if text[0] == "2" else -float(text[0]) for text in texts], x, upper=0.0)


SHIPPED = ["with_eos", "observed_ending", "two_completions", "two_rewards", "hard_rejection", "text_reward"]
OWN = (upstream_latent, downstream_latent, discrete_observation, observed_exactly, plated, does_not_apply)
BOUNDED = {name: PROGRAMS[name] for name in SHIPPED} | {f.__name__: f for f in OWN}
LARGEST = {  # B by hand, nats
    "with_eos": 3.2 / 0.7,
    "two_completions": 2.1 + 2 * STEP / 0.9,
    "two_rewards": 3 * STEP / 1.5,
    "hard_rejection": 3 * STEP / 1.2,
    "text_reward": 1.5 / 0.6,
    "upstream_latent": 3 * STEP / 0.7 + 0.4,
    "downstream_latent": 1.1 + 0.2 * 0.5,
    "plated": 0.8 + 2 * 2 * STEP / 0.9,
}
MANY = Rejection(num_particles=16, num_replicates=200, max_draws=2_000_000, num_pilot=500)


@pytest.fixture(scope="module")
def exact():
    return {name: Enumeration().run(program) for name, program in BOUNDED.items()}


@pytest.fixture(scope="module")
def drawn():
    return {name: MANY.run(program, seed=SEED + sum(map(ord, name))) for name, program in BOUNDED.items()}


# -- against enumeration ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BOUNDED)
def test_unbiased_evidence_and_proper_weighting(name, exact, drawn):
    z, spread = evidence_z(drawn[name], exact[name].log_evidence.item())
    assert 0 < spread < 0.6
    assert abs(z) < Z
    assert weighting_test(drawn[name], exact[name]).p_value > FALSE_ALARM


@pytest.mark.parametrize("name", BOUNDED)
def test_accepted_draws_are_draws_of_the_posterior(name, exact, drawn):
    """Weights ignored: they are independent and identically distributed."""
    counts = Counter(key_rows(drawn[name])[0])
    assert g_test(counts, probabilities(exact[name])).p_value > FALSE_ALARM


@pytest.mark.parametrize("name", BOUNDED)
def test_draws_are_independent_of_their_evidence(name, drawn):
    """Correlation of log Zhat_r with the replicate's mean likelihood, which the mean of all weights would not pass."""
    run = drawn[name]
    likelihood = sum(run.factors.values()).mean(-1)
    if float(likelihood.std()) < 1e-9:
        return
    correlation = torch.corrcoef(torch.stack([run.log_evidence, likelihood]))[0, 1]
    assert abs(float(correlation)) * math.sqrt(len(likelihood)) < Z


@pytest.mark.parametrize("name", BOUNDED)
def test_waiting_times_are_negative_binomial(name, exact, drawn):
    """E[n_r] = N / a, relative variance of Zhat as diagnosed from the waiting times and as found in the replicates."""
    run, count = drawn[name], len(drawn[name].log_weight)
    acceptance = math.exp(exact[name].log_evidence.item() - largest(name))
    waiting = run.history["num_draws"].double()
    assert abs(float(waiting.mean()) * acceptance / 16 - 1) < Z * math.sqrt((1 - acceptance) / 16 / count)
    ratio = (run.log_evidence - exact[name].log_evidence).exp()
    # a sample variance has a relative error of about sqrt((kurtosis - 1) / count); waiting times have little kurtosis
    assert float(ratio.var()) == pytest.approx(evidence.relative_variance(run), rel=Z * math.sqrt(4 / count))


@pytest.mark.parametrize(("name", "particles"), [("does_not_apply", 2), ("downstream_latent", 2), ("text_reward", 3)])
def test_few_particles_show_the_bias_of_the_obvious_estimator(name, particles, exact):
    """N/n overestimates by a share of (1-a)/N; at N = 2 the relative variance of (N-1)/(n-1) is -log(a)/(1-a) - 1."""
    run = Rejection(particles, 2000, max_draws=10**6).run(BOUNDED[name], seed=SEED)
    ratio = (run.log_evidence - exact[name].log_evidence).exp()
    error = float(ratio.std()) / math.sqrt(2000)
    assert abs(float(ratio.mean()) - 1) < Z * error
    acceptance = math.exp(exact[name].log_evidence.item() - largest(name))
    naive = particles / run.history["num_draws"].double() / acceptance
    assert float(naive.mean()) - 1 > 2 * Z * float(naive.std()) / math.sqrt(2000)
    if particles == 2:
        squares = (ratio - 1).square()
        expected = -math.log(acceptance) / (1 - acceptance) - 1
        assert abs(float(squares.mean()) - expected) < Z * float(squares.std()) / math.sqrt(2000)
        tail = 1 / (run.history["num_draws"] - 1).double() ** 2 * (run.history["num_draws"] > 2)
        noise = float(tail.std()) / math.sqrt(2000) / acceptance**2
        assert evidence.relative_variance(run) == pytest.approx(expected, abs=Z * (noise + 2 * expected * error))


def largest(name):
    bound = sum(Runner(Program(BOUNDED[name])).finish(Particles(1)).log_upper.values())
    assert bound == pytest.approx(LARGEST.get(name, 0.0), abs=1e-12)
    return bound


@pytest.mark.parametrize("name", BOUNDED)
def test_the_pilot_predicts_the_acceptance_and_the_draws(name, exact, drawn):
    acceptance = math.exp(exact[name].log_evidence.item() - largest(name))
    found, error = (drawn[name].history[key] for key in ("acceptance", "acceptance_se"))
    assert abs(found - acceptance) < Z * error
    assert error < 0.2 * acceptance
    forecast = MANY.forecast(BOUNDED[name], seed=drawn[name].seed)
    assert (forecast.acceptance, forecast.standard_error) == (found, error)  # the run's own pilot
    assert forecast.num_draws == pytest.approx(3200 / found)
    needed = int(drawn[name].history["num_draws"].sum())
    noise = math.hypot(error / acceptance, 1 / math.sqrt(3200))
    assert abs(needed / forecast.num_draws - 1) < Z * noise * 1.2
    assert "\n" not in str(forecast)
    assert f"{forecast.num_draws:,.0f} draws" in str(forecast)


def test_the_price_is_in_proportion_to_the_draws():
    """Up to the prefixes and texts that larger batches share: few, among 40 equally likely tokens."""
    flat = CallableLM(40, lambda prefix: torch.zeros(len(prefix), 40), eos_id=0)
    asked = []

    def program():
        x = completion("x", flat, [], max_new_tokens=8)
        reward("r", lambda t: asked.append(len(t)) or (t > 30).double().mean(-1), x.tokens, beta=0.2, upper=1.0)

    engine = Rejection(num_particles=8, num_replicates=4)
    forecast = engine.forecast(program)
    asked.clear()
    cost = engine.run(program).cost
    draws = sum(asked)
    assert draws > 300
    assert cost.reward_calls / draws == pytest.approx(forecast.reward_calls / forecast.num_draws)
    assert 0.8 < cost.lm_tokens / draws / (forecast.lm_tokens / forecast.num_draws) < 1.1


# -- the contract -------------------------------------------------------------------------------------------------


@pytest.mark.statistical
def test_the_contract_of_engines():
    """On the programs above; those of the library are looked at where all engines are."""
    check_engine(Rejection(16, max_draws=10**6), OWN, seed=SEED, num_replicates=100).raise_if_failed()


def test_it_says_that_its_draws_are_exact_and_how_many_it_took(tmp_path):
    run = Rejection(6, 3).run(PROGRAMS["text_reward"])
    again = Posterior.load(run.save(tmp_path / "run.nc"))
    assert key_rows(again) == key_rows(run)
    assert torch.equal(again.log_weight, run.log_weight)
    for found in (run, again):
        assert found.draws_are_exact
        assert not found.exact
        assert found.history["num_draws"].shape == (3,)
        assert bool((found.history["num_draws"] >= 6).all())
        assert bool((found.log_weight == found.log_weight[:, :1]).all())
        assert found.history["acceptance"] == run.history["acceptance"]
        assert found.history["acceptance_se"] == run.history["acceptance_se"]
        assert evidence.relative_variance(found) == evidence.relative_variance(run)


def test_a_forecast_leaves_the_global_state_alone():
    before = torch.get_rng_state()
    Rejection().forecast(PROGRAMS["with_eos"])
    assert torch.equal(before, torch.get_rng_state())


def test_files_of_older_versions_load(tmp_path):
    """They say nothing of exact draws."""
    import h5py

    path = ImportanceSampling(4, 2).run(PROGRAMS["with_eos"]).save(tmp_path / "run.nc")
    with h5py.File(path, "r+") as file:
        del file.attrs["draws_are_exact"]
    assert not Posterior.load(path).draws_are_exact


def test_progress_counts_accepted_particles():
    told = []
    Rejection(8, 2).run(PROGRAMS["with_eos"], progress=lambda *what: told.append(what))
    done = [accepted for accepted, _, _ in told]
    assert done == sorted(done)
    assert {wanted for _, wanted, _ in told} == {16}
    assert done[-1] == 16
    assert all(note.startswith("accepts ") and note.endswith("%") for _, _, note in told)


def test_its_draws_do_not_depend_on_those_of_other_engines():
    """With one stream for all, these two runs with one seed would hold the same 64 draws."""

    def free():
        completion("x", MEMORY, [0], max_new_tokens=6)

    ours = Rejection(16, 4, num_pilot=64).run(free, seed=3)
    theirs = ImportanceSampling(16, 4).run(free, seed=3)
    equal = [a == b for a, b in zip(key_rows(ours)[0], key_rows(theirs)[0], strict=True)]
    assert bool((ours.history["num_draws"] == 16).all())  # without factors every draw is accepted
    assert sum(equal) < 32


def test_it_does_not_pass_for_draws_of_the_prior(drawn):
    """Yet it knows the prior: p0 / p* is proportional to exp(-psi)."""
    assert not any(drew_from_prior(run) for run in drawn.values())
    from ppl_align.posterior.prior import prior_mean

    run = drawn["text_reward"]
    plain = ImportanceSampling(4000, 1).run(PROGRAMS["text_reward"])
    direct = plain.rewards["ones"]
    noise = float(direct.std()) / math.sqrt(4000) + 2.0 * float(run.rewards["ones"].std()) / math.sqrt(3200)
    assert prior_mean(run, run.rewards["ones"]) == pytest.approx(float(direct.mean()), abs=Z * noise)


@pytest.mark.statistical
def test_means_have_the_error_that_they_say(exact):
    """z-scores of E[r] are those of Student's t with about 31 degrees of freedom: variance 31/29."""
    truth = exact["with_eos"].mean("r").value
    scores = []
    for seed in range(120):
        value, error = Rejection(8, 4).run(PROGRAMS["with_eos"], seed=1000 * SEED + seed).mean("r")
        scores.append((value - truth) / error)
    found, spread = torch.tensor(scores), math.sqrt(31 / 29)
    assert abs(float(found.mean())) < Z * spread / math.sqrt(120)
    assert abs(float(found.var()) - 31 / 29) < Z * spread**2 * math.sqrt(2 / 120)
