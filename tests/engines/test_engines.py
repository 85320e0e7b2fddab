"""Every engine against enumeration: the contract they share, and what each of them promises beyond it."""

from __future__ import annotations

import dataclasses
import itertools
import math
from functools import lru_cache

import pyro
import pytest
import torch
from conftest import SEED
from toys.contracts import oracle_of
from toys.lms import uniform
from toys.oracles import canonical_sequences

from ppl_align import SMC, SVI, Enumeration, ImportanceSampling, Rejection, completion, reward
from ppl_align.core.cost import measure
from ppl_align.particles.resampling import SCHEMES, log_weight_of
from ppl_align.testing.checks import CHECKS, STATISTICAL
from ppl_align.testing.contract import Case
from ppl_align.testing.programs import EOS, FIXED, LADDER, MEMORY, PROGRAMS
from ppl_align.testing.statistics import (
    MAX_SPREAD,
    RATE,
    bonferroni_z,
    evidence_z,
    mean_z,
    probabilities,
    weighting_test,
    worst,
)

SETTINGS = {
    "exact": Enumeration(),
    "importance": ImportanceSampling(16),
    "prefix, every token": SMC(16, twist="prefix", ess_threshold=0.9),
    "prefix, always resample": SMC(16, twist="prefix", ess_threshold=1.0, resampling="stratified"),
    "prefix, every 2": SMC(16, twist="prefix", every=2, resampling="residual", ess_threshold=0.8),
    "prefix, every word": SMC(16, twist="prefix", every="word", resampling="multinomial", ess_threshold=0.7),
    "never resample": SMC(16, twist="prefix", ess_threshold=0.0),
    "no twist": SMC(16, ess_threshold=1.0),
    "a guide hardly trained": SVI(num_steps=2, num_particles=16, learning_rate=0.2),
    "rejection": Rejection(8, max_draws=1_000_000),
}
REFUSED = {  # on purpose: no gradient of -inf, no bound of a raw factor
    ("a guide hardly trained", "hard_rejection"),
    *(("rejection", name) for name in ("upstream_latent", "downstream_latent", "raw_pyro", "plated")),
}
EXPENSIVE = {  # a few percent or less are accepted; held against the exact law in test_rejection.py
    ("rejection", name)
    for name in ("fixed_length", "whole_prefix", "observed_ending", "observed_exactly", "two_completions", "nucleus")
}
WIDE = {"fixed_length": 64, "whole_prefix": 64, "upstream_latent": 24, "plated": 64}  # particles for a spread below .6
LEVEL = RATE / (len(STATISTICAL) * len(SETTINGS) * len(PROGRAMS))  # all tests of the contract are one family
FEW = ["upstream_latent", "two_completions", "text_reward"]
ONE_OF_EACH = ["exact", "importance", "prefix, every token", "a guide hardly trained"]

# The other statistical tests of this file, each with fixed seeds, are another family of this size.
TESTS = 500
Z = bonferroni_z(TESTS)


@pytest.fixture(scope="module")
def exact():
    return {name: oracle_of(name).posterior for name in PROGRAMS}


# -- the contract of every engine ---------------------------------------------------------------------------------


@lru_cache(maxsize=2)  # the checks of one case follow one another and share its runs
def case(setting, name):
    engine = SETTINGS[setting]
    if setting not in ("exact", "rejection"):
        engine = dataclasses.replace(engine, num_particles=WIDE.get(name, 16))
    replicates = 150 if setting == "rejection" else 300
    return Case(engine, name, oracle_of(name), SEED + sum(map(ord, name + setting)), replicates, LEVEL)


def contract():
    for setting, name, check in itertools.product(SETTINGS, PROGRAMS, CHECKS):
        slow = check == "arviz" and not (
            name in FEW and setting in ONE_OF_EACH
        )  # half a second each, nearly all of it h5py
        if not slow and (setting, name) not in REFUSED | EXPENSIVE:
            yield pytest.param(setting, name, check, id=f"{setting}-{name}-{check}")


class TestContract:
    """What ``check_engine`` asks of anybody's engine, one test for each engine, program and check."""

    @pytest.mark.parametrize(("setting", "name", "check"), list(contract()))
    def test_keeps(self, setting, name, check):
        assert case(setting, name).ran.status == "passed"
        result = case(setting, name).judge(check)
        assert result.status == "passed", result.line

    @pytest.mark.parametrize(("setting", "name"), sorted(REFUSED))
    def test_refuses(self, setting, name):
        assert case(setting, name).ran.status == "refused"


# -- the judge ------------------------------------------------------------------------------------------------


def brute_force(source, log_factor):
    """log Z by itertools, without trees, programs or engines."""
    sequences = canonical_sequences(source.lm.vocab_size, source.max_new_tokens, source.terminal, source.pad_id)
    return torch.logsumexp(source.log_prob(sequences) + log_factor(sequences), 0).item()


def test_exact_equals_brute_force(exact):
    got = exact["with_eos"].log_evidence.item()
    want = brute_force(
        EOS.completion([], 4), lambda t: (0.8 * (t == 1).sum(-1) + 0.3 * (t == 0).sum(-1)).double() / 0.7
    )
    assert got == pytest.approx(want, abs=1e-10)
    got = exact["whole_prefix"].log_evidence.item()
    want = brute_force(MEMORY.completion([1, 2], 4), lambda t: LADDER[t].sum(-1) * 1.3 / 0.8)
    assert got == pytest.approx(want, abs=1e-10)
    got = exact["tempered"].log_evidence.item()
    want = brute_force(EOS.completion([], 3, temperature=0.7), lambda t: 0.6 * (t == 1).sum(-1))
    assert got == pytest.approx(want, abs=1e-10)


def test_exact_equals_brute_force_with_a_latent_upstream(exact):
    total = []
    for z, p in enumerate((0.2, 0.5, 0.3)):
        source = FIXED.completion([z, 1], 3)
        factor = lambda t, z=z: LADDER[t].sum(-1) / 0.7 + 0.4 * (t[..., 0] == z)  # noqa: E731
        total.append(math.log(p) + brute_force(source, factor))
    assert exact["upstream_latent"].log_evidence.item() == pytest.approx(
        torch.logsumexp(torch.tensor(total, dtype=torch.float64), 0).item(), abs=1e-7
    )


def test_exact_equals_brute_force_with_an_observed_ending(exact):
    source = EOS.completion([0], 3)
    total = 0.0
    for row in canonical_sequences(3, 3, (2,), 2):
        ids = [v for v in row.tolist() if v != 2]
        ending = EOS.completion([0, *ids], 2).log_prob(torch.tensor([1, 0]))
        total += float((source.log_prob(row) + ending).exp())
    assert exact["observed_ending"].log_evidence.item() == pytest.approx(math.log(total), abs=1e-10)


def test_pyros_own_enumeration_agrees(exact):
    """TraceEnum_ELBO on the raw program, with the completion written as an enumerable categorical over sequences."""
    source = EOS.completion([], 3)
    sequences = canonical_sequences(3, 3, source.terminal, source.pad_id)

    def as_categorical():
        k = pyro.sample("k", pyro.distributions.Categorical(logits=source.log_prob(sequences)))
        x = sequences[k]
        pyro.factor("f", 0.9 * (x == 1).sum(-1))
        pyro.sample("y", pyro.distributions.Normal((x == 0).sum(-1).double(), 1.0), obs=torch.tensor(1.3))

    elbo = pyro.infer.TraceEnum_ELBO(max_plate_nesting=0)
    log_z = -elbo.loss(pyro.infer.config_enumerate(as_categorical), lambda: None)
    assert exact["raw_pyro"].log_evidence.item() == pytest.approx(log_z, abs=1e-6)


def test_exact_on_a_transformer(tiny_llama):
    def program():
        x = completion("x", tiny_llama, [1, 2], max_new_tokens=3)
        reward("r", lambda t: 0.5 * (t == 3).sum(-1), x.tokens, beta=0.6)

    with measure() as cost:
        posterior = Enumeration().run(program)
    want = brute_force(tiny_llama.completion([1, 2], 3), lambda t: 0.5 * (t == 3).sum(-1) / 0.6)
    assert posterior.log_evidence.item() == pytest.approx(want, abs=1e-5)
    assert cost.lm_tokens == 6 + 36  # each running prefix is read once


# -- engines against the judge ----------------------------------------------------------------------------------


def assert_properly_weighted(posterior, name):
    """Zhat is unbiased and the weights are proper, each at the level of one of ``TESTS``."""
    z, spread = evidence_z(posterior, oracle_of(name).log_evidence)
    assert spread < MAX_SPREAD, "a z-test of Zhat/Z misleads at this spread"
    assert abs(z) < Z
    assert weighting_test(posterior, oracle_of(name).posterior).p_value > RATE / TESTS


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", ["two_completions", "two_rewards"])
def test_every_scheme_at_every_threshold(name, scheme, threshold):
    engine = SMC(12, 300, twist="prefix", ess_threshold=threshold, resampling=scheme)
    posterior = engine.run(PROGRAMS[name], seed=SEED + int(100 * threshold) + len(scheme))
    assert_properly_weighted(posterior, name)
    assert bool(posterior.history["resampled"].any()) or threshold < 0.5


LEARNED = [name for name in PROGRAMS if name != "hard_rejection"]
LEARNED_HERE = [*FEW, "with_eos", "downstream_latent", "observed_ending", "plated", "nucleus"]
"""Three seconds each: one of each kind, tests/statistical trains on the others."""


@pytest.mark.parametrize("name", LEARNED_HERE)
def test_a_trained_guide_is_the_posterior_and_its_weights_are_honest(name, exact):
    assert_learned(name, exact)


def assert_learned(name, exact):
    posterior = SVI(num_steps=100, num_particles=32, num_replicates=40).run(PROGRAMS[name], seed=1)
    log_z = exact[name].log_evidence.item()
    gap = log_z - posterior.log_weight.mean().item()  # KL(q || p*)
    noise = posterior.log_weight.std().item() / math.sqrt(posterior.log_weight.numel())
    joint = exact[name].log_weight - exact[name].log_evidence  # log p* + log N
    log_p0 = sum(exact[name].log_prior.values()) + math.log(joint.numel())
    start = float((log_p0.exp() * (log_p0 - joint)).mean())  # KL(p0 || p*): where training began
    # q is close to p*: each probability is known to binomial error, up to what so many draws may never visit.
    want, got = probabilities(exact[name]), probabilities(posterior)
    draws = posterior.log_weight.numel()
    unvisited = sum(p for p in want.values() if p * draws < 10)
    assert -Z * noise - unvisited <= gap < 0.15 * start + Z * noise
    assert gap < 0.1 + Z * noise
    for row, p in want.items():
        assert abs(got.get(row, 0.0) - p) < Z * math.sqrt(p * (1 - p) / draws) * (1 + gap) + unvisited


@pytest.mark.parametrize("name", ["with_eos", "upstream_latent", "two_completions", "downstream_latent"])
def test_a_guide_serves_the_other_engines(name, exact):
    guide = SVI(num_steps=60, num_particles=16, num_replicates=1).run(PROGRAMS[name], seed=3).guide
    plain = ImportanceSampling(16, 300).run(PROGRAMS[name], seed=4)
    for engine in (
        ImportanceSampling(16, 300, proposal=guide),
        SMC(16, 300, proposal=guide, twist="prefix", ess_threshold=0.9),
    ):
        posterior = engine.run(PROGRAMS[name], seed=5)
        z, spread = evidence_z(posterior, exact[name].log_evidence.item())
        assert abs(z) < Z
        assert spread < evidence_z(plain, exact[name].log_evidence.item())[1]


def test_another_lm_or_a_function_as_a_proposal(exact):
    for proposal in (MEMORY, uniform):
        posterior = ImportanceSampling(128, 300, proposal=proposal).run(PROGRAMS["fixed_length"], seed=2)
        z, spread = evidence_z(posterior, exact["fixed_length"].log_evidence.item())
        assert abs(z) < Z
        assert 0 < spread < 0.6


# -- what they have in common ---------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")  # ArviZ's and matplotlib's own
@pytest.mark.parametrize("setting", ["exact", "prefix, every token"])
def test_arviz_plots_it(setting):
    import arviz
    import matplotlib

    matplotlib.use("Agg")
    data = SETTINGS[setting].run(PROGRAMS["two_completions"], seed=0).to_arviz()
    arviz.plot_forest(data)
    (arviz.plot_posterior if hasattr(arviz, "plot_posterior") else arviz.plot_dist)(data)
    matplotlib.pyplot.close("all")


# -- what SMC promises ----------------------------------------------------------------------------------------------


def test_smc_never_resamples_after_the_last_step():
    for seed in range(20):
        posterior = SMC(8, 4, twist="prefix", ess_threshold=1.0).run(PROGRAMS["fixed_length"], seed=seed)
        assert int(posterior.history["step"].max()) == 3  # of four tokens
        spread = posterior.log_weight.std(-1)
        assert bool((spread > 0).any()), "equal weights at the end: somebody resampled"


def test_evidence_increments_add_up():
    posterior = SMC(8, 4, twist="prefix", ess_threshold=0.9).run(PROGRAMS["fixed_length"], seed=3)
    history = posterior.history
    assert history["ess"].shape == history["resampled"].shape == history["log_evidence_increment"].shape
    assert history["ancestors"].shape == (*history["ess"].shape, 8)
    own = torch.arange(8).expand_as(history["ancestors"])
    assert torch.equal(history["ancestors"][~history["resampled"]], own[~history["resampled"]])
    assert bool((history["ess"] <= 8 + 1e-9).all())
    assert bool((history["ess"][history["resampled"]] < 0.9 * 8).all())


def test_lineages_are_traced_to_the_first_ancestor():
    posterior = SMC(8, 4, twist="prefix", ess_threshold=1.0).run(PROGRAMS["fixed_length"], seed=3)
    lineage = torch.arange(8).expand(4, 8)
    for ancestors in posterior.history["ancestors"]:
        lineage = lineage.gather(1, ancestors)
    assert torch.equal(lineage, posterior.history["lineage"])


@pytest.mark.parametrize("twist", [None, "prefix"])
def test_a_prompt_follows_its_particle_when_resampled_between_sites(twist):
    """The second completion continues the first one: resampled before it starts, its prompts must be permuted too."""
    posterior = SMC(16, 50, twist=twist, ess_threshold=1.0, resampling="multinomial").run(PROGRAMS["two_completions"])
    second = posterior.particles["second"]
    assert bool(posterior.history["resampled"][-1].any() if twist is None else posterior.history["resampled"].any())
    assert bool((posterior.history["lineage"] != torch.arange(16)).any())
    rescored = second.source.log_prob(second.tokens)
    torch.testing.assert_close(rescored.double(), posterior.log_prior["second"], atol=1e-9, rtol=0)


def test_a_finished_particle_costs_no_forward_and_keeps_its_potential():
    posterior = SMC(64, 1, twist="prefix", ess_threshold=0.0).run(PROGRAMS["with_eos"], seed=0)
    torch.testing.assert_close(posterior.log_weight, posterior.factors["r"], rtol=0, atol=1e-12)


def test_importance_sampling_from_the_prior_never_scores_its_own_draws(tiny_llama):
    def program():
        x = completion("x", tiny_llama, [1], max_new_tokens=3)
        reward("r", lambda t: (t == 2).double().sum(-1), x.tokens)

    posterior = ImportanceSampling(20, 2).run(program)
    assert posterior.cost.scored_tokens == 0
    assert posterior.cost.lm_forwards == 3


def test_smc_is_better_than_importance_sampling_where_it_should_be(exact):
    """An additive reward on a fixed-length chain: the prefix says much of what is to come."""

    def program():
        x = completion("x", FIXED, [0], max_new_tokens=12)
        reward("r", lambda t: LADDER[t].sum(-1), x.tokens, beta=0.5)

    smc = SMC(32, 200, twist="prefix", ess_threshold=0.7).run(program, seed=0)
    plain = ImportanceSampling(32, 200).run(program, seed=0)
    assert smc.log_evidence.std() < 0.7 * plain.log_evidence.std()


def test_without_a_twist_smc_says_that_it_is_importance_sampling(caplog):
    SMC(4, 1).run(PROGRAMS["with_eos"])
    assert "this run is importance sampling" in caplog.text


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_resamplers_are_unbiased(scheme):
    """E[what the copies weigh] = N W, with zero weights never chosen; systematic counts are within one of N W."""
    weights = torch.tensor([[0.05, 0.0, 0.5, 0.3, 0.15], [0.2, 0.2, 0.2, 0.2, 0.2]], dtype=torch.float64)
    size, repeats = weights.shape[1], 4000
    ancestors = scheme(weights.repeat(repeats, 1), None)
    assert ancestors.shape == (2 * repeats, size)
    copies = torch.nn.functional.one_hot(ancestors, size)
    counts = copies.sum(1).reshape(repeats, 2, size)
    weigh = log_weight_of(scheme, weights.repeat(repeats, 1), ancestors).exp()
    total = (copies * weigh[..., None]).sum(1).reshape(repeats, 2, size)
    assert worst(mean_z(total, size * weights, 1e-6), repeats).p_value > RATE / TESTS
    assert bool((counts[:, 0, 1] == 0).all())
    if scheme is SCHEMES["systematic"]:
        assert bool(((counts - size * weights).abs() < 1).all())


def test_engines_print_as_they_are_written():
    assert repr(ImportanceSampling(8, 2)) == "ImportanceSampling(num_particles=8, num_replicates=2, proposal=None)"
    with pytest.raises(AttributeError):
        Enumeration().max_sequences = 3
    assert len({SETTINGS[setting].name for setting in ONE_OF_EACH}) == 4
