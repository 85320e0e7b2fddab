"""A latent strictness: ``reward(weight=, beta=)`` with one value for each particle, against enumeration."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import SEED

from ppl_align import (
    SMC,
    SVI,
    Exact,
    ImportanceSampling,
    Posterior,
    Rejection,
    compare,
    completion,
    inspect,
    reward,
    reward_funcs,
)
from ppl_align.cli.check import Draws
from ppl_align.errors import InputError, RewardError
from ppl_align.lints import Glance, lint
from ppl_align.testing import check_engine
from ppl_align.testing.chain import ChainOracle
from ppl_align.testing.programs import EOS, FIXED, STEP, count_score

WEIGHTS = torch.tensor([0.3, 0.9, 1.4])
SIGNED = torch.tensor([-0.6, 0.0, 0.8], dtype=torch.float64)
SHARES = torch.tensor([0.5, 0.3, 0.2])


def weight_of_a_latent():
    z = pyro.sample("z", dist.Categorical(SHARES))
    x = completion("x", FIXED, [0], max_new_tokens=3)
    reward("r", count_score, x.tokens, weight=WEIGHTS[z], beta=0.8, upper=3 * STEP)


def beta_of_a_latent():
    z = pyro.sample("z", dist.Categorical(SHARES))
    beta = pyro.deterministic("beta", 1 / WEIGHTS[z])
    x = completion("x", EOS, [0], max_new_tokens=3)
    reward("r", lambda t: 0.8 * (t == 1).sum(-1), x.tokens, beta=beta, upper=2.4)


def signs_and_none():
    """A weight that rewards, is silent or punishes; a reward that does not always apply."""
    z = pyro.sample("z", dist.Categorical(SHARES))
    x = completion("x", FIXED, [1], max_new_tokens=2)
    reward("ones", lambda texts: [None if t[0] == "2" else t.count("1") - 0.5 for t in texts], x, weight=SIGNED[z])
    reward("r", count_score, x.tokens, weight=torch.tensor(0.7), beta=torch.tensor([1.0]))


def weight_after_the_text():
    """How strict the judge is depends on the text."""
    x = completion("x", EOS, [0], max_new_tokens=2)
    z = pyro.sample("z", dist.Bernoulli(torch.sigmoid((x.tokens == 1).sum(-1).double())))
    reward("r", count_score, x.tokens, weight=0.2 + z, upper=2 * STEP)


def a_critic_for_each_text():
    with pyro.plate("critics", 2):
        z = pyro.sample("z", dist.Categorical(SHARES))
        x = completion("x", FIXED, [[0], [1]], max_new_tokens=2)
        reward("r", count_score, x.tokens, weight=WEIGHTS[z], upper=2 * STEP)


def critics_of_one_text():
    """The text is outside of the plate, the critics inside: three likelihoods of one text."""
    x = completion("x", FIXED, [0], max_new_tokens=3)
    with pyro.plate("critics", 2):
        z = pyro.sample("z", dist.Categorical(SHARES))
        reward("r", count_score, x.tokens, weight=0.4 * WEIGHTS[z], upper=3 * STEP)


def rejects():
    z = pyro.sample("z", dist.Categorical(SHARES))
    x = completion("x", FIXED, [0], max_new_tokens=2)
    reward("has a 2", lambda t: torch.where((t == 2).any(-1), 0.5, -torch.inf), x.tokens, weight=z.double(), upper=0.5)


OWN = (
    weight_of_a_latent,
    beta_of_a_latent,
    signs_and_none,
    weight_after_the_text,
    a_critic_for_each_text,
    critics_of_one_text,
)
PROGRAMS = {program.__name__: program for program in OWN}


# -- the answer by hand -------------------------------------------------------------------------------------------


def by_hand(weights, lm, prompt, length, score):
    """log Z, E[r] and P(z | reward) by sums over (z, x)."""
    run = Exact().run(lambda: completion("x", lm, prompt, max_new_tokens=length))
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
    run = Exact().run(program)
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
    run = Exact().run(lambda: completion("x", FIXED, [0], max_new_tokens=3))
    r = count_score(run.particles["x"].tokens[0])
    each = (SHARES.double().log() + 0.4 * WEIGHTS.double() * r[:, None]).logsumexp(1)
    exact = Exact().run(critics_of_one_text)
    assert float(exact.log_evidence) == pytest.approx(float((run.log_prior["x"][0] + 2 * each).logsumexp(0)), abs=1e-6)
    torch.testing.assert_close(exact.scales["r"], 0.4 * WEIGHTS.double()[exact.particles["z"]].mean(-1))


@pytest.mark.parametrize(
    "engine",
    [
        Exact(),
        ImportanceSampling(32),
        SMC(32, twist="prefix", ess_threshold=0.9),
        SVI(num_steps=2, num_particles=32),
        Rejection(8, max_draws=1_000_000),
    ],
    ids=lambda engine: engine.name,
)
def test_every_engine_against_enumeration(engine):
    bounded = {name: p for name, p in PROGRAMS.items() if name not in ("signs_and_none", "weight_after_the_text")}
    check_engine(engine, bounded if engine.name == "rejection" else PROGRAMS, seed=SEED).raise_if_failed()


def test_a_continuous_strictness_by_quadrature():
    def program():
        strictness = pyro.sample("strictness", dist.Gamma(2.0, 1.0))
        x = completion("x", FIXED, [0], max_new_tokens=2)
        reward("kind", lambda t: count_score(t) - 2 * STEP, x.tokens, weight=strictness, upper=0.0)

    run = Exact().run(lambda: completion("x", FIXED, [0], max_new_tokens=2))
    log_p, r = run.log_prior["x"][0], count_score(run.particles["x"].tokens[0]) - 2 * STEP
    # E exp(s r) for s ~ Gamma(2, 1) is (1 - r)^-2, and E[s exp(s r)] its derivative 2 (1 - r)^-3
    log_z = (log_p - 2 * (1 - r).log()).logsumexp(0)
    mean = (log_p + math.log(2) - 3 * (1 - r).log() - log_z).exp().sum()
    for engine in (ImportanceSampling(2000), SMC(500, twist="prefix"), SVI(num_steps=60), Rejection(200)):
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

    run = Posterior.load(Path(__file__).parent / "data" / "format1.nc")
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

    old = Posterior.load(Path(__file__).parent / "data" / "format1.nc")
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

    exact = Exact().run(with_weights(WEIGHTS))
    # a run that happened to draw one strictness only is still a run of the same target
    few = [ImportanceSampling(2, 1).run(with_weights(WEIGHTS), seed=s) for s in range(4)]
    assert any(len(run.scales["r"].unique()) == 1 for run in few)
    for run in few:
        compare({"exact": exact, "few": run})
    with pytest.raises(InputError, match=r"different targets.*nats per unit of 'r' for one draw"):
        compare({"exact": exact, "other": Exact().run(with_weights(2 * WEIGHTS))})
    with pytest.raises(InputError, match="different targets"):
        compare({"exact": exact, "other": Exact().run(with_weights(torch.tensor(0.9)))})


def test_inspect_and_lints_follow():
    truth = Exact().run(weight_of_a_latent)
    found = inspect(weight_of_a_latent, num_draws=2000, seed=SEED)
    value, error = found.written.rewards["r"]
    assert abs(value - truth.mean("r").value) < 4.5 * error
    value, error = found.written.log_evidence
    assert abs(value - float(truth.log_evidence)) < 4.5 * error
    assert found.beta is None  # there is no one beta
    assert found.pool.log_bound == pytest.approx(float(WEIGHTS.max()) / 0.8 * 3 * STEP)
    factor = found.pool.factors["r"]
    assert found.rewards[0].nats == pytest.approx(float(factor.std(unbiased=False)), rel=1e-6)
    share = float((factor - found.pool.log_bound).exp().mean())
    line = next(p for p in found.predictions if p.engine == "rejection")
    assert line.num_draws.value == pytest.approx(found.goal / share)
    assert str(found)
    named = {finding.lint for finding in lint(weight_of_a_latent)}
    assert "marginalised reward parameter" not in named


def test_check_says_what_a_unit_is_worth(monkeypatch):
    draws = Draws.__new__(Draws)
    draws.glance = Glance(weight_of_a_latent)
    draws.nodes, draws.execution = draws.glance.nodes, draws.glance.execution
    assert any("one unit is worth 0.375 to 1.75 nats" in row for row in draws.sites())


# -- Rejection's bound --------------------------------------------------------------------------------------------


def judged(draw, upper=2 * STEP, **options):
    def program():
        weight = draw()
        x = completion("x", FIXED, [0], max_new_tokens=2)
        reward(
            "kind", lambda t: count_score(t) + (upper or 0) - 2 * STEP, x.tokens, weight=weight, upper=upper, **options
        )

    return program


def test_the_bound_is_the_largest_over_the_latents():
    """log Zhat = B + log acceptance: a wrong B is a wrong log Z. The weights of one draw are all equal."""
    truth = Exact().run(weight_of_a_latent)
    run = Rejection(32, 40, max_draws=10**6).run(weight_of_a_latent, seed=SEED)
    ratio = (run.log_evidence - truth.log_evidence).exp()
    assert abs(float(ratio.mean()) - 1) < 4.5 * float(ratio.std()) / math.sqrt(40)
    assert run.draws_are_exact


@pytest.mark.parametrize(
    "draw",
    [
        lambda: pyro.sample("s", dist.Uniform(0.2, 1.3)),
        lambda: 1.5 * pyro.sample("s", dist.Beta(2.0, 2.0)),
        lambda: pyro.sample("s", dist.Beta(2.0, 2.0).expand([2]).to_event(1)).sum(-1),
        lambda: torch.where(pyro.sample("s", dist.Bernoulli(0.3)) == 1, 1.2, 0.1),
        lambda: 0.1 * pyro.sample("s", dist.Binomial(5, 0.5)),
        lambda: pyro.sample("s", dist.Normal(0.0, 1.0)) * 0 + 0.7,
    ],
)
def test_bounded_weights_are_accepted_and_right(draw):
    program = judged(draw)
    many = ImportanceSampling(4000, 4).run(program, seed=SEED)
    run = Rejection(32, 30, max_draws=10**6).run(program, seed=SEED)
    ratio = (run.log_evidence - torch.logsumexp(many.log_evidence, 0) + math.log(4)).exp()
    noise = math.hypot(float(ratio.std()) / math.sqrt(30), float(many.log_evidence.std()) / 2)
    assert abs(float(ratio.mean()) - 1) < 4.5 * noise


@pytest.mark.parametrize(
    ("draw", "options"),
    [
        (lambda: pyro.sample("s", dist.Gamma(2.0, 1.0)), {}),
        (lambda: pyro.sample("s", dist.LogNormal(0.0, 1.0)), {}),
        (lambda: pyro.sample("s", dist.Poisson(1.0)), {}),
        (lambda: pyro.sample("s", dist.Normal(0.0, 1.0)), {"lower": -2 * STEP}),
        (lambda: pyro.sample("s", dist.Categorical(SHARES)).double() - 1, {}),  # a negative weight needs lower=
        (lambda: WEIGHTS[pyro.sample("s", dist.Categorical(SHARES))], {"upper": None}),
    ],
)
def test_unbounded_weights_are_refused_in_one_line(draw, options):
    with pytest.raises(InputError, match=r"reward 'kind'") as caught:
        Rejection(4).run(judged(draw, **options))
    assert "\n" not in str(caught.value)


def test_a_weight_that_the_text_decides_is_refused():
    def program():
        x = completion("x", FIXED, [0], max_new_tokens=2)
        weight = 1.0 + (x.tokens == 1).sum(-1)
        reward("kind", count_score, x.tokens, weight=weight, upper=2 * STEP)

    with pytest.raises(InputError, match=r"reward 'kind': its weight .* depends on a text"):
        Rejection(64).run(program)
    assert math.isfinite(float(Exact().run(program).log_evidence))


# -- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["weight", "beta"])
@pytest.mark.parametrize(
    ("value", "says"),
    [
        (lambda z: torch.where(z == 0, math.nan, 1.0), "finite"),
        (lambda z: torch.where(z == 0, math.inf, 1.0), "finite"),
        (lambda z: torch.ones(7), "shape"),
        (lambda z: z.double()[..., None] + torch.ones(3), "shape"),
        (lambda z: z == 0, "bool"),
        (lambda z: z * 1j, "complex"),
        (lambda z: [1.0, 2.0], "number"),
        (lambda z: None, "number"),
        (lambda z: "strict", "number"),
    ],
)
@pytest.mark.parametrize("engine", [ImportanceSampling(16, 4), SVI(num_steps=1)], ids=lambda engine: engine.name)
def test_what_is_no_weight_is_refused_in_one_line(engine, what, value, says):
    def program():
        z = pyro.sample("z", dist.Categorical(SHARES))
        x = completion("x", FIXED, [0], max_new_tokens=2)
        reward("kind", count_score, x.tokens, **{what: value(z)})

    with pytest.raises(InputError, match=f"reward 'kind': .*{says}") as caught:
        engine.run(program)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("low", [-0.5, 0.0])
def test_a_beta_that_is_not_positive_is_refused(low):
    def program():
        z = pyro.sample("z", dist.Categorical(SHARES))
        x = completion("x", FIXED, [0], max_new_tokens=2)
        reward("kind", count_score, x.tokens, beta=torch.tensor([low, 1.0, 2.0])[z])

    for engine in (Exact(), ImportanceSampling(64), SMC(64, twist="prefix"), SVI(num_steps=1)):
        with pytest.raises(InputError, match="reward 'kind': beta must be positive and finite"):
            engine.run(program)


def test_a_rejection_under_a_negative_weight_is_refused():
    def program():
        z = pyro.sample("z", dist.Categorical(SHARES))
        x = completion("x", FIXED, [0], max_new_tokens=2)
        reward("r", lambda t: torch.where(t[..., 0] == 0, -torch.inf, 0.0), x.tokens, weight=SIGNED[z])

    with pytest.raises(RewardError, match=r"reward 'r' rejects \(-inf\), and weight=-0.6"):
        Exact().run(program)


def test_a_weight_of_zero_silences_a_rejection():
    run = Exact().run(rejects)
    silent = run.particles["z"] == 0
    assert bool((run.factors["has a 2"][silent] == 0).all())
    assert bool(run.factors["has a 2"][~silent].isneginf().any())
    check_engine(ImportanceSampling(32), [rejects], seed=SEED).raise_if_failed()


def test_several_trl_rewards_have_weights_of_their_own():
    def program():
        z = pyro.sample("z", dist.Categorical(SHARES))
        x = completion("x", FIXED, [0], max_new_tokens=2)

        def ones(completions, **_):
            return [text.count("1") for text in completions]

        reward_funcs([ones, ones], x, beta=1 / WEIGHTS[z], weights=[WEIGHTS[z], 0.5])

    def by_hand():
        z = pyro.sample("z", dist.Categorical(SHARES))
        x = completion("x", FIXED, [0], max_new_tokens=2)
        pyro.factor("f", (WEIGHTS[z] ** 2 + 0.5 * WEIGHTS[z]) * (x.tokens == 1).sum(-1))

    torch.testing.assert_close(Exact().run(program).log_evidence, Exact().run(by_hand).log_evidence, rtol=0, atol=1e-6)


def test_the_chain_oracle_wants_one_weight():
    from ppl_align.errors import ModelError
    from ppl_align.lm import MarkovLM
    from ppl_align.rewards import TokenSum

    lm = MarkovLM(torch.randn(3, 3, dtype=torch.float64))

    def program(drawn):
        x = completion("x", lm, [0], max_new_tokens=4)
        weight = 1.0 + (x.tokens == 1).sum(-1) if drawn else torch.tensor(0.5)
        reward("r", TokenSum(torch.tensor([0.0, 1.0, -1.0])), x.tokens, weight=weight)

    assert ChainOracle(program, False).log_evidence == pytest.approx(float(Exact().run(program, False).log_evidence))
    with pytest.raises(ModelError, match="'r' has a weight or beta that differs"):
        ChainOracle(program, True)
