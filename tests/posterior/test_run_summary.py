"""The numbers of a run against numbers computed here from its weights."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from toys.lms import ABC
from toys.runs_by_weights import MADE, of, played, resampled, waited, weighted
from toys.synthetic import SCALE, exact, law, praise, sample, svi, weigh

from ppl_align import Posterior
from ppl_align.core.cost import Cost
from ppl_align.lm.completions import Completion
from ppl_align.posterior.run_summary import RunSummary, summary_of

# -- six draws, in one's head ----------------------------------------------------------------------------------------

A, B, C = [0, 0], [1, 0], [2, 2]


def six_draws() -> Posterior:
    """Weights (1, 2, 1) and (4, 0, 4) from a likelihood of that size; the draw without weight is the only C."""
    tokens = torch.tensor([[A, A, B], [B, C, B]])
    r = torch.tensor([[0.0, 1.0, 2.0], [1.0, 5.0, 0.0]], dtype=torch.float64)
    log_weight = torch.tensor([[1.0, 2.0, 1.0], [4.0, 0.0, 4.0]], dtype=torch.float64).log()
    none = torch.zeros_like(r)
    return Posterior(
        "importance",
        log_weight,
        {"x": Completion(tokens, ABC.completion([0], 2).expand((2, 3)))},
        rewards={"r": r},
        scales={"r": 0.0},
        factors={"r": none, "likelihood": log_weight},
        log_prior={"x": none},
        log_proposal=none,
        cost=Cost(lm_tokens=1000),
    )


SIX: dict[str, Any] = {
    "log_evidence": math.log(2),  # the mean of 4/3 and 8/3
    "spread": math.log(2) / math.sqrt(2),
    "standard_error": math.sqrt(7 / 60),  # weights of mean 2 and variance 14/5: 14/5 / 2^2 / 6
    "ess": 7 / 3,  # of 16 / 6 and 64 / 32
    "largest_weight": 0.5,
    "effective_draws": 144 / 38,
    "kl": 0.5 * math.log(2),  # (2 log 2 + 8 log 4) / 12 - log 2
    "rewards": {"r": 2 / 3},  # (2 + 2 + 4) / 12
    "rhats": {"r": math.sqrt(4 / 3)},  # means 1 and 1/2, variances 1/2 and 1/4
    "unique_ancestors": 3.0,
    "distinct_completions": 1.5,  # A, B; B
    "kl_is_lower_bound": True,
    "elbo": None,
    "decision_value": None,
    "pareto_k": None,  # too few for a tail
    "precision": None,  # of so few draws log Z has no error bar
    "precision_interval": None,
}


def plain(value: Any) -> Any:
    """Estimates without their errors."""
    if isinstance(value, dict):
        return {name: plain(of) for name, of in value.items()}
    return value[0] if isinstance(value, tuple) else value


@pytest.mark.parametrize("name", SIX)
def test_six_draws(name: str) -> None:
    found = plain(getattr(summary_of(six_draws()), name))
    assert found == (SIX[name] if SIX[name] is None else pytest.approx(SIX[name], rel=1e-12))


def test_errors_of_six_draws_are_computed_and_not_stated() -> None:
    told = summary_of(six_draws())
    assert told.log_z == pytest.approx((math.log(2), math.sqrt(7 / 60)))
    assert not told.log_z.stated
    assert not told.rewards["r"].stated
    (why,) = told.unstated
    assert "from fewer than 40 nobody knows the error" in why


def test_a_population_without_weight_counts_as_zero() -> None:
    run = six_draws()
    dead = replace(run, log_weight=torch.stack([run.log_weight[0], torch.full((3,), -math.inf).double()]))
    told = summary_of(dead)
    assert told.log_evidence == pytest.approx(math.log(2 / 3))
    assert told.spread is None
    assert told.ess == pytest.approx((16 / 6 + 0) / 2)
    assert told.largest_weight == 0.25
    assert told.distinct_completions == 1.0
    assert told.rhats == {}


# -- runs of hundreds of draws, by their definitions -----------------------------------------------------------------


each_run = pytest.mark.parametrize("name", MADE)


@each_run
def test_log_z_and_how_replicates_differ(name: str) -> None:
    run = MADE[name]()
    told, each = summary_of(run), np.log(np.exp(run.log_weight.numpy()).mean(1))
    assert told.log_evidence == pytest.approx(math.log(np.exp(each).mean()))
    assert told.log_z.value == told.log_evidence
    assert told.spread == pytest.approx(each.std(ddof=1))


@each_run
def test_how_even_weights_are(name: str) -> None:
    run = MADE[name]()
    told, (w, _, _) = summary_of(run), of(run)
    assert told.ess == pytest.approx((w.sum(1) ** 2 / (w**2).sum(1)).mean())
    assert told.largest_weight == pytest.approx((w.max(1) / w.sum(1)).mean())
    assert told.effective_draws == pytest.approx(w.sum() ** 2 / (w**2).sum())


@each_run
def test_means(name: str) -> None:
    run = MADE[name]()
    told, (w, r, likelihood) = summary_of(run), of(run)
    assert told.rewards["praise"].value == pytest.approx((w * r).mean())
    assert told.kl.value == pytest.approx((w * likelihood).mean() - told.log_evidence)
    assert told.kl_is_lower_bound is False


@each_run
def test_agreement_of_replicates(name: str) -> None:
    run = MADE[name]()
    if name == "guide":
        assert summary_of(run).rhats == {}, "replicates of one guide cannot disagree"
        return
    w, r, _ = of(run)
    w = w / w.sum(1, keepdims=True)
    means = (w * r).sum(1)
    within = (w * (r - means[:, None]) ** 2).sum(1).mean()
    assert summary_of(run).rhats == pytest.approx({"praise": math.sqrt(1 + means.var(ddof=1) / within)})


@each_run
def test_distinct_texts_and_first_particles(name: str) -> None:
    run = MADE[name]()
    told = summary_of(run)
    texts = run.completions["review"].tokens.tolist()
    assert told.distinct_completions == np.mean([len(set(map(tuple, row))) for row in texts])
    if name == "resampled":
        assert told.unique_ancestors == np.mean([len(set(row)) for row in run.lineage.tolist()])
        assert told.unique_ancestors < 64, "the premise: some have no descendants"
    else:
        assert told.unique_ancestors == run.log_weight.shape[1]


INDEPENDENT = ("weighted", "prior draws", "guide")


@pytest.mark.parametrize("name", INDEPENDENT)
def test_errors_of_independent_draws(name: str) -> None:
    """The variance of n influence values, over n."""
    run = MADE[name]()
    told, (w, r, likelihood) = summary_of(run), of(run)
    n, mean, expected = w.size, (w * r).mean(), (w * likelihood).mean()
    influence = {
        "log_z": w - 1,
        "rewards": w * (r - mean),
        "kl": w * (likelihood - expected) - (w - 1),
    }
    found = {"log_z": told.log_z, "rewards": told.rewards["praise"], "kl": told.kl}
    for what, psi in influence.items():
        assert found[what].standard_error == pytest.approx(psi.std(ddof=1) / math.sqrt(n)), what
        assert found[what].stated
    assert told.standard_error == pytest.approx(w.std(ddof=1) / math.sqrt(n))


def pooled_error(left_out: np.ndarray, by_ancestor: list[np.ndarray], ancestors: float) -> float:
    """The jackknife over R replicates, R - 1 degrees of freedom, with what first particles tell, one for each ten."""
    replicates = len(left_out)
    jackknife = (replicates - 1) / replicates * ((left_out - left_out.mean()) ** 2).sum()
    ancestry = sum(float((psi**2).sum()) for psi in by_ancestor)
    dof, nu = replicates - 1, ancestors / 10
    return math.sqrt((dof * jackknife + nu * ancestry) / (dof + nu))


def test_errors_of_a_population_that_was_resampled() -> None:
    run = resampled()
    told, (w, r, likelihood) = summary_of(run), of(run)
    lineage, size = run.lineage.numpy(), w.shape[1]
    share, mean, expected = w / w.sum(), (w * r).mean(), (w * likelihood).mean()
    descendants = [np.bincount(line, row) for line, row in zip(lineage, share, strict=True)]
    ancestors = 1 / sum((row**2).sum() for row in descendants)

    def without(values: np.ndarray) -> np.ndarray:
        """Of each replicate: the weighted mean over all others."""
        rows = range(len(w))
        return np.array([(np.delete(w * values, k, 0)).sum() / np.delete(w, k, 0).sum() for k in rows])

    def descended(parts: np.ndarray, of_each: float) -> list[np.ndarray]:
        return [np.bincount(line, row, minlength=size) - of_each for line, row in zip(lineage, parts, strict=True)]

    log_z = np.log([np.delete(np.exp(run.log_weight.numpy()), k, 0).mean() for k in range(len(w))])
    left_out = {"log_z": log_z, "rewards": without(r), "kl": without(likelihood) - log_z}
    parts = {
        "log_z": descended(share, 1 / w.size),
        "rewards": descended(share * (r - mean), 0.0),
        "kl": descended(share * (likelihood - expected) - share, -1 / w.size),
    }
    found = {"log_z": told.log_z, "rewards": told.rewards["praise"], "kl": told.kl}
    for what, estimate in found.items():
        assert estimate.standard_error == pytest.approx(pooled_error(left_out[what], parts[what], ancestors)), what
        assert estimate.stated
    z = w.mean(1)
    assert told.standard_error == pytest.approx(z.std(ddof=1) / z.mean() / math.sqrt(len(z)))


def waiting_error(run: Posterior) -> float:
    """Relative, of the mean of (N-1)/(n-1) over replicates; a (1-a) / (n-2) is the variance of each."""
    tries = run.tries.double().numpy()
    share = (run.log_weight.shape[1] - 1) / (tries - 1)
    return math.sqrt((share * (1 - share) / (tries - 2)).mean() / len(share)) / share.mean()


def test_errors_of_exact_draws() -> None:
    """log Z is known from how long they waited, E[r] from the draws, KL from both."""
    run = waited()
    told, (w, r, likelihood) = summary_of(run), of(run)
    assert told.standard_error == told.log_z.standard_error == pytest.approx(waiting_error(run))
    mean = (w * r).mean()
    assert told.rewards["praise"].standard_error == pytest.approx((w * (r - mean)).std() / math.sqrt(w.size - 1))
    drawn = (w * (likelihood - (w * likelihood).mean())).std() / math.sqrt(w.size - 1)
    assert told.kl.standard_error == pytest.approx(math.hypot(drawn, waiting_error(run)))


def relative_variance(name: str, run: Posterior) -> float:
    """Of Zhat of one replicate."""
    w, _, _ = of(run)
    if name in INDEPENDENT:
        return w.var(ddof=1) / w.shape[1]
    return w.mean(1).var(ddof=1) if name == "resampled" else waiting_error(run) ** 2 * len(w)


@each_run
def test_precision(name: str) -> None:
    run = replace(MADE[name](), cost=Cost(lm_tokens=2000, scored_tokens=400))
    replicates = len(run.log_weight)
    raw = 1 / relative_variance(name, run) / (2400 / replicates / 1000)
    biased = (replicates - 1) / (replicates - 3) if name == "resampled" else 1.0  # E[1 / s^2] over 1 / sigma^2
    told = summary_of(run)
    assert told.precision == pytest.approx(raw / biased)
    if name == "exact draws":
        assert told.precision_interval is None
        return
    w, _, _ = of(run)
    psi = (w - 1).reshape(-1)
    kurtosis = (psi**4).mean() / (psi**2).mean() ** 2
    effective = w.sum() ** 2 / (w**2).sum()
    dof = replicates - 1 if name == "resampled" else min(2 * w.size / (kurtosis - 1), w.size - 1, effective / 2)
    low, high = raw * stats.chi2.ppf([0.025, 0.975], dof) / dof
    assert told.precision_interval == pytest.approx((low, high))


def test_what_no_token_was_paid_for_has_no_precision() -> None:
    assert summary_of(replace(weighted(), cost=Cost(reward_calls=5))).precision is None


def test_a_trained_guide_by_itself() -> None:
    run = svi()
    told, r = summary_of(run), run.rewards["praise"].numpy()
    assert told.elbo == pytest.approx(run.log_weight.numpy().mean())
    assert told.own_rewards["praise"] == pytest.approx((r.mean(), r.std(ddof=1) / math.sqrt(r.size)))
    assert summary_of(weighted()).own_rewards == {"praise": None}
    assert summary_of(weighted()).elbo is None


def test_all_there_is() -> None:
    sequences, log_p0 = law()
    p0, r = np.exp(log_p0.numpy()), praise(sequences).numpy()
    z = (p0 * np.exp(SCALE * r)).sum()
    p = p0 * np.exp(SCALE * r) / z
    told = summary_of(exact())
    assert told.log_z == pytest.approx((math.log(z), 0.0))
    assert told.standard_error == 0.0
    assert told.rewards["praise"] == pytest.approx(((p * r).sum(), 0.0))
    assert told.kl == pytest.approx(((p * np.log(p / p0)).sum(), 0.0), rel=1e-9)
    assert told.effective_draws == pytest.approx(1 / (p**2).sum())
    assert told.distinct_completions == len(r)
    nothing = ("spread", "ess", "largest_weight", "unique_ancestors", "pareto_k", "precision", "precision_interval")
    assert [getattr(told, name) for name in nothing] == [None] * len(nothing)
    assert told.rhats == {}


def test_a_policy_has_a_value_and_no_log_z() -> None:
    run = played()
    told = summary_of(run)
    r, log_p0, log_q = (x.numpy() for x in (run.rewards["praise"], run.log_prior["review"], run.log_proposal))
    j = log_p0 + SCALE * r - log_q
    assert told.decision_value == pytest.approx((j.mean(), j.std(ddof=1) / math.sqrt(j.size)))
    assert told.rewards["praise"] == pytest.approx((r.mean(), r.std(ddof=1) / math.sqrt(r.size)))
    assert told.effective_draws == pytest.approx(r.size)
    assert math.isnan(told.log_evidence)


def test_the_tail_of_weights() -> None:
    """Quantiles of a generalised Pareto law; the fit of M values is drawn to 1/2 as if by ten more (PSIS)."""
    k, n = 0.3, 4000
    weights = torch.from_numpy((1 - (np.arange(n) + 0.5) / n) ** -k).reshape(1, n)
    run = weigh("importance", *sample(0, (1, n)), SCALE, log_weight=weights.log())
    tail = 3 * math.sqrt(n)
    drawn = (k * tail + 0.5 * 10) / (tail + 10)
    assert summary_of(run).pareto_k == pytest.approx(drawn, abs=(1 + k) / math.sqrt(tail))
    assert summary_of(resampled()).pareto_k is not None
    assert summary_of(waited()).pareto_k is None, "all weights are equal"


def test_diversity_of_a_hundred_equal_draws() -> None:
    """As many particles as draws: each is drawn once, and 100 p of each text are whole numbers."""
    index, log_q = sample(7, (1, 100))
    run = weigh("importance", index, log_q, 0.0)
    told = summary_of(run)
    rows = [tuple(row[: row.index(0) + 1] if 0 in row else row) for row in law()[0][index[0]].tolist()]
    shares = np.array([rows.count(row) for row in set(rows)]) / 100
    assert told.entropy == pytest.approx(-(shares * np.log(shares)).sum())
    pairs = [pair for row in rows for pair in pairwise(row)]
    assert told.distinct_ngrams == pytest.approx(len(set(pairs)) / len(pairs))


def test_it_is_computed_once() -> None:
    run = weighted()
    assert summary_of(run) is summary_of(run)
    assert RunSummary(run).row() == summary_of(run).row()
