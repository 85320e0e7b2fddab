"""What a person sees of Markov chains, of tempering and of rejuvenation: tables, figures, the page, a notebook."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from conftest import SEED
from matplotlib.figure import Figure
from toys.markov_chains import chains
from toys.synthetic import importance

from ppl_align import MCMC, SMC, Comparison, ParticleGibbs, Posterior, TemperedSMC, compare
from ppl_align.core.arviz_adapter import autocorrelation
from ppl_align.kernels import SuffixMH
from ppl_align.report import chain_plots, html
from ppl_align.report.level_plots import sizes
from ppl_align.report.style import PALETTE
from ppl_align.testing import PROGRAMS

WEIGHTS = ("log Z", "spread", "ancestors", "ESS", "max w", "precision/1k")


@pytest.fixture(scope="module")
def runs() -> dict[str, Posterior]:
    engines = {
        "mcmc": MCMC(num_chains=5, num_samples=60, num_warmup=8),
        "gibbs": ParticleGibbs(num_chains=4, num_samples=24, num_warmup=4),
        "tempered": TemperedSMC(64, ess_threshold=0.9),
        "wasteless": TemperedSMC(64, ess_threshold=0.9, waste_free=True),
        "smc": SMC(64, twist="prefix", ess_threshold=0.9, rejuvenate=SuffixMH()),
    }
    return {name: engine.run(PROGRAMS["upstream_latent"], seed=SEED) for name, engine in engines.items()}


@pytest.fixture(scope="module")
def compared(runs: dict[str, Posterior]) -> Comparison:
    return compare(runs)


def test_every_number_of_every_chain_has_a_row(compared: Comparison) -> None:
    text = str(compared)
    assert max(map(len, text.splitlines())) <= 80
    heading = text.index("Markov chains, number by number")
    header, _, *rows = text[heading:].splitlines()[1:]
    assert header.split() == ["run", "mean", "MCSE", "R-hat", "bulk", "ESS", "tail", "ESS"]
    names = [" ".join(row.split()[:2]) for row in rows[: sum(map(len, compared.chains.values()))]]
    expected = [f"{run} {number}" for run, numbers in compared.chains.items() for number in numbers]
    assert names == expected
    assert {"mcmc r", "mcmc z", "mcmc log_prior", "gibbs r"} <= set(expected)
    assert "nan" not in text


def test_what_chains_do_not_know_is_a_dash(compared: Comparison) -> None:
    columns = {c.header: c for c in compared.columns}
    for run in ("mcmc", "gibbs"):
        assert [columns[name].text(compared.rows[run]) for name in WEIGHTS if name in columns] == ["-"] * len(
            [name for name in WEIGHTS if name in columns]
        )
        assert "-" not in [columns[name].text(compared.rows[run]) for name in ("bulk ESS", "tail ESS", "accepts")]
    for run in ("tempered", "smc"):
        assert [columns[name].text(compared.rows[run]) for name in ("bulk ESS", "tail ESS", "accepts")] == ["-"] * 3


def test_runs_without_chains_have_no_such_columns() -> None:
    text = str(compare([importance()]))
    assert not any(word in text for word in ("bulk ESS", "Markov", "accepts"))


def test_the_error_of_a_reward_is_its_mcse(compared: Comparison) -> None:
    assert compared.table.loc["mcmc", "se[r]"] == compared.chains["mcmc"]["r"]["mcse"]


def test_json_has_them_too(compared: Comparison) -> None:
    found = json.loads(compared.to_json())["chains"]
    assert found["mcmc"]["r"]["ess_bulk"] == pytest.approx(compared.chains["mcmc"]["r"]["ess_bulk"])
    assert set(found) == {"mcmc", "gibbs"}


def test_the_page_has_table_and_figures(compared: Comparison) -> None:
    page = html.render(compared)
    assert "Markov chains, number by number" in page
    assert "5 chains of 60 states" in page
    for figure in ("traces_mcmc", "mixing_mcmc", "traces_gibbs", "acceptance", "tempering"):
        assert f'alt="plot: {figure}"' in page
    alone = html.render(compare([chains()]))
    assert 'alt="plot: evidence"' not in alone, "there is none"
    assert "Markov chains" not in re.sub(r"<ul>.*?</ul>", "", html.render(compare([importance()])), flags=re.DOTALL)


def test_a_notebook_shows_them(compared: Comparison, runs: dict[str, Posterior]) -> None:
    assert "Markov chains, number by number" in compared._repr_html_()
    shown = runs["mcmc"]._repr_html_()
    assert "bulk ESS" in shown
    assert ">accepts</th>" in shown
    assert "bulk ESS" not in runs["smc"]._repr_html_()


def test_which_figures_there_are(compared: Comparison) -> None:
    names = {"evidence", "weights", "reward_r", "smc", "tempering", "acceptance"}
    names |= {f"{kind}_{run}" for kind in ("traces", "mixing") for run in ("mcmc", "gibbs")}
    assert names <= set(compared.figures())


def lines(figure: Figure, panel: int) -> list[np.ndarray]:
    return [np.asarray(line.get_ydata(), dtype=float) for line in figure.axes[panel].lines]


def test_a_trace_is_the_chain_in_its_order(runs: dict[str, Posterior]) -> None:
    run = runs["mcmc"]
    figure = chain_plots.plot_traces("mcmc", run, PALETTE[0])
    assert figure is not None
    assert [axes.get_ylabel() for axes in figure.axes] == ["r", "z", "log_prior"]
    for drawn, values in zip(lines(figure, 0), run.rewards["r"].double().numpy(), strict=True):
        assert np.array_equal(drawn, values)


def test_autocorrelation_and_ranks(runs: dict[str, Posterior]) -> None:
    run = runs["mcmc"]
    figure = chain_plots.plot_mixing("mcmc", run, PALETTE[0])
    assert figure is not None
    *each, mean, _ = lines(figure, 0)
    expected = autocorrelation(run.rewards["r"].double().numpy())[:, :41]
    assert np.allclose(np.stack(each), expected)
    assert np.allclose(mean, expected.mean(0))
    shares = [patch.get_data().values for patch in figure.axes[1].patches]
    assert np.mean(shares, axis=0) == pytest.approx([0.1] * 10), "ranks among all states fill all bins alike"


def test_short_and_constant_chains_have_plots_or_none() -> None:
    constant = chains(texts=torch.full((4, 30), 7))
    assert chain_plots.plot_mixing("mcmc", constant, PALETTE[0]) is not None
    assert chain_plots.plot_mixing("mcmc", chains(shape=(4, 5)), PALETTE[0]) is None
    assert chain_plots.plot_traces("mcmc", chains(shape=(4, 1)), PALETTE[0]) is None
    assert chain_plots.plot_traces("importance", importance(), PALETTE[0]) is None
    assert compare([constant]).figures()


def test_tempering_shows_the_path(compared: Comparison, runs: dict[str, Posterior]) -> None:
    figure = compared.figures()["tempering"]
    path, shares, moves = (lines(figure, panel) for panel in range(3))
    run = runs["tempered"]
    assert np.array_equal(path[0], [0.0, *run.history["exponent"]])
    assert any(np.allclose(line, run.history["move_accepted"]) for line in shares)
    assert any(np.allclose(line, run.history["ess"].mean(1) / 64) for line in shares)
    assert np.array_equal(moves[0], run.history["num_moves"])
    assert max(line.max() for line in shares) <= 1


def test_particles_when_nothing_is_wasted(runs: dict[str, Posterior]) -> None:
    run = runs["wasteless"]
    moves = run.history["num_moves"].tolist()
    assert sizes(run).tolist() == [64, *(64 * (m + 1) for m in moves[:-1])]
    assert run.log_weight.shape[1] == 64 * (moves[-1] + 1)
    assert bool((run.history["ess"] <= sizes(run)[:, None] + 1e-6).all())
    assert sizes(runs["tempered"]).unique().tolist() == [64]


def test_rejuvenation_shows_what_was_accepted(compared: Comparison, runs: dict[str, Posterior]) -> None:
    drawn = lines(compared.figures()["smc"], 0)
    moved = runs["smc"].history["moved"].double().nanmean(1).numpy()
    assert any(len(line) == len(moved) and np.allclose(line, moved, equal_nan=True) for line in drawn)
