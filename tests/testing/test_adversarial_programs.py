"""Programs that lie to diagnostics: each of the numbers that its docstring states."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import SEED
from scipy import stats

from ppl_align import SMC, SVI, Enumeration, ImportanceSampling
from ppl_align.core.errors import AllDeadError
from ppl_align.posterior import diversity, evidence
from ppl_align.testing import (
    Oracle,
    all_dead,
    duplicate_strings,
    heavy_tail,
    hidden_mode,
    optimistic_environment,
)
from ppl_align.testing.adversarial_programs import MODE, numbers
from ppl_align.testing.statistics import RATE, bonferroni_z


def test_hidden_mode_holds_half_of_the_posterior_and_a_ten_thousandth_of_the_prior():
    oracle = Oracle(hidden_mode)
    (at,) = (numbers(oracle.values["x"]) == MODE).nonzero()[0].tolist()
    assert oracle.log_prior[at].exp().item() == pytest.approx(1e-4, rel=1e-12)
    assert oracle.log_target[at].exp().item() == pytest.approx(0.5, rel=1e-12)


def test_hidden_mode_is_missed_nine_times_in_ten_and_then_everything_looks_perfect():
    replicates = 200
    run = ImportanceSampling(1000, replicates).run(hidden_mode, seed=SEED)
    missed = (numbers(run.particles["x"].tokens) != MODE).all(-1)
    probability = (1 - 1e-4) ** 1000
    assert probability == pytest.approx(0.905, abs=5e-4)
    assert stats.binomtest(int(missed.sum()), replicates, probability).pvalue > RATE
    assert bool((run.importance_weights.ess[missed] > 970).all())
    khat = run.importance_weights.pareto_k
    assert bool((khat[missed] < 0.5).all())
    error = run.log_evidence[missed] - Oracle(hidden_mode).log_evidence
    assert float(error.std()) < 0.01
    assert float(error.mean()) == pytest.approx(-math.log(2), abs=0.01)


def test_heavy_tail_reports_an_ess_that_it_does_not_have():
    oracle = Oracle(heavy_tail)
    relative_variance = float(torch.logsumexp(oracle.log_prior + 2 * oracle.log_potential, 0) - 2 * oracle.log_evidence)
    assert math.exp(relative_variance) - 1 == pytest.approx(161.6, abs=0.05)
    run = ImportanceSampling(1000, 200).run(heavy_tail, seed=SEED)
    truth = 1000 / math.exp(relative_variance)
    assert truth == pytest.approx(6.2, abs=0.1)
    ess = run.importance_weights.ess
    more_than_thrice = int((ess > 3 * truth).sum())  # at least in the median: a sign test
    assert stats.binom.sf(more_than_thrice, 200, 0.5) < RATE
    khat = run.importance_weights.pareto_k
    assert float(khat.mean()) - bonferroni_z(1) * float(khat.std()) / math.sqrt(200) > 0.7


def test_optimistic_environment_believes_in_its_luck():
    oracle = Oracle(optimistic_environment)
    risky, win = oracle.values["x"][:, 0] == 1, oracle.values["win"] == 1
    p = oracle.log_target.exp()
    assert float(p[risky].sum()) == pytest.approx(0.700567, abs=5e-7)
    assert float(p[risky & win].sum() / p[risky].sum()) == pytest.approx(0.858486, abs=5e-7)
    assert float(oracle.log_prior.exp()[risky & win].sum() / oracle.log_prior.exp()[risky].sum()) == pytest.approx(0.1)
    # with the coin held fixed: q(a) proportional to p0(a) exp(E[pay | a])
    assert 1 / (1 + math.exp(1 - 4 * 0.1)) == pytest.approx(0.354344, abs=5e-7)
    assert sorted(set(oracle.completions["x"].texts())) == ["risky", "safe"]


def test_duplicate_strings_have_another_winner_by_text_than_by_ids():
    run = Enumeration().run(duplicate_strings)
    by_ids, by_text = run.table(), run.table(by="text")
    assert by_ids["x"].tolist() == ["b", "aa", "a", "aa"]
    assert by_ids["probability"].tolist() == pytest.approx([0.35, 0.25, 0.24, 0.16])
    assert by_text["x"].tolist() == ["aa", "b", "a"]
    assert by_text["probability"].tolist() == pytest.approx([0.41, 0.35, 0.24])
    assert diversity.distinct_completions(run) == 4


@pytest.mark.parametrize("engine", [Enumeration(), ImportanceSampling(16, 2), SMC(16, 2, twist="prefix")], ids=str)
def test_all_dead_is_said(engine):
    with pytest.raises(AllDeadError, match="'impossible' is -inf for each"):
        engine.run(all_dead)


@pytest.mark.parametrize("program", [hidden_mode, heavy_tail, optimistic_environment, duplicate_strings])
@pytest.mark.parametrize("engine", [ImportanceSampling(50, 4), SMC(50, 4, twist="prefix"), SVI(2, 4, 4)], ids=str)
def test_they_are_ordinary_programs(engine, program):
    """Any engine runs them, whatever its answer is worth."""
    posterior = engine.run(program, seed=SEED)
    assert math.isfinite(evidence.log_evidence(posterior))
