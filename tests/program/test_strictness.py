"""A latent strictness: ``reward(weight=, beta=)`` with one value for each particle, against enumeration."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import SEED
from toys.contracts import contract_of
from toys.strict_programs import (
    OWN,
    PROGRAMS,
    SHARES,
    WEIGHTS,
    beta_of_a_latent,
    critics_of_one_text,
    weight_of_a_latent,
)

from ppl_align import (
    SMC,
    SVI,
    Enumeration,
    ImportanceSampling,
    Posterior,
    Rejection,
    compare,
    completion,
    inspect,
    reward,
)
from ppl_align.cli.check import sites
from ppl_align.core.errors import InputError
from ppl_align.lints import PriorSample, lint
from ppl_align.testing.programs import EOS, FIXED, STEP, count_score

# -- the answer by hand -------------------------------------------------------------------------------------------


def by_hand(weights, lm, prompt, length, score):
    """log Z, E[r] and P(z | reward) by sums over (z, x)."""
    run = Enumeration().run(lambda: completion("x", lm, prompt, max_new_tokens=length))
    log_p, tokens = run.log_prior["x"][0], run.particles["x"].tokens[0]
    r = score(tokens).double()
    joint = SHARES.double().log()[:, None] + log_p + weights.double()[:, None] * r
    log_z = joint.logsumexp((0, 1))
    target = (joint - log_z).exp()
    return float(log_z), float((target * r).sum()), target.sum(1)


@pytest.mark.parametrize(
    ("program", "answer"),
    [
        (weight_of_a_latent, lambda: by_hand(WEIGHTS / 0.8, FIXED, [0], 3, count_score)),
        (beta_of_a_latent, lambda: by_hand(WEIGHTS, EOS, [0], 3, lambda t: 0.8 * (t == 1).sum(-1))),
    ],
)
def test_enumeration_is_the_sum_by_hand(program, answer):
    log_z, mean, strictness = answer()
    run = Enumeration().run(program)
    assert float(run.log_evidence) == pytest.approx(log_z, abs=1e-6)
    assert run.mean("r").value == pytest.approx(mean, abs=1e-6)  # unweighted
    for k in range(3):
        assert run.mean(lambda p, k=k: (p["z"] == k).double()).value == pytest.approx(float(strictness[k]), abs=1e-6)
    scale = WEIGHTS.double()[run.particles["z"]] / (0.8 if program is weight_of_a_latent else 1.0)
    torch.testing.assert_close(run.scales["r"], scale)
    torch.testing.assert_close(run.factors["r"], run.scales["r"] * run.rewards["r"])
    upper = 3 * STEP if program is weight_of_a_latent else 2.4
    torch.testing.assert_close(run.log_upper["r"], scale * upper)


def test_critics_of_one_text_by_hand():
    run = Enumeration().run(lambda: completion("x", FIXED, [0], max_new_tokens=3))
    r = count_score(run.particles["x"].tokens[0])
    each = (SHARES.double().log() + 0.4 * WEIGHTS.double() * r[:, None]).logsumexp(1)
    exact = Enumeration().run(critics_of_one_text)
    assert float(exact.log_evidence) == pytest.approx(float((run.log_prior["x"][0] + 2 * each).logsumexp(0)), abs=1e-6)
    torch.testing.assert_close(exact.scales["r"], 0.4 * WEIGHTS.double()[exact.particles["z"]].mean(-1))


@pytest.mark.parametrize(
    "engine",
    [
        Enumeration(),
        ImportanceSampling(32),
        SMC(32, twist="prefix", ess_threshold=0.9),
        SVI(num_steps=2, num_particles=32),
        Rejection(8, max_draws=1_000_000),
    ],
    ids=lambda engine: engine.name,
)
def test_every_engine_against_enumeration(engine):
    bounded = {name: p for name, p in PROGRAMS.items() if name not in ("signs_and_none", "weight_after_the_text")}
    contract_of(engine, bounded if engine.name == "rejection" else PROGRAMS, seed=SEED).raise_if_failed()


def test_a_continuous_strictness_by_quadrature():
    def program():
        strictness = pyro.sample("strictness", dist.Gamma(2.0, 1.0))
        x = completion("x", FIXED, [0], max_new_tokens=2)
        reward("kind", lambda t: count_score(t) - 2 * STEP, x.tokens, weight=strictness, upper=0.0)

    run = Enumeration().run(lambda: completion("x", FIXED, [0], max_new_tokens=2))
    log_p, r = run.log_prior["x"][0], count_score(run.particles["x"].tokens[0]) - 2 * STEP
    # E exp(s r) for s ~ Gamma(2, 1) is (1 - r)^-2, and E[s exp(s r)] its derivative 2 (1 - r)^-3
    log_z = (log_p - 2 * (1 - r).log()).logsumexp(0)
    mean = (log_p + math.log(2) - 3 * (1 - r).log() - log_z).exp().sum()
    for engine in (ImportanceSampling(2000), SMC(500, 40, twist="prefix"), SVI(num_steps=60), Rejection(200)):
        found = engine.run(program, seed=SEED)
        value, error = found.mean("strictness")
        assert abs(value - float(mean)) < 4.5 * error, engine.name
        ratio = (found.log_evidence - log_z).exp()
        assert abs(float(ratio.mean()) - 1) < 0.2, engine.name


# -- what follows -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("program", OWN, ids=lambda program: program.__name__)
def test_it_comes_back_from_a_file_and_from_a_selection(program, tmp_path):
    run = ImportanceSampling(16, 4).run(program, seed=SEED)
    back = Posterior.load(run.save(tmp_path / "run.nc"))
    assert back.drawn_scales == run.drawn_scales != ()
    index = torch.tensor([[3, 3, 60]])
    for name, scale in run.scales.items():
        assert scale.shape == run.log_upper[name].shape == run.log_weight.shape
        assert torch.equal(back.scales[name], scale)
        assert torch.equal(back.log_upper[name], run.log_upper[name])
        assert torch.equal(run.take(index).scales[name], scale.reshape(-1)[index])
        assert torch.equal(run.take(index).log_upper[name], run.log_upper[name].reshape(-1)[index])
    data = run.to_arviz()
    name = run.drawn_scales[0]
    drawn = data["sample_stats"][f"nats_per_unit_{name}"].values
    assert set(drawn.ravel()) <= set(run.scales[name].numpy().ravel())


def test_files_of_format_1_read_as_constants():
    from pathlib import Path

    run = Posterior.load(Path(__file__).parents[1] / "data" / "format1.nc")
    assert run.scales["steps"].unique().tolist() == [pytest.approx(1 / 0.7)]
    assert run.scales["early"].unique().tolist() == [-0.4]
    assert run.scales["steps"].shape == run.log_weight.shape == (4, 6)
    assert run.drawn_scales == ()
    assert run.log_upper == {}  # format 1 did not say
    torch.testing.assert_close(run.factors["steps"], run.scales["steps"] * run.rewards["steps"])
    assert [round(float(z), 4) for z in run.log_evidence] == [2.0246, 1.1108, 1.9639, 1.8220]
    assert run.mean("steps").value == pytest.approx(1.47, abs=0.005)
    assert run.mean("early").value == pytest.approx(-0.895, abs=0.0005)


def test_format_1_is_written_again_as_format_2_and_is_the_same(tmp_path):
    from pathlib import Path

    old = Posterior.load(Path(__file__).parents[1] / "data" / "format1.nc")
    new = Posterior.load(old.save(tmp_path / "new.nc"))
    assert all(torch.equal(new.scales[name], old.scales[name]) for name in old.scales)
    assert new.summary() == old.summary()
    assert len(compare({"old": old, "new": new}).table) == 2


@pytest.mark.parametrize(
    ("value", "says"), [(3, "newer ppl-align .*format 3.*upgrade"), ("x", "format"), (0, "format")]
)
def test_a_format_that_is_not_known_is_refused(tmp_path, value, says):
    import h5py

    path = ImportanceSampling(4, 2).run(weight_of_a_latent).save(tmp_path / "run.nc")
    with h5py.File(path, "r+") as file:
        file.attrs["ppl_align_format"] = value
    with pytest.raises(InputError, match=says) as caught:
        Posterior.load(path)
    assert "\n" not in str(caught.value)
    with h5py.File(path, "r+") as file:
        del file.attrs["ppl_align_format"]
    with pytest.raises(InputError, match="format"):
        Posterior.load(path)


def test_runs_are_compared_by_the_scales_of_the_draws_they_share():
    def with_weights(weights):
        def program():
            z = pyro.sample("z", dist.Categorical(SHARES))
            x = completion("x", FIXED, [0], max_new_tokens=2)
            reward("r", count_score, x.tokens, weight=weights if weights.dim() == 0 else weights[z])

        program.__name__ = "program"
        return program

    exact = Enumeration().run(with_weights(WEIGHTS))
    # a run that happened to draw one strictness only is still a run of the same target
    few = [ImportanceSampling(2, 1).run(with_weights(WEIGHTS), seed=s) for s in range(4)]
    assert any(len(run.scales["r"].unique()) == 1 for run in few)
    for run in few:
        compare({"exact": exact, "few": run})
    with pytest.raises(InputError, match=r"different targets.*nats per unit of 'r' for one draw"):
        compare({"exact": exact, "other": Enumeration().run(with_weights(2 * WEIGHTS))})
    with pytest.raises(InputError, match="different targets"):
        compare({"exact": exact, "other": Enumeration().run(with_weights(torch.tensor(0.9)))})


def test_inspect_and_lints_follow():
    truth = Enumeration().run(weight_of_a_latent)
    found = inspect(weight_of_a_latent, num_draws=2000, seed=SEED)
    value, error = found.written.rewards["r"]
    assert abs(value - truth.mean("r").value) < 4.5 * error
    value, error = found.written.log_evidence
    assert abs(value - float(truth.log_evidence)) < 4.5 * error
    assert found.beta is None  # there is no one beta
    assert found.pool.log_bound == pytest.approx(float(WEIGHTS.max()) / 0.8 * 3 * STEP)
    factor = found.pool.particles.factors["r"]
    assert found.rewards[0].nats == pytest.approx(float(factor.std(unbiased=False)), rel=1e-6)
    share = float((factor - found.pool.log_bound).exp().mean())
    line = next(p for p in found.predictions if p.engine == "rejection")
    assert line.num_draws.value == pytest.approx(found.goal / share)
    assert str(found)
    named = {finding.lint for finding in lint(weight_of_a_latent)}
    assert "marginalised reward parameter" not in named


def test_check_says_what_a_unit_is_worth(monkeypatch):
    rows = sites(PriorSample(weight_of_a_latent))
    assert any("one unit is worth 0.375 to 1.75 nats" in row for row in rows)
