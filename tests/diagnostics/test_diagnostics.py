"""Diagnostics against exact values of an enumerable target, and the rules of the advisor."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from toys.synthetic import LEAN, SCALE, exact, importance, law, praise, smc, svi

from ppl_align.core.cost import Cost
from ppl_align.core.errors import InputError
from ppl_align.diagnostics import compare
from ppl_align.diagnostics.advisor import advise, best_run, complaints, completions_carrying
from ppl_align.posterior import diversity, evidence, prior
from ppl_align.posterior.prior import best_view_of_prior, drew_from_prior
from ppl_align.posterior.run_summary import summary_of


@pytest.fixture(scope="module")
def target():
    """Exact laws: p0, weight per sequence, posterior, log Z."""
    sequences, log_p0 = law()
    log_w = SCALE * praise(sequences)
    log_z = float((log_p0 + log_w).logsumexp(0))
    return {"p0": log_p0.exp(), "log_w": log_w, "p": (log_p0 + log_w - log_z).exp(), "log_z": log_z}


# ---- weights


def test_ess_and_largest_weight_are_averaged_over_replicates():
    run = importance(replicates=2, particles=4)
    run.log_weight = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.0, -torch.inf, -torch.inf, -torch.inf]]).double()
    assert summary_of(run).ess == pytest.approx((4 + 1) / 2)
    assert summary_of(run).largest_weight == pytest.approx((0.25 + 1.0) / 2)


def test_a_dead_replicate_has_no_effective_draws():
    run = importance(replicates=2, particles=4)
    run.log_weight[0] = -torch.inf
    assert run.importance_weights.ess[0] == 0
    assert evidence.spread(run) is None
    assert math.isfinite(evidence.log_evidence(run))


def run_with(log_weight):
    run = importance(replicates=1, particles=len(log_weight))
    run.log_weight = torch.as_tensor(log_weight)[None].double()
    return run


def test_khat_is_a_dash_where_there_is_no_tail():
    rng = np.random.default_rng(0)
    constant, few = np.zeros(200), rng.normal(size=24)
    tied = rng.integers(0, 3, 200).astype(float)
    nearly_constant = 1e-13 * rng.normal(size=200)
    for log_weight in (constant, few, tied, nearly_constant, np.where(rng.random(200) < 0.95, -np.inf, 0.0)):
        assert summary_of(run_with(log_weight)).pareto_k is None
    assert summary_of(exact()).pareto_k is None


@pytest.mark.parametrize("k", [0.3, 1.2])
def test_khat_finds_the_tail_index(k):
    log_weight = np.random.default_rng(0).exponential(k, 4000)
    assert summary_of(run_with(log_weight)).pareto_k == pytest.approx(k, abs=0.2)
    # shifting all log-weights changes nothing; rejected draws are weights of zero
    assert summary_of(run_with(log_weight - 2000)).pareto_k == pytest.approx(summary_of(run_with(log_weight)).pareto_k)
    log_weight[:400] = -np.inf
    assert summary_of(run_with(log_weight)).pareto_k == pytest.approx(k, abs=0.25)


# ---- evidence


def test_exact_evidence_and_divergence(target):
    run = exact()
    assert evidence.log_evidence(run) == pytest.approx(target["log_z"], abs=1e-12)
    kl = float((target["p"] * (target["log_w"] - target["log_z"])).sum())
    assert evidence.kl_to_prior(run) == (pytest.approx(kl, abs=1e-12), False)
    assert evidence.standard_error(run) == 0
    assert evidence.spread(run) is None
    assert evidence.precision_per_1000_tokens(run) is None


@pytest.mark.parametrize("make", [importance, smc, svi])
def test_pooled_evidence_is_unbiased(target, make):
    ratio = np.array([math.exp(evidence.log_evidence(make(seed)) - target["log_z"]) for seed in range(200)])
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / math.sqrt(200)


def test_relative_variance_is_that_of_one_replicate(target):
    """Exactly (E_p0[w^2] / Z^2 - 1) / N for importance sampling from the prior."""
    exact_value = float((target["p0"] * (2 * (target["log_w"] - target["log_z"])).exp()).sum()) - 1
    run = importance(replicates=200, particles=50)
    assert evidence.relative_variance(run) == pytest.approx(exact_value / 50, rel=0.1)
    from_replicates = float(run.log_evidence.exp().var() / run.log_evidence.exp().mean() ** 2)
    assert evidence.relative_variance(run) == pytest.approx(from_replicates, rel=0.35)
    assert evidence.relative_variance(smc(replicates=3)) is None


def test_precision_does_not_depend_on_how_a_budget_is_cut(target):
    exact_value = float((target["p0"] * (2 * (target["log_w"] - target["log_z"])).exp()).sum()) - 1
    for replicates, particles in ((10, 400), (100, 40)):
        run = importance(replicates=replicates, particles=particles)
        run.cost = Cost(lm_tokens=6000, scored_tokens=2000)
        # 4000 particles for 8000 tokens: 500 particles for 1000
        assert evidence.precision_per_1000_tokens(run) == pytest.approx(500 / exact_value, rel=0.15)


def test_precision_is_a_dash_for_constant_weights():
    run = importance()
    run.log_weight = torch.zeros(4, 64).double() + 1e-14 * torch.randn(4, 64)
    assert evidence.precision_per_1000_tokens(run) is None


def test_elbo_gap_is_the_divergence_of_the_guide(target):
    log_q = law(*LEAN)[1]
    kl = float((log_q.exp() * (log_q - target["p"].log())).sum())
    run = svi(replicates=40, particles=250)
    table = compare({"exact": exact(), "svi": run}).table
    assert table.loc["svi", "elbo_gap"] == pytest.approx(kl, abs=4 * float(run.log_weight.std()) / 100)
    assert math.isnan(table.loc["exact", "elbo_gap"])
    assert evidence.elbo(importance()) is None


def test_divergence_from_few_draws_is_a_lower_bound():
    strong = importance(scale=12.0)
    kl = evidence.kl_to_prior(strong)
    truth = evidence.kl_to_prior(exact(scale=12.0)).value
    assert kl.lower_bound
    assert kl.value <= math.log(4 * 64)
    assert kl.value < truth + 0.5
    assert not evidence.kl_to_prior(importance(particles=500)).lower_bound


def test_divergence_of_smc_looks_at_ancestors_not_at_even_weights():
    run = smc()
    assert not evidence.kl_to_prior(run).lower_bound
    run.history = {**run.history, "lineage": torch.zeros(6, 64, dtype=torch.long)}
    assert evidence.kl_to_prior(run).lower_bound
    assert diversity.unique_ancestors(run) == 1


def test_rhat_measures_the_disagreement_of_replicates():
    run = importance(replicates=50, particles=200)
    w = run.log_weight.softmax(-1)
    means = (w * run.rewards["praise"]).sum(-1)
    within = (w * (run.rewards["praise"] - means[:, None]) ** 2).sum(-1).mean()
    assert evidence.rhat(run, "praise") == pytest.approx(float((1 + means.var() / within).sqrt()))
    assert evidence.rhat(run, "praise") < 1.03  # about 1 + 1 / (2 ESS)
    apart = importance(replicates=4)
    apart.rewards = {"praise": apart.rewards["praise"] + torch.arange(4)[:, None]}
    assert evidence.rhat(apart, "praise") > 1.2
    for blank in (svi(), exact(), importance(replicates=1)):
        assert evidence.rhat(blank, "praise") is None


# ---- prior and diversity


def test_every_kind_of_run_knows_the_prior(target):
    mean = float((target["p0"] * praise(law()[0])).sum())
    assert prior.prior_mean(exact(), exact().rewards["praise"]) == pytest.approx(mean, abs=1e-9)
    for run in (importance(particles=2000), smc(particles=2000), svi(particles=2000)):
        assert prior.prior_mean(run, run.rewards["praise"]) == pytest.approx(mean, abs=0.1)
    assert drew_from_prior(importance())
    assert not drew_from_prior(svi())
    assert best_view_of_prior([svi(), importance()]).engine == "importance"


def test_steered_particles_do_not_speak_of_the_prior():
    """What was resampled away is in no weight, however large their ESS for the prior."""
    assert best_view_of_prior([smc(particles=2000)]) is None
    assert best_view_of_prior([smc(particles=2000), importance()]).engine == "importance"


def test_entropy_of_the_posterior(target):
    entropy = float(torch.special.entr(target["p"]).sum())
    assert diversity.posterior_entropy(exact()) == pytest.approx(entropy, abs=1e-9)
    assert diversity.posterior_entropy(importance(particles=2000)) == pytest.approx(entropy, abs=0.1)
    assert diversity.entropy_of_draws(exact()) <= min(entropy, math.log(100)) + 0.1
    run = importance()
    run.particles = {**run.particles, "theta": torch.randn(4, 64)}
    assert diversity.posterior_entropy(run) == pytest.approx(entropy, abs=0.5)
    assert diversity.is_bounded(run)


def test_diversity_of_a_collapsed_run():
    run = importance(replicates=1)
    run.log_weight = torch.full((1, 64), -torch.inf).double()
    row = int(run.particles["review"].lengths[0].argmax())
    run.log_weight[0, row] = 0.0
    assert diversity.entropy_of_draws(run) == 0.0
    assert diversity.distinct_completions(run) == 1
    length = int(run.particles["review"].lengths[0, row])
    tokens = run.particles["review"].tokens[0, row, :length].tolist()
    pairs = list(itertools.pairwise(tokens))
    assert diversity.distinct_ngrams(run) == pytest.approx(len(set(pairs)) / (100 * len(pairs)))


def test_padding_is_not_a_bigram():
    run = importance()
    run.particles["review"].tokens[:] = 0  # every completion is EOS and padding
    assert diversity.distinct_ngrams(run) is None


# ---- comparison


@pytest.fixture(scope="module")
def runs():
    return {"exact": exact(), "is": importance(), "smc": smc(), "svi": svi()}


def test_comparison_holds_every_column_and_dashes_where_due(runs):
    table = compare(runs).table
    assert list(table.index) == list(runs)
    assert table["engine"].tolist() == ["exact", "importance", "smc", "svi"]
    dash = table.isna()
    assert dash.loc["exact", ["ess", "khat", "largest_weight", "rhat", "unique_ancestors", "log_evidence_spread"]].all()
    assert dash.loc["svi", "rhat"]
    assert dash["elbo_gap"].tolist() == [True, True, True, False]
    assert table.loc["is", "E[praise]"] == runs["is"].mean("praise").value
    assert table.loc["smc", "se[praise]"] == runs["smc"].mean("praise").standard_error
    assert table.loc["is", "unique_ancestors"] == 64
    assert table.loc["smc", "unique_ancestors"] < 64


def test_comparison_of_files_equals_that_of_posteriors(runs, tmp_path):
    paths = {name: run.save(tmp_path / f"{name}.nc") for name, run in runs.items()}
    assert compare(paths).table.equals(compare(runs).table)
    assert list(compare([*paths.values(), runs["is"], paths["is"]]).runs) == [*runs, "importance", "is-2"]


def test_json_has_null_where_a_number_has_no_meaning(runs):
    content = json.loads(compare(runs).to_json(), parse_constant=lambda name: pytest.fail(name))
    assert content["runs"]["exact"]["ess"] is None
    assert content["runs"]["is"]["config"] == {"num_particles": 64, "num_replicates": 4}
    assert content["reference"]["best_run"] == "exact"
    assert content["advice"]["verdict"].startswith("The exact answer is here")


def test_save_writes_three_files(runs, tmp_path):
    written = compare(runs).save(tmp_path / "out")
    assert sorted(p.name for p in written) == ["comparison.csv", "comparison.json", "report.html"]
    assert all(p.stat().st_size > 500 for p in written)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        compare(runs).save(tmp_path / "file")


def test_different_targets_are_refused(runs):
    other_beta = importance(scale=2 * SCALE)
    other_model = importance()
    other_model.model = "blame"
    for other, what in ((other_beta, "rewards"), (other_model, "models")):
        with pytest.raises(InputError, match=what):
            compare({"a": runs["is"], "b": other})
    with pytest.raises(InputError, match="nothing to compare"):
        compare({})


# ---- advisor


def test_importance_sampling_is_enough():
    advice = compare([importance(particles=1000), smc(particles=500)]).advice
    assert advice.verdict.startswith("Importance sampling is enough here")
    assert any("no run has visited" in reason for reason in advice.reasons)


def test_no_run_can_be_trusted():
    run = importance(scale=12.0, replicates=1)
    top = run.log_weight.flatten().topk(2).values
    run.log_weight = torch.where(run.log_weight >= top.min(), run.log_weight, run.log_weight - 40)
    verdict = compare({"is": run}).advice.verdict
    carrying = completions_carrying(run, 0.99)
    assert carrying <= 2
    assert (
        verdict
        == f"No run can be trusted: all weight on {carrying} completion{'s'[: carrying - 1]} (is, the best of them)."
    )


def test_a_few_heavy_draws_beside_many_light_ones_are_few():
    """Their entropy is that of a dozen draws; what is averaged over them has the error of six."""
    run = importance(particles=500)
    share = torch.full(run.log_weight.shape, 1e-9, dtype=torch.float64).reshape(-1)
    share[:3], share[100:160] = 0.2, 0.4 / 60
    run.log_weight = share.log().reshape(run.log_weight.shape)
    assert float(run.importance_weights.pooled.perplexity) > 10
    (problem, *_) = [line for line in complaints(run, {"is": run}) if "effective" in line]
    assert problem == f"{1 / (share / share.sum()).square().sum():.1f} effective draws in all"
    assert compare({"is": run}).advice.standing == "unsound"


def test_a_mean_off_the_exact_one_is_said_in_words_and_rounding_is_not_said(runs):
    def said(by: float) -> str:
        run = importance()
        r = run.rewards["praise"]
        run.rewards = {"praise": torch.full_like(r, exact().mean("praise").value + by)}
        run.rewards["praise"][0, 0] += 1e-13  # an error bar that is rounding
        return "; ".join(complaints(run, {"exact": exact(), "is": run}))

    assert "E[praise] is over 100 standard errors from the exact one" in said(0.1)
    assert "standard errors" not in said(1e-12)


def test_the_exact_answer_settles_it(runs):
    advice = compare(runs).advice
    assert "exact): use it" in advice.verdict
    assert "is" in advice.verdict


def test_a_guide_that_misses_a_mode_looks_fine_alone_and_is_found_out():
    """Half of the posterior lies where the guide never goes: even weights, and a log Z too low by log 2."""
    whole, blind = importance(particles=1000), importance(seed=5, particles=1000)
    blind.log_weight = torch.full((4, 1000), evidence.log_evidence(whole) - math.log(2)).double()
    blind.log_weight += 0.1 * torch.randn(4, 1000, generator=torch.Generator().manual_seed(0))
    blind.engine, blind.history = "svi", {"loss": torch.zeros(3)}
    assert complaints(blind, {"svi": blind}) == []
    both = {"svi": blind, "is": whole}
    assert best_run(both) == "is"
    assert "nats below is" in complaints(blind, both)[0]


def test_weights_alone_never_make_a_run_good():
    """One replicate, or a guide however many replicates, has only its own weights to show for itself."""
    for lonely in (importance(replicates=1, particles=2000), svi(particles=500)):
        advice = compare([lonely]).advice
        assert advice.standing == "unconfirmed"
        assert "nothing confirms it" in advice.verdict
    assert compare([importance(replicates=1, particles=4000), svi(particles=500)]).advice.standing == "sound"
    assert compare([importance(particles=1000)]).advice.standing == "sound"


def test_wide_spread_speaks_against_a_run():
    run = importance(particles=500)
    run.log_weight += torch.tensor([0.0, 3.0, -3.0, 1.0])[:, None]
    assert any("spreads by" in problem for problem in complaints(run, {"is": run}))


def test_smc_without_error_bars_or_resampling_says_so():
    few = smc(replicates=2)
    assert any("give no error bars" in problem for problem in complaints(few, {"smc": few}))
    idle = smc()
    idle.history = {**idle.history, "resampled": torch.zeros(1, 6, dtype=torch.bool)}
    assert any("never resampled" in reason for reason in advise({"smc": idle}, "smc").reasons)


def test_heavy_tails_speak_against_a_run():
    run = importance(replicates=1, particles=4000)
    run.log_weight = torch.as_tensor(np.random.default_rng(0).exponential(0.9, (1, 4000)))
    assert any("k-hat" in problem for problem in complaints(run, {"is": run}))
