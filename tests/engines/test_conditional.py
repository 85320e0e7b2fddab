"""Conditional runs and the two-sided bound on log Z, against enumeration."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from conftest import SEED

from ppl_align import SMC, SVI, ImportanceSampling
from ppl_align.core.errors import InputError
from ppl_align.engines.conditional import Bounds, ConditionalSMC, evidence_bounds
from ppl_align.particles.resampling import CONDITIONAL, SCHEMES, log_weight_of
from ppl_align.testing.oracle import Oracle
from ppl_align.testing.programs import PROGRAMS
from ppl_align.testing.statistics import bonferroni_z, mean_z

REPLICATES = 3000
NAMES = ["fixed_length", "with_eos", "two_completions", "upstream_latent", "plated"]
ENGINES = {
    "importance": ImportanceSampling(3, REPLICATES),
    **{name: SMC(3, REPLICATES, twist="prefix", ess_threshold=1.0, resampling=name) for name in SCHEMES},
    "at low ESS only": SMC(6, REPLICATES, twist="prefix", ess_threshold=0.6),
}
Z = bonferroni_z(3 * len(NAMES) * len(ENGINES) + 60)


@pytest.fixture(scope="module")
def oracles():
    return {name: Oracle(PROGRAMS[name]) for name in NAMES}


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
@pytest.mark.parametrize("name", NAMES)
def test_unbiased_on_both_sides(name, engine, oracles):
    """E[Zhat] = Z and E[1 / Zhat_c] = 1 / Z; hence the order of the expected logarithms."""
    oracle = oracles[name]
    exact = oracle.sample(1, REPLICATES, seed=SEED)
    bounds = evidence_bounds(engine, PROGRAMS[name], exact=exact, seed=SEED)
    log_z = oracle.log_evidence
    assert abs(float(mean_z((bounds.lower - log_z).exp(), 1.0))) < Z
    assert abs(float(mean_z((log_z - bounds.upper).exp(), 1.0))) < Z
    low, high = bounds.standard_errors
    assert bounds.lower.mean() + Z * low < log_z < bounds.upper.mean() - Z * high
    assert bounds.gap > 0


def test_keeping_slot_0_after_a_plain_draw_is_caught(oracles, monkeypatch):
    """The mistake that conditional schemes exist for. The test above has to see it."""

    def forced(weights, generator=None):
        ancestors = SCHEMES["systematic"](weights, generator)
        ancestors[:, 0] = 0
        return ancestors

    monkeypatch.setitem(CONDITIONAL, "systematic", forced)
    oracle = oracles["with_eos"]
    engine = SMC(3, 40_000, twist="prefix", ess_threshold=1.0)
    run = ConditionalSMC(engine, oracle.sample(1, 40_000, seed=SEED)).run(PROGRAMS["with_eos"], seed=SEED)
    assert abs(float(mean_z((oracle.log_evidence - run.log_evidence).exp(), 1.0))) > 5


@pytest.mark.parametrize("name", SCHEMES)
def test_conditional_schemes_have_the_law_of_the_plain_one_given_the_survivor(name):
    """E_cond[g(counts)] = E_plain[w g(counts)] / E_plain[w], w: what the copies of particle 0 weigh, for the counts of
    every particle and their products; particle 0 is in slot 0 and indices of weight zero are never chosen.

    The order of the particles is random in both: stratified resampling depends on it."""
    torch.manual_seed(SEED)
    repeats = 40_000
    for raw in ([0.3, 0.25, 0.0, 0.45], [0.05, 0.6, 0.3, 0.05], [0.5, 0.1, 0.2, 0.2]):
        weights = torch.tensor(raw, dtype=torch.float64).expand(repeats, -1)
        order = torch.rand(weights.shape).argsort(-1)
        drawn = SCHEMES[name](weights.gather(1, order), None)
        plain = _counts(order.gather(1, drawn))
        weigh = log_weight_of(SCHEMES[name], weights.gather(1, order), drawn).exp()
        weigh = (weigh * (order.gather(1, drawn) == 0)).sum(-1)
        order = torch.cat([torch.zeros(repeats, 1).long(), 1 + torch.rand(repeats, 3).argsort(-1)], 1)
        kept = order.gather(1, CONDITIONAL[name](weights.gather(1, order), None))
        assert bool((kept[:, 0] == 0).all())
        assert not bool((kept == 2).any()) or raw[2] > 0
        kept = _counts(kept)
        pairs = list(itertools.combinations_with_replacement(range(4), 2))
        functions = [*((i,) for i in range(4)), *pairs]
        for f in functions:
            g_plain = plain[:, list(f)].prod(-1) * weigh / (4 * raw[0])
            g_kept = kept[:, list(f)].prod(-1)
            error = math.sqrt((float(g_plain.var()) + float(g_kept.var())) / repeats)
            assert abs(float(g_plain.mean() - g_kept.mean())) <= bonferroni_z(4 * 3 * len(functions)) * error + 1e-9


def _counts(ancestors):
    return torch.nn.functional.one_hot(ancestors, 4).sum(1).double()


@pytest.mark.parametrize("name", ["upstream_latent", "two_completions", "plated", "with_eos"])
def test_the_retained_draw_is_there_at_the_end(name, oracles):
    exact = oracles[name].sample(1, 50, seed=SEED)
    run = ConditionalSMC(SMC(4, 50, twist="prefix", ess_threshold=1.0), exact).run(PROGRAMS[name], seed=SEED)
    for site, kept in exact.particles.items():
        kept, found = getattr(kept, "tokens", kept), getattr(run.particles[site], "tokens", run.particles[site])
        assert torch.equal(found[:, 0], kept[:, 0])
    torch.testing.assert_close(
        run.log_prior["first" if name == "two_completions" else site][:, 0].isfinite().all(), torch.tensor(True)
    )
    assert run.engine == "conditional"
    assert run.config["retained"] == "oracle"


def test_an_optimal_twist_and_proposal_leave_no_gap(oracles):
    oracle = oracles["with_eos"]
    engine = SMC(4, 20, twist=oracle.twist, proposal=oracle.proposal)
    bounds = evidence_bounds(engine, PROGRAMS["with_eos"], exact=oracle.sample(1, 20), seed=SEED)
    for side in (bounds.lower, bounds.upper):
        torch.testing.assert_close(side, torch.full_like(side, oracle.log_evidence), atol=1e-9, rtol=0)


def test_the_certificate_holds_whatever_the_engine_does():
    """Markov: an interval at 80% misses log Z in at most 20% of hopelessly small runs."""
    oracle = Oracle(PROGRAMS["fixed_length"])
    exact = oracle.sample(1, 2000, seed=SEED)
    engine = SMC(2, 2000, twist="prefix", ess_threshold=1.0)
    bounds = evidence_bounds(engine, PROGRAMS["fixed_length"], exact=exact, seed=SEED)
    misses = 0
    for low, high in zip(bounds.lower, bounds.upper, strict=True):
        interval = Bounds(low[None], high[None]).certificate(0.2)
        misses += not interval[0] <= oracle.log_evidence <= interval[1]
    assert 0 < misses < 0.2 * 2000 + 4 * math.sqrt(0.16 * 2000)  # some do miss: the interval is not vacuous
    assert bounds.certificate()[0] < oracle.log_evidence < bounds.certificate()[1]


def test_fewer_exact_draws_than_replicates(oracles):
    bounds = evidence_bounds(ImportanceSampling(8, 6), PROGRAMS["with_eos"], exact=oracles["with_eos"].sample(1, 2))
    assert (len(bounds.lower), len(bounds.upper)) == (6, 2)
    assert "log Z between" in str(bounds)


def test_an_order_that_can_only_be_noise_is_called_so():
    low, high = torch.tensor([-1.0, -1.2]), torch.tensor([-0.9, -0.8])
    assert str(Bounds(high, low)).endswith(" nats (the order is noise: more replicates)")
    assert str(Bounds(low, high)).endswith(" nats")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda e: ConditionalSMC(SVI(), e), "only importance sampling and SMC"),
        (lambda e: ConditionalSMC(SMC(), 3), "takes a Posterior"),
        (lambda e: ConditionalSMC(ImportanceSampling(2, 9), e).run(PROGRAMS["with_eos"]), "need 9 exact draws"),
        (
            lambda e: ConditionalSMC(SMC(2, 2), ImportanceSampling(2, 2).run(PROGRAMS["with_eos"])).run(
                PROGRAMS["with_eos"]
            ),
            "no exact posterior draws to retain",
        ),
        (lambda e: Bounds(torch.zeros(2), torch.zeros(2)).certificate(0.0), "between 0 and 1"),
    ],
)
def test_refusals(make, says, oracles):
    with pytest.raises(InputError, match=says) as caught:
        make(oracles["with_eos"].sample(1, 4))
    assert "\n" not in str(caught.value)
