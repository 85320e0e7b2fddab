"""Exponents, votes and noise that are drawn: ``power``, ``expert``, ``label``, ``rating`` and ``prefers`` with one
value for each particle, against enumeration and against sums by hand."""

from __future__ import annotations

import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import SEED
from torch.nn.functional import logsigmoid
from toys.contracts import contract_of
from toys.learned_toys import TOY_PAIRS, counts

from ppl_align import (
    SMC,
    SVI,
    Enumeration,
    ImportanceSampling,
    Posterior,
    Rejection,
    completion,
    expert,
    inspect,
    power,
)
from ppl_align.core.errors import InputError, RunError
from ppl_align.lints import lint
from ppl_align.lm import CallableLM
from ppl_align.preferences import OptimismWarning, RewardPosterior
from ppl_align.program.observe import label, prefers, rating
from ppl_align.testing import Oracle, check_engine
from ppl_align.testing.programs import EOS, FIXED, count_score, long_memory, markov

OTHER, ENDING, OTHER_FIXED = markov(seed=1), long_memory(eos_id=2), markov(eos_id=None, seed=4)
SHARES = torch.tensor([0.5, 0.3, 0.2])
ALPHAS = torch.tensor([0.4, 1.0, 2.2])
ABOVE = torch.tensor([1.0, 1.5, 2.5])
VOTES = torch.tensor([-0.6, 0.0, 0.9])
FOR = torch.tensor([0.1, 0.6, 1.3])
NOISE = torch.tensor([0.3, 0.8, 2.0])


def kind():
    return pyro.sample("z", dist.Categorical(SHARES))


def a_power():
    x, z = completion("x", EOS, [], max_new_tokens=3), kind()
    power("sharp", x, ALPHAS[z])


def a_power_above_one():
    z = kind()
    power("sharp", completion("x", ENDING, [1], max_new_tokens=3, top_k=2), ABOVE[z])


def an_expert():
    z = kind()
    expert("fit", OTHER, completion("x", EOS, [1], max_new_tokens=3), weight=VOTES[z], prompt=[0])


def an_expert_in_favour():
    z = kind()
    expert("fit", OTHER, completion("x", EOS, [1], max_new_tokens=3), weight=FOR[z])


def in_a_plate():
    with pyro.plate("pair", 2):
        z = kind()
        x = completion("x", FIXED, [[0], [1]], max_new_tokens=2)
        power("sharp", x, ABOVE[z])
        expert("fit", OTHER_FIXED, x, weight=FOR[z], prompt=[[2], [0]])


def critics_of_one_text():
    x = completion("x", FIXED, [0], max_new_tokens=2)
    with pyro.plate("critics", 2):
        z = kind()
        power("sharp", x, ABOVE[z])
        expert("fit", OTHER_FIXED, x, weight=FOR[z])


def noisy_labels():
    """Three labels of one text; two labellers with a noise of their own; a plate of texts."""
    z = kind()
    x = completion("x", EOS, [], max_new_tokens=3)
    label("thumbs", count_score(x.tokens), [1, 0, 1], beta=NOISE[z])
    score = count_score(x.tokens)
    label(
        "by two", torch.stack([score, -score], -1), [1, 1], beta=torch.stack([NOISE[z], torch.ones_like(NOISE[z])], -1)
    )


def noisy_stars():
    z = kind()
    x = completion("x", EOS, [], max_new_tokens=3)
    rating("stars", count_score(x.tokens), [2, 0], cutpoints=[-0.5, 0.4, 1.1], beta=NOISE[z])
    cuts = torch.stack([NOISE[z] - 0.5, NOISE[z]], -1)
    rating("by their own scale", count_score(x.tokens), 1, cutpoints=cuts)


def noisy_pairs():
    with pyro.plate("pair", 2):
        z = kind()
        x = completion("x", FIXED, [[0], [1]], max_new_tokens=1)
        prefers("better", count_score(x.tokens), 0.1, beta=NOISE[z])


PROGRAMS = {p.__name__: p for p in (a_power, an_expert, in_a_plate, critics_of_one_text, noisy_labels, noisy_stars)}
BOUNDED = {p.__name__: p for p in (a_power_above_one, an_expert_in_favour)}


def scored(lm, prompt, x):
    return lm.completion(prompt, x.shape[-1]).log_prob(x).double()


@pytest.mark.parametrize("name", ["a_power", "an_expert"])
def test_enumeration_is_the_sum_by_hand(name):
    run = Enumeration().run(lambda: completion("x", EOS, [] if name == "a_power" else [1], max_new_tokens=3))
    x, log_p = run.particles["x"].tokens[0], run.log_prior["x"][0]
    strength, of = (ALPHAS - 1, log_p) if name == "a_power" else (VOTES, scored(OTHER, [0], x))
    joint = SHARES.double().log()[:, None] + log_p + strength.double()[:, None] * of
    log_z = joint.logsumexp((0, 1))
    exact = Enumeration().run(PROGRAMS[name])
    site = "sharp" if name == "a_power" else "fit"
    assert float(exact.log_evidence) == pytest.approx(float(log_z), abs=1e-6)
    assert exact.mean(site).value == pytest.approx(float(((joint - log_z).exp() * of).sum()), abs=1e-6)
    torch.testing.assert_close(exact.scales[site], strength.double()[exact.particles["z"]])
    torch.testing.assert_close(exact.factors[site], exact.scales[site] * exact.rewards[site])


def test_noise_by_hand():
    oracle = Oracle(noisy_labels)
    r, noise = count_score(oracle.values["x"]).double(), NOISE.double()[oracle.values["z"]]
    each = 2 * logsigmoid(r / noise) + logsigmoid(-r / noise)
    torch.testing.assert_close(oracle.log_potential, each + logsigmoid(r / noise) + logsigmoid(-r))
    oracle = Oracle(noisy_stars)
    r, noise = count_score(oracle.values["x"]).double(), NOISE.double()[oracle.values["z"]]
    below = lambda cut: torch.sigmoid((cut - r) / noise)  # noqa: E731
    want = (below(1.1) - below(0.4)).log() + below(-0.5).log()
    own = torch.sigmoid(noise - r) - torch.sigmoid(noise - 0.5 - r)
    torch.testing.assert_close(oracle.log_potential, want + own.log())
    oracle = Oracle(noisy_pairs)
    r, noise = count_score(oracle.values["x"]).double(), NOISE.double()[oracle.values["z"]]
    torch.testing.assert_close(oracle.log_potential, logsigmoid((r - 0.1) / noise).sum(-1))


@pytest.mark.parametrize(
    "engine",
    [Enumeration(), ImportanceSampling(32), SMC(32, twist="prefix", ess_threshold=0.9),
     SVI(num_steps=2, num_particles=32), Rejection(8, max_draws=1_000_000)],
    ids=lambda engine: engine.name,
)  # fmt: skip
def test_every_engine_against_enumeration(engine):
    few = {name: PROGRAMS[name] for name in ("a_power", "an_expert", "noisy_stars")}
    programs = {"rejection": BOUNDED, "exact": PROGRAMS, "importance": PROGRAMS}.get(engine.name, few)
    contract_of(engine, programs, seed=SEED).raise_if_failed()


@pytest.mark.parametrize("program", [a_power, an_expert])
def test_rejection_refuses_what_has_no_largest_value(program):
    with pytest.raises(InputError, match=r"'(sharp|fit)'") as caught:
        Rejection(8).run(program)
    assert "\n" not in str(caught.value)


def test_a_continuous_exponent_by_quadrature():
    def program():
        alpha = pyro.sample("alpha", dist.Uniform(1.0, 3.0))
        power("sharp", completion("x", FIXED, [0], max_new_tokens=2), alpha)

    log_p = Enumeration().run(lambda: completion("x", FIXED, [0], max_new_tokens=2)).log_prior["x"][0]
    grid = torch.linspace(1.0, 3.0, 4001, dtype=torch.float64)
    mass = (grid[:, None] * log_p).logsumexp(1).exp()  # sum over x of p^alpha
    z, mean = float(mass.mean()), float((grid * mass).mean() / mass.mean())
    for engine in (ImportanceSampling(2000), SMC(500, twist="prefix"), SVI(num_steps=60), Rejection(200)):
        found = engine.run(program, seed=SEED)
        value, error = found.mean("alpha")
        assert abs(value - mean) < 4.5 * error, engine.name
        assert abs(float(found.log_evidence.exp().mean()) / z - 1) < 0.1, engine.name


@pytest.mark.parametrize("program", [a_power, an_expert, in_a_plate], ids=lambda program: program.__name__)
def test_it_comes_back_from_a_file(program, tmp_path):
    run = ImportanceSampling(16, 4).run(program, seed=SEED)
    back = Posterior.load(run.save(tmp_path / "run.nc"))
    assert back.drawn_scales == run.drawn_scales != ()
    for name, scale in run.scales.items():
        assert torch.equal(back.scales[name], scale)


def test_inspect_and_lints_follow():
    truth = Enumeration().run(a_power_above_one)
    found = inspect(a_power_above_one, num_draws=2000, seed=SEED)
    value, error = found.written.log_evidence
    assert abs(value - float(truth.log_evidence)) < 4.5 * error
    value, error = found.written.rewards["sharp"]
    assert abs(value - truth.mean("sharp").value) < 4.5 * error
    assert found.pool.log_bound == pytest.approx(0.0)
    assert not [finding for finding in lint(a_power_above_one) if finding.severity == "error"]


NEVER = CallableLM(3, lambda prefix: torch.tensor([0.0, -math.inf, 0.0]).expand(len(prefix), 3), eos_id=2)


@pytest.mark.parametrize(
    ("say", "error", "says"),
    [
        (lambda x, z: power("p", x, z - 1.0), InputError, "power 'p': alpha must not be negative, and is -1 for"),
        (lambda x, z: power("p", x, z / 0.0), InputError, "power 'p': alpha must be a finite number, and is"),
        (lambda x, z: power("p", x, torch.ones(7)), InputError, "power 'p': alpha has shape"),
        (lambda x, z: power("p", x, z == 0), InputError, "power 'p': alpha must be a finite number, got a tensor of"),
        (lambda x, z: power("p", x, True), InputError, "power 'p': alpha must be a finite number, got True"),
        (lambda x, z: expert("e", OTHER, x, z * 1j), InputError, "expert 'e': weight must be a finite number, got a"),
        (lambda x, z: expert("e", OTHER, x, torch.ones(7)), InputError, "expert 'e': weight has shape"),
        (lambda x, z: expert("e", NEVER, x, z - 1.0), RunError, "its negative weight makes that infinite"),
        (lambda x, z: label("l", count_score(x.tokens), 1, beta=z), InputError, "label 'l': beta must be positive"),
        (lambda x, z: label("l", count_score(x.tokens), 1, beta=torch.ones(7)), InputError, "'l'.*shape"),
        (lambda x, z: label("l", count_score(x.tokens), 1, beta=True), InputError, "label 'l': beta must be positive"),
        (lambda x, z: rating("l", 0.0, 1, [0.0, 1.0], beta=z), InputError, "rating 'l': beta must be positive"),
        (lambda x, z: rating("l", 0.0, 1, torch.stack([z, -z], -1)), InputError, "cutpoints must be increasing"),
        (lambda x, z: prefers("l", 0.0, 1.0, beta=-z), InputError, "prefers 'l': beta must be positive"),
    ],
)
def test_what_is_no_strength_is_refused_in_one_line(say, error, says):
    def program():
        z = pyro.sample("z", dist.Categorical(SHARES)).double()
        say(completion("x", EOS, [1], max_new_tokens=2), z)

    with pytest.raises(error, match=says) as caught:
        ImportanceSampling(64).run(program, seed=SEED)
    assert "\n" not in str(caught.value)


def test_a_vote_of_zero_silences_an_impossible_text():
    def program():
        z = pyro.sample("z", dist.Categorical(torch.tensor([0.4, 0.6])))
        expert("e", NEVER, completion("x", EOS, [1], max_new_tokens=2), z.double(), prompt=[0])

    run = Enumeration().run(program)
    silent = run.particles["z"] == 0
    assert bool((run.factors["e"][silent] == 0).all())
    assert bool(run.factors["e"][~silent].isneginf().any())
    check_engine(ImportanceSampling(32), [program], seed=SEED).raise_if_failed()


@pytest.mark.parametrize("use", ["mean", "pessimistic", "sampled"])
def test_a_learned_reward_takes_a_drawn_beta(use):
    """log Z is the average, over z, of the evidence at each beta."""
    learned = RewardPosterior.learn(TOY_PAIRS, counts)

    def program(beta=None):
        z = pyro.sample("z", dist.Categorical(SHARES))
        learned.reward("r", completion("x", FIXED, [0], max_new_tokens=2), NOISE[z] if beta is None else beta, use)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OptimismWarning)
        runs = [ImportanceSampling(2000, 4).run(program, seed=SEED)]
        runs += [ImportanceSampling(2000, 4).run(program, float(beta), seed=SEED) for beta in NOISE]
    drawn, *fixed = [run.log_evidence.exp() for run in runs]
    want = sum(share * each.mean() for share, each in zip(SHARES.double(), fixed, strict=True))
    error = math.hypot(float(drawn.std() / 2), *(float(s * f.std() / 2) for s, f in zip(SHARES, fixed, strict=True)))
    assert abs(float(drawn.mean() - want)) < 5 * error


def test_a_marginalised_reward_holds_at_one_beta():
    learned = RewardPosterior.learn(TOY_PAIRS, counts)

    def program():
        z = pyro.sample("z", dist.Categorical(SHARES))
        learned.reward("r", completion("x", FIXED, [0], max_new_tokens=2), NOISE[z], "marginalised")

    with pytest.raises(InputError, match='use="marginalised" holds at one beta') as caught:
        ImportanceSampling(16).run(program)
    assert "\n" not in str(caught.value)
