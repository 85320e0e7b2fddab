"""Exact draws by simulating the joint, and simulation-based calibration."""

from __future__ import annotations

from collections import Counter

import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import SEED

from ppl_align import SMC, Enumeration, ImportanceSampling, Rejection, completion, reward
from ppl_align.core.errors import InputError
from ppl_align.engines.base import Engine
from ppl_align.testing.calibration import calibrate
from ppl_align.testing.oracle import Oracle
from ppl_align.testing.programs import EOS, PROGRAMS
from ppl_align.testing.simulation import simulate
from ppl_align.testing.statistics import g_test, key_rows, probabilities


def suffix(ending=(1, 0)):
    middle = completion("middle", EOS, [0], max_new_tokens=3)
    completion("ending", EOS, ([0], middle), starts_with=ending)


def label(liked=torch.tensor(1.0)):
    """A classifier's verdict on the text."""
    x = completion("x", EOS, [], max_new_tokens=4)
    p = torch.sigmoid(1.5 * (x.tokens == 1).sum(-1) - 1.0)
    pyro.sample("liked", dist.Bernoulli(p), obs=liked)


def test_the_joint_is_simulated():
    """Among simulations with one suffix, the middles follow the posterior given that suffix."""
    simulations = simulate(suffix, num_simulations=800, seed=SEED)
    for ending in ([1, 0], [0, 0], [2]):
        draws = [s.draw for s in simulations if s.arguments["ending"] == ending]
        counts = Counter(key_rows(draw)[0][0] for draw in draws)
        oracle = Oracle(suffix, ending=ending)
        assert sum(counts.values()) > 15
        assert g_test(counts, probabilities(oracle.posterior)).p_value > 1e-3 / 3
        for draw in draws[:3]:
            assert draw.draws_are_exact
            there = key_rows(oracle.posterior)[0].index(key_rows(draw)[0][0])
            assert float(draw.log_weight) == pytest.approx(float(oracle.log_potential[there]), abs=1e-9)


def test_data_of_other_kinds_and_other_names():
    found = simulate(label, num_simulations=40, seed=SEED)
    assert {float(s.arguments["liked"]) for s in found} == {0.0, 1.0}

    def renamed(y=1.0):
        label(torch.as_tensor(y))

    assert simulate(renamed, observed={"liked": "y"}, seed=SEED)[0].arguments["y"].shape == ()


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (PROGRAMS["with_eos"], "a reward or factor is no distribution"),
        (PROGRAMS["observed_ending"], "no argument of the model"),
        (lambda: completion("x", EOS, [], max_new_tokens=2), "nothing was observed"),
    ],
)
def test_what_cannot_be_simulated(model, says):
    with pytest.raises(InputError, match=says):
        simulate(model)


@pytest.mark.parametrize("model", [suffix, label])
@pytest.mark.parametrize(
    "engine", [Enumeration(), Rejection(20, 1, num_pilot=32, max_draws=10**6)], ids=lambda e: e.name
)
def test_calibration_of_engines_with_exact_draws(engine, model):
    found = calibrate(engine, model, num_simulations=100, seed=SEED)
    assert {"log_prior", "log_likelihood", "length"} == set(found.ranks)
    assert min(found.p_values.values()) > 1e-3 / 12
    assert str(found).startswith("Calibration: 100 simulations of 19 draws; p-values of uniform ranks: ")
    assert f"length {found.p_values['length']:.2g}" in str(found)


class Overconfident(Enumeration):
    """A wrong engine: it counts the likelihood three times."""

    def _infer(self, task):
        posterior = super()._infer(task)
        posterior.log_weight = posterior.log_weight + 2 * sum(posterior.factors.values())
        return posterior


@pytest.mark.statistical
def test_calibration_catches_a_wrong_engine():
    found = calibrate(Overconfident(), label, num_simulations=250, seed=SEED)
    assert min(found.p_values.values()) < 1e-4


@pytest.mark.parametrize("engine", [ImportanceSampling(8, 1), SMC(8, 1, twist="prefix")], ids=lambda e: e.name)
def test_calibration_refuses_engines_it_would_wrong(engine: Engine):
    with pytest.raises(InputError, match="even if it is right"):
        calibrate(engine, suffix, num_simulations=1)


def test_rewards_are_no_data():
    def rewarded(liked=torch.tensor(1.0)):
        label(liked)
        reward("r", lambda texts: [0.0 for _ in texts], "x")

    with pytest.raises(InputError, match="use Rejection"):
        simulate(rewarded)


@pytest.mark.filterwarnings("ignore")  # ArviZ's own
def test_arviz_draws_it(tmp_path):
    figure = calibrate(Enumeration(), label, num_simulations=40, seed=SEED).plot()
    figure.savefig(tmp_path / "ranks.png")
    assert (tmp_path / "ranks.png").stat().st_size > 5000
