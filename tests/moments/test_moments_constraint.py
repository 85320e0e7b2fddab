"""Moment constraints against enumeration: lambda, the tilted law, and what every engine makes of it."""

from __future__ import annotations

import dataclasses
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import SEED
from scipy.optimize import brentq
from toys.contracts import contract_of
from toys.moments import CONSTRAINTS, FIRST, MESSAGES, SCORE, each_constraint, enumerated, make, means, says_she, tilted

from ppl_align import (
    SMC,
    SVI,
    Enumeration,
    ImportanceSampling,
    Posterior,
    Rejection,
    choose,
    compare,
    completion,
    moment_constraint,
    reward,
)
from ppl_align.moments.solve import solve
from ppl_align.particles.particles import Particles
from ppl_align.program import Program
from ppl_align.testing import check_engine, kl_divergence
from ppl_align.testing.programs import FIXED
from ppl_align.testing.statistics import bonferroni_z

Z = bonferroni_z(30)  # the statistical comparisons of this file


# -- exact ------------------------------------------------------------------------------------------------------


@each_constraint
def test_a_fit_on_the_exact_posterior_is_exact(name):
    constraint, program = make(*CONSTRAINTS[name])
    constraint.fit(program, engine=Enumeration())
    log_p, phi, mu = enumerated(program, constraint)
    weights = torch.tensor([w.value for w in constraint.fitted.weights.values()], dtype=torch.float64)
    law = tilted(log_p, phi, mu, weights)
    torch.testing.assert_close(means(law, phi), mu, rtol=1e-10, atol=0)
    assert constraint.fitted.kl.value == pytest.approx(float(kl_divergence(law, log_p)), abs=1e-10)
    assert [e.standard_error for e in constraint.fitted.weights.values()] == [0.0] * len(mu)
    for k, before in enumerate(constraint.fitted.before.values()):
        assert before.value == pytest.approx(float(means(log_p, phi)[k]), abs=1e-12)
    seen = Enumeration().run(program)
    for target, feature in zip(mu.tolist(), constraint.targets, strict=True):
        assert seen.mean(feature).value == pytest.approx(target, rel=1e-10)
        assert seen.scales[feature].unique().tolist() == [constraint.fitted.weights[feature].value]


def test_one_multiplier_by_bisection():
    constraint, program = make(*CONSTRAINTS["one"])
    log_p, phi, mu = enumerated(program, constraint)
    expected = brentq(
        lambda w: float(means(tilted(log_p, phi, mu, torch.tensor([w], dtype=mu.dtype)), phi)) - 0.7, -9, 9, xtol=1e-14
    )
    share = float(means(log_p, phi))
    assert expected == pytest.approx(math.log(0.7 / 0.3) - math.log(share / (1 - share)), abs=1e-9)
    assert constraint.fit(program, engine=Enumeration()).fitted.weights["one"].value == pytest.approx(
        expected, abs=1e-9
    )


@each_constraint
def test_the_evidence_falls_by_the_kl(name):
    constraint, program = make(*CONSTRAINTS[name])
    constraint.fit(program, engine=Enumeration())
    with constraint._switched_off():
        without = Enumeration().run(program).log_evidence
    drop = without - Enumeration().run(program).log_evidence
    assert float(drop) == pytest.approx(constraint.fitted.kl.value, abs=1e-10)


@each_constraint
def test_pythagoras(name):
    """No law that meets the constraint is nearer, and the way there is the way to p_lambda plus the way from there."""
    constraint, program = make(*CONSTRAINTS[name])
    constraint.fit(program, engine=Enumeration())
    log_p, phi, mu = enumerated(program, constraint)
    weights = torch.tensor([w.value for w in constraint.fitted.weights.values()], dtype=torch.float64)
    nearest, g = tilted(log_p, phi, mu, weights), (phi - mu).nan_to_num(0.0)
    for _ in range(20):
        other = (log_p + torch.randn_like(log_p)).log_softmax(0)
        q = (other + g @ solve(g, other)).log_softmax(0)
        torch.testing.assert_close(means(q, phi), mu, rtol=1e-9, atol=0)
        total = kl_divergence(q, nearest) + kl_divergence(nearest, log_p)
        assert float(kl_divergence(q, log_p)) == pytest.approx(float(total), abs=1e-9)


def test_a_posterior_that_has_the_constraint_is_a_pool_too():
    """Its factors are taken back first, so that a fit can be repeated from wherever one is."""
    constraint, program = make(*CONSTRAINTS["two"])
    constraint.fit(program, engine=ImportanceSampling(200, 1))
    rough, seen = constraint.fitted, Enumeration().run(program)
    exact = make(*CONSTRAINTS["two"])[0]
    exact.features = constraint.features
    constraint.fit(program, pool=seen)
    again = constraint.fitted
    constraint.fit(program, engine=Enumeration())
    for name in constraint.targets:
        assert again.weights[name].value == pytest.approx(constraint.fitted.weights[name].value, rel=1e-9)
        assert abs(rough.weights[name].value / again.weights[name].value - 1) > 1e-4


def test_a_pool_without_the_features_is_asked_for_them():
    constraint = moment_constraint({"she": says_she}, {"she": 0.4})

    def plain():
        reward("short", lambda texts: [-len(text) for text in texts], completion("x", MESSAGES, "", 3), beta=9)

    def program():
        x = completion("x", MESSAGES, "", 3)
        reward("short", lambda texts: [-len(text) for text in texts], x, beta=9)
        constraint(x)

    SMC(8).run(program)  # which fits lambda, roughly
    constraint.fit(pool=Enumeration().run(plain))
    assert Enumeration().run(program).mean("she").value == pytest.approx(0.4, abs=1e-12)


# -- by engines -------------------------------------------------------------------------------------------------

ENGINES = {
    "importance": ImportanceSampling(64),
    "smc": SMC(64, twist="prefix", ess_threshold=0.9),
    "svi": SVI(num_steps=3, num_particles=64, learning_rate=0.1),
    "rejection": Rejection(8, max_draws=1_000_000),
    "exact": Enumeration(),
}
each_engine = pytest.mark.parametrize("engine", ENGINES)


@each_engine
def test_the_contract_of_engines(engine):
    constraint, program = make(
        *CONSTRAINTS["two"], rewarded=engine != "rejection"
    )  # which would accept one draw in a hundred
    constraint.fit(program, engine=Enumeration())
    report = contract_of(ENGINES[engine], {"two constraints": program}, seed=SEED, num_replicates=150)
    report.raise_if_failed()
    assert "refused" not in str(report).replace("0 refused", "")


@each_engine
@pytest.mark.parametrize("name", ["two", "where it applies", "rare"])
def test_every_engine_meets_the_constraint(engine, name):
    constraint, program = make(*CONSTRAINTS[name], rewarded=engine != "rejection")
    constraint.fit(program, engine=Enumeration())
    wide = ENGINES[engine]
    if engine != "exact":
        wide = dataclasses.replace(wide, num_replicates=64)
    seen = wide.run(program, seed=SEED)
    for feature, target in constraint.targets.items():
        value, error = seen.mean(feature)
        assert abs(value - target) <= Z * error + 1e-9
        assert error < 0.1 * abs(seen.rewards[feature].nan_to_num(0.0)).max()


@pytest.mark.parametrize("name", ["one", "rare", "nearly so"])
def test_the_largest_factor_is_known(name):
    """Rejection trusts it; a feature of two values reaches it."""
    constraint, program = make(*CONSTRAINTS[name])
    constraint.fit(program, engine=Enumeration())
    tokens = Enumeration().run(program).particles["x"].tokens[0]
    execution = Program(program).run(Particles(len(tokens), {"x": tokens}), draw=False)
    (feature,) = constraint.targets
    assert execution.log_upper[feature] == pytest.approx(float(execution.factors[feature].max()), abs=1e-12)


# -- from draws -------------------------------------------------------------------------------------------------

POOLS = {
    "prior": ImportanceSampling(400, 1),
    "weighted": ImportanceSampling(300, 4, proposal=lambda rows: (0.7 * rows.log_probs).log_softmax(-1)),
    "smc": SMC(50, num_replicates=16, twist="prefix", ess_threshold=0.9),
}


@pytest.mark.parametrize(
    ("name", "pool"),
    [
        ("one", "prior"),
        ("two", "prior"),
        ("where it applies", "weighted"),
        ("nearly so", "weighted"),
        ("two", "weighted"),
        pytest.param("two", "smc", marks=pytest.mark.statistical),
    ],
)
def test_errors_are_as_large_as_they_say(name, pool):
    constraint, program = make(*CONSTRAINTS[name])
    exact = constraint.fit(program, engine=Enumeration()).fitted
    runs = [constraint.fit(program, engine=POOLS[pool]).fitted for constraint.seed in range(SEED, SEED + 40)]
    for feature in constraint.targets:
        z = [
            (run.weights[feature].value - exact.weights[feature].value) / run.weights[feature].standard_error
            for run in runs
        ]
        z = torch.tensor(z)
        assert abs(float(z.mean())) < Z / math.sqrt(len(z)) + 0.2  # a bias of a fifth of its error, at most
        assert 0.75 < float(z.std()) < 1.35
    kl = torch.tensor([(run.kl.value - exact.kl.value) / run.kl.standard_error for run in runs])
    assert abs(float(kl.mean())) < Z / math.sqrt(len(kl)) + 0.3
    assert float(kl.std()) < 1.4
    assert float(kl.std()) > 0.7 or name == "nearly so", "where the KL is all but 0, its error is on the safe side"


def test_it_fits_itself_and_leaves_the_run_alone():
    constraint, program = make(*CONSTRAINTS["one"], num_pool=300)
    before = torch.get_rng_state()
    first = ImportanceSampling(32).run(program, seed=5)
    assert torch.equal(before, torch.get_rng_state())
    fitted = constraint.fitted
    second = ImportanceSampling(32).run(program, seed=5)
    assert constraint.fitted is fitted, "once for each program"
    assert torch.equal(first.particles["x"].tokens, second.particles["x"].tokens)
    assert torch.equal(first.log_weight, second.log_weight)
    assert first.cost.reward_calls > second.cost.reward_calls + 300, "the pool is on the bill of who needed it"
    assert fitted.num_draws == 300
    again, program = make(*CONSTRAINTS["one"], num_pool=300)
    SMC(8).run(program, seed=17)
    assert again.fitted.weights == fitted.weights, "whoever comes first, and with whatever seed"
    other, program = make(*CONSTRAINTS["one"], num_pool=300, seed=1)
    SMC(8).run(program, seed=17)
    assert other.fitted.weights != fitted.weights


def test_the_pool_is_no_copy_of_a_run():
    """Same seed, another stream: what lambda was fitted on is no draw of the run that uses it."""
    constraint, program = make(*CONSTRAINTS["large units"], num_pool=64, rewarded=False)
    run = ImportanceSampling(64, 1).run(program, seed=0)
    assert constraint.fitted.before["score"].value != pytest.approx(float(run.rewards["score"].mean()), rel=1e-9)


def test_one_lambda_for_each_prompt():
    constraint, program = make(*CONSTRAINTS["one"])
    found = {}
    for prompt in ([0], [1]):
        Enumeration().run(program, prompt=tuple(prompt))
        found[tuple(prompt)] = constraint.fitted
    Enumeration().run(program, (0,))
    assert constraint.fitted is found[0,], "given by position or by name, or not at all"
    Enumeration().run(program)
    assert constraint.fitted is found[0,]
    assert found[0,].weights != found[1,].weights
    for prompt in found:
        log_p, phi, mu = enumerated(program, constraint, prompt)
        constraint.fit(program, prompt, engine=Enumeration())
        law = tilted(log_p, phi, mu, torch.tensor([constraint.fitted.weights["one"].value], dtype=torch.float64))
        assert float(means(law, phi)) == pytest.approx(0.7, abs=1e-10)


def test_latents_upstream_belong_to_what_is_tilted():
    constraint = moment_constraint({"first": FIRST}, {"first": 0.8})

    def program():
        z = pyro.sample("z", dist.Categorical(torch.tensor([0.3, 0.7])))
        x = completion("x", FIXED, torch.stack([torch.ones_like(z), z], -1), max_new_tokens=3)
        constraint(x)

    report = check_engine(SMC(64, twist="prefix"), {"upstream": program}, seed=SEED, num_replicates=50)
    report.raise_if_failed()
    constraint.fit(program, engine=Enumeration())
    seen = Enumeration().run(program)
    assert seen.mean("first").value == pytest.approx(0.8, abs=1e-10)
    assert abs(seen.mean("z").value - 0.7) > 0.01, "the latent is tilted along"


def test_a_text_feature_in_a_program_with_choices():
    constraint = moment_constraint({"she": says_she}, {"she": 0.5}, num_pool=4000)

    def program():
        z = pyro.sample("z", dist.Categorical(torch.tensor([0.3, 0.7])))
        constraint(completion("x", MESSAGES, choose(z, ["he ", "she "]), max_new_tokens=3))

    value = Enumeration().run(program).mean("she").value
    assert abs(value - 0.5) < Z * constraint.fitted.after["she"].standard_error
    assert constraint.fitted.after["she"].value == pytest.approx(0.5, abs=1e-10)


def test_the_target_is_shown_beside_what_was_reached(tmp_path):
    _, program = make(*CONSTRAINTS["one"])
    run = ImportanceSampling(200).run(program)
    assert run.targets == {"one": 0.7}
    again = Posterior.load(run.save(tmp_path / "run.nc"))
    shown = str(compare({"a": run, "b": again, "c": Rejection(8).run(program)}))
    assert "E[one] → 0.7" in shown
    assert "E[r]" in shown
    assert "E[r] →" not in shown


def test_few_effective_draws_are_said():
    _, program = make({"score": SCORE}, {"score": 2650.0}, num_pool=400)
    with pytest.warns(UserWarning, match="effective draws of 400 carry the fit"):
        ImportanceSampling(8).run(program)
