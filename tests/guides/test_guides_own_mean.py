"""What a trained guide writes by itself, beside the posterior that its weights make of it."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import SEED
from pandas import read_csv
from toys.lms import ABC
from toys.rewards import ones
from toys.worlds import game

from ppl_align import SVI, CausalLM, ImportanceSampling, Posterior, compare, completion, constrain, reward
from ppl_align.constraints import Contains
from ppl_align.posterior import policy
from ppl_align.report.html import render
from ppl_align.testing.oracle import Oracle


def program(beta: float = 0.4) -> None:
    reward("r", ones, completion("x", ABC, [0], max_new_tokens=4).tokens, beta=beta)


def confined() -> None:
    x = completion("x", ABC, "a", max_new_tokens=3)
    constrain("c", Contains("b"), x)
    reward("r", ones, x.tokens, beta=0.4)


def column(run: Posterior) -> tuple[float, float]:
    row = compare({"svi": run, "is": ImportanceSampling(64).run(program)}).table.loc["svi"]
    return row["E_q[r]"], row["se_q[r]"]


@pytest.mark.parametrize("replicates", [1, 8])
@pytest.mark.parametrize("steps", [1, 40])
def test_it_is_the_mean_under_the_guide(steps: int, replicates: int) -> None:
    """Against the enumerated law of the guide as training left it: value, and the size of the error."""
    run = SVI(steps, num_particles=4000 // replicates, num_replicates=replicates).run(program, seed=SEED)
    oracle = Oracle(program)
    q = oracle.log_q(run.guide).detach()
    exact = float(oracle.mean("r", q))
    sd = math.sqrt(float(oracle.mean(oracle.rewards["r"].double() ** 2, q)) - exact**2)
    value, error = column(run)
    assert error == pytest.approx(sd / math.sqrt(4000), rel=0.15)
    assert abs(value - exact) < 4.5 * sd / math.sqrt(4000)
    assert abs(float(oracle.mean("r")) - exact) > 8 * error, "the posterior is something else"
    assert abs(run.mean("r").value - float(oracle.mean("r"))) < abs(value - float(oracle.mean("r")))


@pytest.mark.statistical
def test_over_many_runs_the_bar_covers() -> None:
    oracle = Oracle(program)
    guide = SVI(10).run(program).guide
    exact = float(oracle.mean("r", oracle.log_q(guide).detach()))
    hits = 0
    for seed in range(200):
        draws = ImportanceSampling(16, 4, proposal=guide).run(program, seed=1000 * SEED + seed)
        draws.history = {"loss": torch.zeros(1)}
        value, error = policy.own_mean(draws, "r") or (math.nan, math.nan)
        hits += abs(value - exact) < 1.96 * error
    assert 0.89 <= hits / 200 <= 0.995


def test_a_guide_within_constraints(tiny_llama: CausalLM) -> None:
    run = SVI(5, num_particles=1500).run(confined)
    r = ones(run.particles["x"].tokens)  # type: ignore[union-attr]
    assert policy.own_mean(run, "r") == pytest.approx((float(r.mean()), float(r.std()) / math.sqrt(r.numel())))

    def network() -> None:
        reward("r", ones, completion("x", tiny_llama, [1, 2], max_new_tokens=3).tokens, beta=0.2)

    run = SVI(30, num_particles=1500).run(network)
    oracle = Oracle(network)
    value, error = policy.own_mean(run, "r") or (math.nan, math.nan)
    assert abs(value - float(oracle.mean("r", oracle.log_q(run.guide).detach()))) < 4.5 * error


def test_other_runs_have_none_and_then_there_is_no_column() -> None:
    run = ImportanceSampling(64).run(program)
    assert policy.own_mean(run, "r") is None
    assert "guide E[" not in str(compare([run]))
    assert "by itself" not in run.summary()


def test_a_decision_is_its_own_draws() -> None:
    run = SVI(5, num_particles=64).run(game)
    value, error = policy.own_mean(run, "pay") or (math.nan, math.nan)
    assert value == pytest.approx(run.mean("pay").value)
    assert error == pytest.approx(run.mean("pay").standard_error, rel=0.02)


def test_where_a_reward_does_not_apply_or_rejects() -> None:
    run = SVI(2).run(program)
    r = run.rewards["r"].double()
    half = torch.arange(r.numel()).reshape(r.shape) % 2 == 0
    run.rewards = {"r": torch.where(half, r, torch.nan)}
    value, error = policy.own_mean(run, "r") or (0.0, 0.0)
    assert value == pytest.approx(float(r[half].mean()))
    assert error == pytest.approx(float(r[half].std()) / math.sqrt(int(half.sum())))
    run.rewards = {"r": torch.where(half, r, -torch.inf)}
    assert (policy.own_mean(run, "r") or (0.0, 0.0))[0] == -math.inf
    run.rewards = {"r": torch.full_like(r, torch.nan)}
    assert math.isnan((policy.own_mean(run, "r") or (0.0, 0.0))[0])


def test_it_is_in_the_table_the_page_the_csv_and_after_loading(tmp_path) -> None:
    run = SVI(5).run(program)
    found = compare({"svi": Posterior.load(run.save(tmp_path / "svi.nc")), "is": ImportanceSampling(64).run(program)})
    text = str(found)
    assert "guide E[r]" in text
    assert max(map(len, text.splitlines())) <= 80
    value, error = policy.own_mean(run, "r") or (math.nan, math.nan)
    assert "guide E[r]" in render(found)
    assert "what you deploy" in render(found)
    found.save(tmp_path)
    table = read_csv(tmp_path / "comparison.csv", index_col="run")
    assert table.loc["svi", ["E_q[r]", "se_q[r]"]].tolist() == pytest.approx([value, error])
    assert table.loc["is", ["E_q[r]", "se_q[r]"]].isna().all()
    assert f"The guide by itself has E[r] = {policy.own_mean(run, 'r')}" in run.summary()


def test_long_names_keep_to_80_columns() -> None:
    def long_names() -> None:
        x = completion("x", ABC, [0], max_new_tokens=4)
        for k in range(3):
            reward(f"a reward with quite a long name {k}", ones, x.tokens, beta=0.4)

    text = str(compare({"a run with a long name": SVI(2).run(long_names)}))
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("guide E[a reward with") == 3
