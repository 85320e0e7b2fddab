"""Draws, counts and ranks, many of them: what the quick suite sees in outline, with ten to a hundred times the data."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
import torch
from conftest import SEED
from diagnostics.test_collapse import accused
from testing.test_simulation import label, suffix

from ppl_align import SMC, Enumeration, ImportanceSampling, Rejection, completion, reward
from ppl_align.engines.conditional import evidence_bounds
from ppl_align.particles.resampling import CONDITIONAL, SCHEMES, log_weight_of
from ppl_align.testing import Oracle
from ppl_align.testing.calibration import calibrate
from ppl_align.testing.programs import EOS, FIXED, MEMORY, PROGRAMS
from ppl_align.testing.statistics import RATE, bonferroni_z, g_test, key_rows, mean_z, probabilities, worst

pytestmark = pytest.mark.statistical

SOURCES = {
    "eos": EOS.completion([], 5),
    "fixed": FIXED.completion([1], 4),
    "memory": MEMORY.completion([0, 2], 4),
    "warm": EOS.completion([1], 4, temperature=1.6),
    "nucleus": MEMORY.completion([0], 4, top_p=0.7),
    "top-k and stop": FIXED.completion([2], 4, top_k=2, stop=1),
}


@pytest.mark.parametrize("name", SOURCES)
def test_prior_draws_have_the_probabilities_they_are_scored_with(name):
    source = SOURCES[name]

    def model():
        completion("x", source.lm, source.prompts[0], max_new_tokens=source.max_new_tokens)

    with torch.random.fork_rng():
        torch.manual_seed(SEED + 1)
        drawn = source.expand([40_000]).sample()
    log_p = source.expand([len(drawn)]).log_prob(drawn)
    counts = Counter(map(tuple, drawn.tolist()))
    law = {tuple(row): float(p.exp()) for row, p in zip(drawn.tolist(), log_p, strict=True)}
    seen = sum(law.values())
    law["never drawn"] = max(1 - seen, 0.0)
    assert seen <= 1 + 1e-6
    assert g_test(counts, law).p_value > RATE / len(SOURCES)


@pytest.mark.parametrize("kind", ["plain", "conditional"])
@pytest.mark.parametrize("name", SCHEMES)
def test_resampler_counts(name, kind):
    """E[what the copies of i weigh] = N W_i for every scheme; where all weigh the same, that is E[counts]. So it is for
    the conditional twin, averaged over a survivor drawn by its weight, if weights are shares of all."""
    torch.manual_seed(SEED)
    repeats = 100_000
    for raw in ([0.05, 0.0, 0.5, 0.3, 0.15], [0.31, 0.29, 0.2, 0.1, 0.1], [0.9, 0.04, 0.03, 0.02, 0.01]):
        weights = torch.tensor(raw, dtype=torch.float64)
        rows = weights.expand(repeats, -1)
        if kind == "plain":
            ancestors = SCHEMES[name](rows, None)
            weigh = log_weight_of(SCHEMES[name], rows, ancestors).exp()
        else:  # the circle is turned until the survivor is in front; it is kept, and all is turned back
            survivor = torch.multinomial(weights, repeats, replacement=True)
            order = (torch.arange(5) + survivor[:, None]) % 5
            turned = CONDITIONAL[name](rows.gather(1, order), None)
            ancestors = order.gather(1, turned)
            weigh = log_weight_of(CONDITIONAL[name], rows.gather(1, order), turned).exp()
            weigh = weigh / weigh.mean(-1, keepdim=True)
        counts = (torch.nn.functional.one_hot(ancestors, 5) * weigh[..., None]).sum(1)
        assert worst(mean_z(counts, 5 * weights, 1e-6), repeats).p_value > RATE / (3 * 2 * len(SCHEMES))
        assert bool((counts[:, weights == 0] == 0).all())


@pytest.mark.parametrize("name", ["with_eos", "upstream_latent", "two_completions", "plated", "text_reward", "nucleus"])
def test_oracle_draws(name):
    oracle = Oracle(PROGRAMS[name])
    counts = Counter(key_rows(oracle.sample(50_000, 1, seed=SEED))[0])
    assert g_test(counts, probabilities(oracle.posterior)).p_value > RATE / 6


def bounded_by_tokens():
    x = completion("x", EOS, [], max_new_tokens=4)
    reward("r", lambda t: (t == 1).double().sum(-1), x.tokens, beta=0.8, upper=4.0)
    reward("s", lambda t: (t[..., 0] == 0).double(), x.tokens, beta=0.5, weight=-1.0, upper=1.0, lower=0.0)


@pytest.mark.parametrize("model", [bounded_by_tokens, PROGRAMS["observed_ending"], suffix, label])
def test_rejection_draws(model):
    posterior = Rejection(2500, 4, max_draws=10**7).run(model, seed=SEED)
    counts = Counter(key_rows(posterior)[0])
    assert g_test(counts, probabilities(Enumeration().run(model))).p_value > RATE / 4


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", ["fixed_length", "with_eos", "two_completions", "upstream_latent", "plated"])
def test_both_sides_of_the_evidence(name, scheme):
    replicates = 30_000
    oracle = Oracle(PROGRAMS[name])
    engine = SMC(4, replicates, twist="prefix", ess_threshold=1.0, resampling=scheme)
    exact = oracle.sample(1, replicates, seed=SEED)
    bounds = evidence_bounds(engine, PROGRAMS[name], exact=exact, seed=SEED)
    z = bonferroni_z(2 * 5 * len(SCHEMES))
    assert abs(float(mean_z((bounds.lower - oracle.log_evidence).exp(), 1.0))) < z
    assert abs(float(mean_z((oracle.log_evidence - bounds.upper).exp(), 1.0))) < z


@pytest.mark.parametrize("name", ["fixed_length", "two_completions"])
def test_importance_sampling_tightens_from_both_sides(name):
    """Lower bounds rise and upper bounds fall with the number of particles."""
    replicates = 4000
    oracle = Oracle(PROGRAMS[name])
    exact = oracle.sample(1, replicates, seed=SEED)
    found = [
        evidence_bounds(ImportanceSampling(n, replicates), PROGRAMS[name], exact=exact, seed=SEED + n)
        for n in (1, 2, 4, 8, 16)
    ]
    for before, after in itertools.pairwise(found):
        for side, sign in (("lower", 1), ("upper", -1)):
            a, b = getattr(before, side), getattr(after, side)
            error = float((a.var() + b.var()).sqrt()) / replicates**0.5
            assert sign * float(b.mean() - a.mean()) > bonferroni_z(16) * error


@pytest.mark.parametrize("model", [suffix, label])
@pytest.mark.parametrize(
    "engine", [Enumeration(), Rejection(20, 1, num_pilot=32, max_draws=10**6)], ids=lambda e: e.name
)
def test_simulation_based_calibration(engine, model):
    found = calibrate(engine, model, num_simulations=1500, seed=SEED)
    assert min(found.p_values.values()) > RATE / (4 * len(found.ranks)), found.p_values


@pytest.mark.parametrize("beta", [4.0, 1.0, 0.3])
def test_guides_that_learn_are_not_accused(beta):
    assert accused(beta, range(4, 16)) == {}
