"""The statistics that contracts judge by: honest far out in their tails."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from conftest import SEED
from scipy import stats

from ppl_align import Completion, Enumeration, ImportanceSampling, Posterior
from ppl_align.testing import PROGRAMS, Oracle
from ppl_align.testing.statistics import (
    RATE,
    bonferroni_z,
    evidence_z,
    g_test,
    gradient_test,
    key_rows,
    mean_z,
    probabilities,
    two_sided,
    weighting_test,
)


def in_parts(posterior: Posterior, size: int) -> Iterator[Posterior]:
    """So many replicates at a time: each part is a run of its own."""
    for start in range(0, len(posterior.log_weight), size):
        part = slice(start, start + size)
        particles = {
            name: Completion(value.tokens[part], value.source) if isinstance(value, Completion) else value[part]
            for name, value in posterior.particles.items()
        }
        yield dataclasses.replace(posterior, log_weight=posterior.log_weight[part], particles=particles)


def test_p_values_of_a_correct_engine_are_uniform():
    """Also far out: skewness is corrected for (Student's t would put 1% beyond the lower 0.5% point)."""
    program = PROGRAMS["downstream_latent"]
    oracle = Oracle(program)
    evidence, weights = [], []
    for posterior in in_parts(ImportanceSampling(4, 300 * 200).run(program, seed=SEED), 200):
        evidence.append(two_sided(evidence_z(posterior, oracle.log_evidence)[0], 200))
        weights.append(weighting_test(posterior, oracle.posterior).p_value)
    assert len(evidence) == 300
    assert stats.kstest(evidence, "uniform").pvalue > RATE / 4
    for p_values in (evidence, weights):
        for level in (0.1, 0.01):  # at most: Bonferroni over the cells is a bound
            hits = int((np.array(p_values) < level).sum())
            assert stats.binom.sf(hits - 1, len(p_values), level) > RATE / 8


def test_skewness_is_corrected_for():
    generator = torch.Generator().manual_seed(SEED)
    sample = (0.57 * torch.randn(300, 40_000, generator=generator, dtype=torch.float64) - 0.57**2 / 2).exp()
    z = mean_z(sample, 1.0)
    t = (sample.mean(0) - 1) / sample.std(0) * math.sqrt(300)
    edge = float(stats.t.isf(0.0005, 299))
    assert stats.binom.sf(int((z < -edge).sum()) - 1, 40_000, 0.0005) > RATE
    assert stats.binom.sf(int((z > edge).sum()) - 1, 40_000, 0.0005) > RATE
    assert stats.binom.sf(int((t < -edge).sum()) - 1, 40_000, 0.0005) < 1e-6, "it would matter"


def test_what_never_varies_must_agree_to_rounding():
    posterior = Enumeration().run(PROGRAMS["with_eos"])
    copies = dataclasses.replace(
        posterior,
        log_weight=posterior.log_weight.expand(60, -1).clone(),
        particles={k: v.reshape(-1).tokens.expand(60, -1, -1) for k, v in posterior.particles.items()},
    )
    log_z = posterior.log_evidence.item()
    assert abs(evidence_z(copies, log_z)[0]) < 1
    assert weighting_test(copies, posterior).p_value == pytest.approx(1.0)
    copies.log_weight += 1e-3
    assert abs(evidence_z(copies, log_z)[0]) > 100
    assert weighting_test(copies, posterior).p_value < 1e-9


def test_an_assignment_too_rare_to_be_visited_is_no_alarm():
    """``truncated`` has one of probability 7e-4: of 1200 exact draws, 4 in 10 sets hold none of them."""
    oracle = Oracle(PROGRAMS["truncated"])
    p_values = []
    for seed in range(200):
        p_values.append(weighting_test(oracle.sample(8, 150, seed=1000 * SEED + seed), oracle.posterior).p_value)
    for level in (0.1, 0.01):
        hits = int((np.array(p_values) < level).sum())
        assert stats.binom.sf(hits - 1, len(p_values), level) > RATE / 2


def test_g_test_knows_a_law_from_another():
    exact = Enumeration().run(PROGRAMS["with_eos"])
    law = probabilities(exact)
    rows, _ = key_rows(exact)
    generator = torch.Generator().manual_seed(SEED)

    def p_value(weights, size=400):
        drawn = torch.multinomial(weights, size, replacement=True, generator=generator).tolist()
        counts = {}
        for i in drawn:
            counts[rows[i]] = counts.get(rows[i], 0) + 1
        return g_test(counts, law).p_value

    right, wrong = exact.weights[0], sum(exact.log_prior.values())[0].exp()
    assert stats.kstest([p_value(right) for _ in range(300)], "uniform").pvalue > RATE
    assert p_value(wrong) < 1e-9
    assert g_test({("nowhere",): 1}, law).p_value == 0.0
    assert g_test({"a": 9}, {"a": 1.0}).p_value == 1.0


def test_gradient_test_sees_a_bias_and_nothing_else():
    generator = torch.Generator().manual_seed(SEED)
    gradient = torch.tensor([1.0, -0.5, 0.0], dtype=torch.float64)
    noise = torch.randn(200, 500, 3, generator=generator, dtype=torch.float64)
    found = [gradient_test(gradient + n, gradient).p_value for n in noise]
    assert stats.binom.sf(sum(p < 0.05 for p in found) - 1, 200, 0.05) > RATE
    assert gradient_test(0.75 * gradient + noise[0], gradient).p_value < 1e-6
    assert gradient_test(-gradient + noise[0], gradient).p_value < 1e-30


def test_bonferroni_keeps_the_rate_of_the_family():
    z = bonferroni_z(40, rate=0.05)
    noise = torch.randn(4000, 40, generator=torch.Generator().manual_seed(SEED))
    alarms = int((noise.abs() > z).any(-1).sum())
    assert stats.binom.sf(alarms - 1, 4000, 0.05) > RATE
