"""What exact posterior draws reveal of other runs: hidden modes, bounds on log Z, and no false alarms."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from conftest import SEED
from scipy import stats
from toys.synthetic import SCALE, exact, importance, law, praise, smc, svi, weigh

from ppl_align import SMC, ImportanceSampling, MarkovLM, Posterior, Rejection, compare, completion, reward
from ppl_align.diagnostics import exact_draws
from ppl_align.diagnostics.advisor import advise, best_run, complaints
from ppl_align.diagnostics.exact_draws import SURPRISING, evidence_bounds, unseen
from ppl_align.posterior import evidence
from ppl_align.posterior.run_summary import summary_of
from ppl_align.testing.oracle import Oracle
from ppl_align.testing.programs import FIXED, LADDER

Z = 4.5


def rejection(seed: int = 0, replicates: int = 4, particles: int = 16, scale: float = SCALE) -> Posterior:
    """Draws of the toy's posterior, after as many draws as rejection takes with bound ``scale * 4``."""
    sequences, log_p0 = law()
    joint = log_p0 + scale * praise(sequences)
    generator = torch.Generator().manual_seed(5000 + seed)
    index = torch.multinomial(joint.softmax(0), replicates * particles, True, generator=generator)
    acceptance = float((joint.logsumexp(0) - 4 * scale).exp())
    rng = np.random.default_rng(seed)
    num_draws = torch.as_tensor(particles + rng.negative_binomial(particles, acceptance, replicates))
    log_weight = 4 * scale + ((particles - 1) / (num_draws - 1)).double().log()
    return weigh(
        "rejection",
        index.reshape(replicates, particles),
        None,
        scale,
        log_weight=log_weight[:, None].expand(-1, particles).clone(),
        history={"num_draws": num_draws, "acceptance": acceptance, "acceptance_se": 0.01},
        kind="exact draws",
    )


def gaussian(log_weight: torch.Tensor, log_likelihood: torch.Tensor, **fields: object) -> Posterior:
    """A posterior of which only weights and likelihoods matter."""
    return Posterior("by hand", log_weight, {"x": log_likelihood}, factors={"f": log_likelihood}, **fields)  # type: ignore[arg-type]


# ---- unseen


def test_unseen_counts_what_weighs_more_than_anything_visited():
    visited = torch.tensor([[0.0, 1.0], [0.5, -torch.inf]]).double()
    drawn = torch.tensor([[2.0, 1.0, 1.0 + 1e-5, 0.3, 1.4, 1.01, -3.0, 1.0]]).double()
    missed = unseen(gaussian(visited, visited), gaussian(torch.zeros(1, 8), drawn, kind="exact draws"))
    assert (missed.count, missed.total, missed.share) == (3, 8, 3 / 8)  # 2.0, 1.4, 1.01; 1e-5 more is rounding
    largest = math.exp(1.0) / (1 + math.exp(1.0) + math.exp(0.5))
    assert missed.chance == pytest.approx((1 + 1 / (2 * 8 * largest)) ** -3)


def test_descendants_of_one_particle_count_as_one():
    even, draws = torch.zeros(2, 4).double(), gaussian(torch.zeros(1, 8), torch.ones(1, 8).double())
    alone = unseen(gaussian(even, even), draws)
    family = unseen(gaussian(even, even, history={"lineage": torch.tensor([[0, 0, 0, 3], [1, 1, 2, 3]])}), draws)
    assert alone.chance == pytest.approx((1 + 1 / (2 * 8 * 1 / 8)) ** -8)
    assert family.chance == pytest.approx((1 + 1 / (2 * 8 * 3 / 8)) ** -8)


@pytest.mark.parametrize("draws", [64, 1000])
@pytest.mark.parametrize("sd", [0.3, 1.0, 1.5, 2.0])  # nats: KL(p*||p0) = sd^2 / 2
def test_an_honest_run_is_not_blamed(sd, draws):
    """Log-normal weights, 64 exact draws: unseen is often above zero, its significance rarer than one in 1000.

    Of 1500 runs, more than 9 alarms would have probability 4e-6 if the rate were one in 1000."""
    generator = torch.Generator().manual_seed(SEED)
    alarms, seen = 0, 0
    for _ in range(1500):
        visited = sd * torch.randn(4, draws // 4, generator=generator, dtype=torch.float64)
        drawn = sd * (sd + torch.randn(4, 16, generator=generator, dtype=torch.float64))
        missed = unseen(gaussian(visited, visited), gaussian(torch.zeros(4, 16), drawn))
        alarms += missed.significant
        seen += missed.count > 0
    assert seen > 30
    assert alarms <= stats.binom.isf(5e-6, 1500, SURPRISING)


def test_an_honest_run_of_smc_is_not_blamed():
    """50 runs that resample on the way, judged by 64 exact draws each: two alarms have probability 1e-3 at most."""

    def program():
        x = completion("x", FIXED, [0], max_new_tokens=8)
        position = torch.arange(1, 1 + x.tokens.shape[-1], dtype=torch.float64)
        reward("r", lambda t: (LADDER[t] * (1 + position.sqrt() / 10)).sum(-1), x.tokens, beta=1.5)

    sets = Oracle(program).sample(64, num_replicates=50, seed=SEED).factors["r"]
    run = SMC(32, 200, twist="prefix", ess_threshold=0.7).run(program, seed=SEED)
    assert bool(run.history["resampled"].any())
    alarms = 0
    for first in range(0, 200, 4):  # four replicates make a run
        pick = slice(first, first + 4)
        log_weight, lineage = run.log_weight[pick], run.history["lineage"][pick]
        part = gaussian(log_weight, run.factors["r"][pick], history={"lineage": lineage})
        missed = unseen(part, gaussian(torch.zeros(1, 64), sets[first // 4][None]))
        alarms += missed.significant
    assert alarms <= 1


def hidden() -> None:
    """Any text but 1 1 1 1 is worth next to nothing; that one has prior mass 1e-3, and half of the posterior."""
    logits = torch.tensor([1 - 0.001**0.25 - 0.3, 0.001**0.25, 0.3], dtype=torch.float64).log()
    x = completion("x", MarkovLM(logits.expand(3, 3), logits), [], max_new_tokens=4)

    def score(t: torch.Tensor) -> torch.Tensor:
        return torch.where((t == 1).all(-1), math.log(1000.0), 0.02 * (t == 0).sum(-1) - 0.01 * (t[..., 0] == 2))

    reward("score", score, x.tokens, upper=math.log(1000.0))


@pytest.fixture(scope="module")
def hidden_runs():
    """The first of the importance sampling runs that miss the mode (77% of those with 256 draws do)."""
    for seed in range(SEED, SEED + 20):
        run = ImportanceSampling(64, 4).run(hidden, seed=seed)
        if not bool((run.completions["x"].tokens == 1).all(-1).any()):
            break
    return {"importance": run, "rejection": Rejection(16, 4, max_draws=200_000).run(hidden, seed=SEED + 1)}


def test_a_hidden_mode_is_invisible_without_exact_draws_but_not_its_room(hidden_runs):
    alone = {"importance": hidden_runs["importance"]}
    assert summary_of(alone["importance"]).ess > 63
    assert complaints(alone["importance"], alone) == []
    compared = compare(alone)
    assert compared.advice.standing == "unconfirmed"  # 256 draws cannot exclude 1% that weighs e^6.9
    assert any("by the bounds of its rewards log Z may lie" in reason for reason in compared.advice.reasons)
    assert "unseen" not in [column.key for column in compared.columns]
    assert any("No diagnostic here can see a mode" in reason for reason in compared.advice.reasons)


def test_exact_draws_reveal_it(hidden_runs):
    compared = compare(hidden_runs)
    inside = (hidden_runs["rejection"].completions["x"].tokens == 1).all(-1).double().mean()
    assert compared.table.loc["importance", "unseen"] == pytest.approx(float(inside))
    assert abs(float(inside) - 0.5) < Z / math.sqrt(4 * 64)
    assert math.isnan(compared.table.loc["rejection", "unseen"])
    assert compared.reference["best_run"] == "rejection"
    found = complaints(hidden_runs["importance"], hidden_runs)
    share = f"{float(inside):.0%}"
    assert (
        f"rejection's exact draws reach a region that it never visited: {share} of them weigh more than anything it saw"
        in found
    )
    assert compared.advice.verdict == "Use rejection: its 64 draws come from the posterior itself."
    assert compared.advice.standing == "sound"
    reasons = "\n".join(compared.advice.reasons)
    assert "No diagnostic here" not in reasons
    assert "beforehand that rejection's 64 exact draws all miss holds less than 4.6% (at 95%)." in reasons
    bounds = compared.reference["evidence_bounds"]["importance"]
    assert bounds["upper"] - bounds["lower"] > 0.5  # log Z cannot be told
    text = str(compared)
    assert max(map(len, text.splitlines())) <= 80
    assert f"{100 * float(inside):.2g}%" in text


def test_what_no_draw_reached():
    assert 1 - exact_draws.unreached(rejection()) == pytest.approx(0.05 ** (1 / 64))


# ---- two-sided bounds


def test_bounds_enclose_log_z_and_have_the_expectations_they_should(monkeypatch):
    """With N = 2 both expectations are sums over pairs: E log((w + w')/2), both of p0, or one of them of p*."""
    sequences, log_p0 = law()
    psi = SCALE * praise(sequences)
    log_z = float((log_p0 + psi).logsumexp(0))
    pair = torch.logaddexp(psi[:, None], psi) - math.log(2)
    low = float((log_p0.exp()[:, None] * log_p0.exp() * pair).sum())
    high = float(((log_p0 + psi - log_z).exp()[:, None] * log_p0.exp() * pair).sum())
    assert low < log_z < high
    bounds = evidence_bounds(importance(SEED, 4000, 2), rejection(SEED, 1000, 16))
    assert bounds is not None
    for (value, error), expected in ((bounds.lower, low), (bounds.upper, high)):
        assert abs(value - expected) < Z * error
        assert error < 0.02
    assert bounds.lower.value - Z * bounds.lower.standard_error < log_z
    assert bounds.upper.value + Z * bounds.upper.standard_error > log_z


def test_bounds_are_tighter_with_more_particles_and_end_at_log_z():
    log_z = evidence.log_evidence(exact())
    gaps = []
    for particles in (2, 8, 64):
        bounds = evidence_bounds(importance(1 + SEED, 400, particles), rejection(1 + SEED, 400, 16))
        assert bounds is not None
        gaps.append(bounds.upper.value - bounds.lower.value)
        assert bounds.lower.value < log_z + Z * bounds.lower.standard_error
        assert bounds.upper.value > log_z - Z * bounds.upper.standard_error
    assert gaps[0] > gaps[1] > gaps[2] > 0


def test_every_exact_draw_serves_one_replicate():
    run, drawn = importance(replicates=4, particles=8), rejection(replicates=1, particles=3)
    likelihood = drawn.factors["praise"].reshape(-1)
    bounds = evidence_bounds(run, drawn)
    assert bounds is not None
    rest = run.log_weight[:3, 1:].logsumexp(-1)
    upper = torch.logaddexp(likelihood, rest) - math.log(8)  # three draws: three replicates
    assert bounds.upper.value == pytest.approx(float(upper.mean()))
    assert bounds.upper.standard_error == pytest.approx(float(upper.std()) / math.sqrt(3))
    lone = evidence_bounds(importance(replicates=1), drawn)
    assert lone is not None
    assert math.isnan(lone.upper.standard_error)


def test_only_draws_of_the_prior_are_bounded():
    drawn = rejection()
    assert evidence_bounds(importance(), drawn) is not None
    assert all(evidence_bounds(run, drawn) is None for run in (svi(), smc(), exact(), drawn))


# ---- in a comparison


def test_a_comparison_with_exact_draws(tmp_path):
    runs = {"importance": importance(particles=200), "smc": smc(), "svi": svi(), "rejection": rejection()}
    compared = compare(runs)
    table = compared.table
    assert not table.loc[["importance", "smc", "svi"], "unseen"].isna().any()
    assert list(compared.reference["evidence_bounds"]) == ["importance"]
    text = str(compared)
    assert max(map(len, text.splitlines())) <= 80
    flat = " ".join(text.split())
    assert "(importance, one exact draw of rejection retained)" in flat
    content = json.loads(compared.to_json())
    assert content["reference"]["evidence_bounds"]["importance"]["retained"] == "rejection"
    assert content["runs"]["rejection"]["unseen"] is None
    assert "exact draws" in content["columns"]["unseen"]
    assert "one exact draw of rejection retained" in (compared.save(tmp_path)[2]).read_text()
    paths = {name: run.save(tmp_path / f"{name}.nc") for name, run in runs.items()}
    assert compare(paths).table.equals(table)
    assert compare(paths).advice == compared.advice


def test_the_columns_treat_exact_draws_sensibly():
    run = rejection(replicates=50)
    table = compare({"rejection": run}).table
    row = table.loc["rejection"]
    assert (row["ess"], row["largest_weight"], row["distinct_completions"] <= 16) == (16.0, 1 / 16, True)
    assert math.isnan(row["khat"])
    log_z = evidence.log_evidence(exact())
    acceptance = math.exp(log_z - 4 * SCALE)
    found = evidence.relative_variance(run)
    assert found == pytest.approx((1 - acceptance) / 14, rel=0.15)  # to the first order in 1 / N
    assert evidence.precision_per_1000_tokens(run) == pytest.approx(1 / found / (2000 / 50 / 1000))
    error = evidence.standard_error(run)
    assert error == pytest.approx(math.sqrt(found / 50))
    assert abs(row["log_evidence"] - log_z) < Z * error


def test_exact_draws_are_believed_and_stand_for_the_posterior():
    runs = {"importance": importance(particles=1000), "rejection": rejection()}
    assert best_run(runs) == "rejection"
    assert advise(runs, "rejection").verdict.startswith("Importance sampling is enough here")
    assert best_run(runs | {"exact": exact()}) == "exact"
    assert compare([rejection(particles=200)]).advice.standing == "sound"
    assert "known to" in compare([rejection(particles=10)]).advice.reasons[0], "40 draws are few, exact or not"
    # an unlucky log Z, or replicates that differ, say nothing about what was drawn
    unlucky = rejection()
    unlucky.log_weight = unlucky.log_weight - 2.0
    unlucky.rewards = {"praise": unlucky.rewards["praise"] + torch.arange(4)[:, None]}
    assert complaints(unlucky, {"importance": importance(particles=500), "rejection": unlucky}) == []
    few = rejection(replicates=1, particles=4)
    assert "4 exact draws in all" in complaints(few, {"rejection": few})[0]
    assert best_run({"importance": importance(particles=500), "few": few}) == "importance"


def test_honest_comparisons_end_in_the_same_advice():
    """Over 100 seeds, no run of the toy is blamed for what it has not seen (rewards are tied: that is conservative)."""
    for seed in range(100 * SEED, 100 * SEED + 100):
        drawn = rejection(seed)
        for run in (importance(seed), smc(seed), svi(seed)):
            assert not unseen(run, drawn).significant
