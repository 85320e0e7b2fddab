"""Moment constraints against enumeration: lambda, the tilted law, what every engine makes of it, and refusals."""

from __future__ import annotations

import dataclasses
import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import SEED
from pyro import poutine
from scipy.optimize import brentq

from ppl_align import (
    SMC,
    SVI,
    Exact,
    ImportanceSampling,
    Posterior,
    Rejection,
    choose,
    compare,
    completion,
    moment_constraint,
    reward,
)
from ppl_align.errors import InputError, RewardError
from ppl_align.lm import MarkovLM
from ppl_align.moments.solve import solve
from ppl_align.program import Program
from ppl_align.program.sketch import sketch
from ppl_align.testing import Oracle, check_engine, kl_divergence
from ppl_align.testing.programs import EOS, FIXED, LADDER
from ppl_align.testing.statistics import bonferroni_z

Z = bonferroni_z(30)  # the statistical comparisons of this file


class Feature:
    """A function of a list of ids (EOS included), with bounds, as Rejection wants them; None: does not apply."""

    def __init__(self, fn, lower=0.0, upper=1.0):
        self.fn, self.lower, self.upper = fn, lower, upper

    def __call__(self, completion_ids, **_):
        return [None if (value := self.fn(ids)) is None else float(value) for ids in completion_ids]


ONE = Feature(lambda ids: 1 in ids)
FIRST = Feature(lambda ids: ids[:1] == [0])
SCORE = Feature(lambda ids: 1000 * sum(LADDER[ids]), -2800.0, 3600.0)
WHERE = Feature(lambda ids: ids[0] == 1 if 1 in ids else None)
"""Of the texts that have a 1: does it begin with it?"""

MESSAGES = MarkovLM(
    torch.tensor([[0.2, 1.0, -0.4], [0.6, -0.3, 0.5], [0.0, 0.0, 0.0]], dtype=torch.float64),
    torch.tensor([0.8, -0.5, -0.9], dtype=torch.float64),
    eos_id=2,
    tokens=["he ", "she ", ""],
)


def says_she(texts):
    return [float("she" in text) if text else None for text in texts]


def make(features, targets, *, rewarded=True, **settings):
    """A constraint, and a program that it stands in."""
    wish = moment_constraint(features, targets, **settings)

    def program(prompt=(0,)):
        x = completion("x", EOS, list(prompt), max_new_tokens=4)
        if rewarded:
            reward("r", lambda t: 0.8 * (t == 0).sum(-1), x.tokens, upper=3.2)
        wish(x)

    return wish, program


WISHES = {
    "one": ({"one": ONE}, {"one": 0.7}),
    "rare": ({"first": FIRST}, {"first": 0.02}),
    "large units": ({"score": SCORE}, {"score": 900.0}),
    "where it applies": ({"where": WHERE}, {"where": 0.7}),
    "nearly so": ({"where": WHERE}, {"where": 0.25}),
    "two": ({"one": ONE, "score": SCORE}, {"one": 0.6, "score": 500.0}),
    "three": ({"one": ONE, "first": FIRST, "where": WHERE}, {"one": 0.75, "first": 0.4, "where": 0.6}),
}
each_wish = pytest.mark.parametrize("name", WISHES)


def enumerated(program, wish, *args):
    """(log p [S], phi [S, K], mu [K]) of the program without the constraint, by enumeration."""
    with wish._switched_off():
        oracle = Oracle(program, *args)
    phi = torch.stack([oracle.rewards[name] for name in wish.targets], -1)
    return oracle.log_target, phi, torch.tensor(list(wish.targets.values()), dtype=torch.float64)


def tilted(log_p, phi, mu, weights):
    return (log_p + (phi - mu).nan_to_num(0.0) @ weights).log_softmax(0)


def means(log_q, phi):
    applies = ~phi.isnan()
    q = log_q.exp()[:, None]
    return (q * phi.nan_to_num(0.0)).sum(0) / (q * applies).sum(0)


# -- exact ------------------------------------------------------------------------------------------------------


@each_wish
def test_a_fit_on_the_exact_posterior_is_exact(name):
    wish, program = make(*WISHES[name])
    wish.fit(program, engine=Exact())
    log_p, phi, mu = enumerated(program, wish)
    weights = torch.tensor([w.value for w in wish.fitted.weights.values()], dtype=torch.float64)
    law = tilted(log_p, phi, mu, weights)
    torch.testing.assert_close(means(law, phi), mu, rtol=1e-10, atol=0)
    assert wish.fitted.kl.value == pytest.approx(float(kl_divergence(law, log_p)), abs=1e-10)
    assert [e.standard_error for e in wish.fitted.weights.values()] == [0.0] * len(mu)
    for k, before in enumerate(wish.fitted.before.values()):
        assert before.value == pytest.approx(float(means(log_p, phi)[k]), abs=1e-12)
    seen = Exact().run(program)
    for target, feature in zip(mu.tolist(), wish.targets, strict=True):
        assert seen.mean(feature).value == pytest.approx(target, rel=1e-10)
        assert seen.scales[feature] == wish.fitted.weights[feature].value


def test_one_multiplier_by_bisection():
    wish, program = make(*WISHES["one"])
    log_p, phi, mu = enumerated(program, wish)
    expected = brentq(
        lambda w: float(means(tilted(log_p, phi, mu, torch.tensor([w], dtype=mu.dtype)), phi)) - 0.7, -9, 9, xtol=1e-14
    )
    share = float(means(log_p, phi))
    assert expected == pytest.approx(math.log(0.7 / 0.3) - math.log(share / (1 - share)), abs=1e-9)
    assert wish.fit(program, engine=Exact()).fitted.weights["one"].value == pytest.approx(expected, abs=1e-9)


@each_wish
def test_the_evidence_falls_by_the_kl(name):
    wish, program = make(*WISHES[name])
    wish.fit(program, engine=Exact())
    with wish._switched_off():
        without = Exact().run(program).log_evidence
    drop = without - Exact().run(program).log_evidence
    assert float(drop) == pytest.approx(wish.fitted.kl.value, abs=1e-10)


@each_wish
def test_pythagoras(name):
    """No law that keeps the promise is nearer, and the way there is the way to p_lambda plus the way from there."""
    wish, program = make(*WISHES[name])
    wish.fit(program, engine=Exact())
    log_p, phi, mu = enumerated(program, wish)
    weights = torch.tensor([w.value for w in wish.fitted.weights.values()], dtype=torch.float64)
    nearest, g = tilted(log_p, phi, mu, weights), (phi - mu).nan_to_num(0.0)
    for _ in range(20):
        other = (log_p + torch.randn_like(log_p)).log_softmax(0)
        q = (other + g @ solve(g, other)).log_softmax(0)
        torch.testing.assert_close(means(q, phi), mu, rtol=1e-9, atol=0)
        total = kl_divergence(q, nearest) + kl_divergence(nearest, log_p)
        assert float(kl_divergence(q, log_p)) == pytest.approx(float(total), abs=1e-9)


def test_a_posterior_that_has_the_constraint_is_a_pool_too():
    """Its factors are taken back first, so that a fit can be repeated from wherever one is."""
    wish, program = make(*WISHES["two"])
    wish.fit(program, engine=ImportanceSampling(200, 1))
    rough, seen = wish.fitted, Exact().run(program)
    exact = make(*WISHES["two"])[0]
    exact.features = wish.features
    wish.fit(program, pool=seen)
    again = wish.fitted
    wish.fit(program, engine=Exact())
    for name in wish.targets:
        assert again.weights[name].value == pytest.approx(wish.fitted.weights[name].value, rel=1e-9)
        assert abs(rough.weights[name].value / again.weights[name].value - 1) > 1e-4


def test_a_pool_without_the_features_is_asked_for_them():
    wish = moment_constraint({"she": says_she}, {"she": 0.4})

    def plain():
        reward("short", lambda texts: [-len(text) for text in texts], completion("x", MESSAGES, "", 3), beta=9)

    def program():
        x = completion("x", MESSAGES, "", 3)
        reward("short", lambda texts: [-len(text) for text in texts], x, beta=9)
        wish(x)

    SMC(8).run(program)  # which fits lambda, roughly
    wish.fit(pool=Exact().run(plain))
    assert Exact().run(program).mean("she").value == pytest.approx(0.4, abs=1e-12)


# -- by engines -------------------------------------------------------------------------------------------------

ENGINES = {
    "importance": ImportanceSampling(64),
    "smc": SMC(64, twist="prefix", ess_threshold=0.9),
    "svi": SVI(num_steps=3, num_particles=64, learning_rate=0.1),
    "rejection": Rejection(8, max_draws=1_000_000),
    "exact": Exact(),
}
each_engine = pytest.mark.parametrize("engine", ENGINES)


@each_engine
def test_the_contract_of_engines(engine):
    wish, program = make(*WISHES["two"], rewarded=engine != "rejection")  # which would accept one draw in a hundred
    wish.fit(program, engine=Exact())
    report = check_engine(ENGINES[engine], {"two wishes": program}, seed=SEED, num_replicates=150)
    report.raise_if_failed()
    assert "refused" not in str(report).replace("0 refused", "")


@each_engine
@pytest.mark.parametrize("name", ["two", "where it applies", "rare"])
def test_every_engine_keeps_the_promise(engine, name):
    wish, program = make(*WISHES[name], rewarded=engine != "rejection")
    wish.fit(program, engine=Exact())
    wide = ENGINES[engine]
    if engine != "exact":
        wide = dataclasses.replace(wide, num_replicates=64)
    seen = wide.run(program, seed=SEED)
    for feature, target in wish.targets.items():
        value, error = seen.mean(feature)
        assert abs(value - target) <= Z * error + 1e-9
        assert error < 0.1 * abs(seen.rewards[feature].nan_to_num(0.0)).max()


@pytest.mark.parametrize("name", ["one", "rare", "nearly so"])
def test_the_largest_factor_is_known(name):
    """Rejection trusts it; a feature of two values reaches it."""
    wish, program = make(*WISHES[name])
    wish.fit(program, engine=Exact())
    tokens = Exact().run(program).particles["x"].tokens[0]
    execution = Program(program, (), {}, len(tokens)).run({"x": tokens}, draw=False)
    (feature,) = wish.targets
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
        ("two", "smc"),
    ],
)
def test_errors_are_as_large_as_they_say(name, pool):
    wish, program = make(*WISHES[name])
    exact = wish.fit(program, engine=Exact()).fitted
    runs = [wish.fit(program, engine=POOLS[pool]).fitted for wish.seed in range(SEED, SEED + 40)]
    for feature in wish.targets:
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
    wish, program = make(*WISHES["one"], num_pool=300)
    before = torch.get_rng_state()
    first = ImportanceSampling(32).run(program, seed=5)
    assert torch.equal(before, torch.get_rng_state())
    fitted = wish.fitted
    second = ImportanceSampling(32).run(program, seed=5)
    assert wish.fitted is fitted, "once for each program"
    assert torch.equal(first.particles["x"].tokens, second.particles["x"].tokens)
    assert torch.equal(first.log_weight, second.log_weight)
    assert first.cost.reward_calls > second.cost.reward_calls + 300, "the pool is on the bill of who needed it"
    assert fitted.num_draws == 300
    again, program = make(*WISHES["one"], num_pool=300)
    SMC(8).run(program, seed=17)
    assert again.fitted.weights == fitted.weights, "whoever comes first, and with whatever seed"
    other, program = make(*WISHES["one"], num_pool=300, seed=1)
    SMC(8).run(program, seed=17)
    assert other.fitted.weights != fitted.weights


def test_the_pool_is_no_copy_of_a_run():
    """Same seed, another stream: what lambda was fitted on is no draw of the run that uses it."""
    wish, program = make(*WISHES["large units"], num_pool=64, rewarded=False)
    run = ImportanceSampling(64, 1).run(program, seed=0)
    assert wish.fitted.before["score"].value != pytest.approx(float(run.rewards["score"].mean()), rel=1e-9)


def test_one_lambda_for_each_prompt():
    wish, program = make(*WISHES["one"])
    found = {}
    for prompt in ([0], [1]):
        Exact().run(program, prompt=tuple(prompt))
        found[tuple(prompt)] = wish.fitted
    Exact().run(program, (0,))
    assert wish.fitted is found[0,], "given by position or by name, or not at all"
    Exact().run(program)
    assert wish.fitted is found[0,]
    assert found[0,].weights != found[1,].weights
    for prompt in found:
        log_p, phi, mu = enumerated(program, wish, prompt)
        wish.fit(program, prompt, engine=Exact())
        law = tilted(log_p, phi, mu, torch.tensor([wish.fitted.weights["one"].value], dtype=torch.float64))
        assert float(means(law, phi)) == pytest.approx(0.7, abs=1e-10)


def test_latents_upstream_belong_to_what_is_tilted():
    wish = moment_constraint({"first": FIRST}, {"first": 0.8})

    def program():
        z = pyro.sample("z", dist.Categorical(torch.tensor([0.3, 0.7])))
        x = completion("x", FIXED, torch.stack([torch.ones_like(z), z], -1), max_new_tokens=3)
        wish(x)

    report = check_engine(SMC(64, twist="prefix"), {"upstream": program}, seed=SEED, num_replicates=50)
    report.raise_if_failed()
    wish.fit(program, engine=Exact())
    seen = Exact().run(program)
    assert seen.mean("first").value == pytest.approx(0.8, abs=1e-10)
    assert abs(seen.mean("z").value - 0.7) > 0.01, "the latent is tilted along"


def test_a_text_feature_in_a_program_with_choices():
    wish = moment_constraint({"she": says_she}, {"she": 0.5}, num_pool=4000)

    def program():
        z = pyro.sample("z", dist.Categorical(torch.tensor([0.3, 0.7])))
        wish(completion("x", MESSAGES, choose(z, ["he ", "she "]), max_new_tokens=3))

    value = Exact().run(program).mean("she").value
    assert abs(value - 0.5) < Z * wish.fitted.after["she"].standard_error
    assert wish.fitted.after["she"].value == pytest.approx(0.5, abs=1e-10)


def test_the_promise_is_shown_beside_what_was_reached(tmp_path):
    _, program = make(*WISHES["one"])
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


# -- in and out of inference --------------------------------------------------------------------------------------


def test_a_sketch_fits_nothing():
    wish, program = make(*WISHES["one"])
    assert sketch(Program(program, (), {}, 4)).stopped is None
    assert wish.fitted is None


def test_plain_pyro_after_a_fit():
    wish, program = make(*WISHES["one"])
    with pytest.raises(InputError, match=r"fit it first, constraint.fit\(model\)"):
        poutine.trace(program).get_trace()
    weight = wish.fit(program).fitted.weights["one"].value
    node = poutine.trace(program).get_trace().nodes["one"]
    phi = node["infer"]["ppl_align"]["reward"]
    torch.testing.assert_close(node["fn"].log_prob(node["value"]), weight * (phi - 0.7))


def test_by_hand_it_says_what_the_features_are():
    wish = moment_constraint({"she": says_she}, {"she": 0.5})
    assert wish("she is")["she"] == 1.0
    assert wish.fitted is None


def test_it_prints_what_was_reached():
    wish, program = make(*WISHES["two"])
    assert repr(wish) == "MomentConstraint(E[one] = 0.6, E[score] = 500)"
    lines = repr(wish.fit(program)).splitlines()
    assert lines[1].split() == ["feature", "before", "wanted", "after", "lambda"]
    assert "0.6" in lines[2]
    assert "effective of 512 draws, importance of program" in lines[4]


# -- refusals -------------------------------------------------------------------------------------------------------

NEVER = Feature(lambda ids: 9 in ids)
NOT_ONE = Feature(lambda ids: 1 - 2 * (1 in ids), -1.0)
REFUSED = {
    "never seen": ({"never": NEVER}, {"never": 0.5}, r"it is 0 in all .*draw a larger one \(num_pool=\)"),
    "certainty": ({"one": ONE}, {"one": 1.0}, "no draw of the pool goes above, so lambda would be infinite.*condition"),
    "impossibility": ({"one": ONE}, {"one": 0}, "no draw of the pool goes below, so lambda would be infinite"),
    "out of range": ({"one": ONE}, {"one": 1.5}, "it goes from 0 to 1 in the"),
    "nothing to do": ({"never": NEVER}, {"never": 0}, "there is nothing to fit"),
    "nowhere": ({"x": Feature(lambda ids: None)}, {"x": 0}, "applies to none"),
    "tied": ({"one": ONE, "not": NOT_ONE}, {"one": 0.5, "not": 0.0}, "'one' and 'not' say the same of every draw"),
    "tied and at odds": ({"one": ONE, "not": NOT_ONE}, {"one": 0.5, "not": 0.3}, "say the same of every draw"),
    "at the edge": (  # a text that begins with a 1 has one: then no other text may have one
        {"one": ONE, "starts": Feature(lambda ids: ids[:1] == [1])},
        {"one": 0.5, "starts": 0.5},
        "cannot all be met",
    ),
    "at odds": (
        {"one": ONE, "starts": Feature(lambda ids: ids[:1] == [1]), "first": FIRST},
        {"one": 0.3, "starts": 0.6, "first": 0.3},
        r"E\[one\] = 0.3, E\[starts\] = 0.6, E\[first\] = 0.3 cannot all be met",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("engine", [Exact(), ImportanceSampling(500, 1)], ids=["exact", "draws"])
def test_what_cannot_be_met_is_said(name, engine):
    features, targets, line = REFUSED[name]
    wish, program = make(features, targets)
    with pytest.raises(InputError, match=line) as raised:
        wish.fit(program, engine=engine)
    assert "\n" not in str(raised.value)
    with pytest.raises(InputError, match=line):
        SMC(8).run(program)
    assert wish.fitted is None


def test_a_target_barely_inside():
    """Feasible is feasible, however far out: one law in a million has it."""
    wish, program = make({"one": ONE}, {"one": 1 - 1e-6})
    wish.fit(program, engine=Exact())
    assert Exact().run(program).mean("one").value == pytest.approx(1 - 1e-6, abs=1e-12)


@pytest.mark.parametrize(
    ("features", "targets", "line"),
    [
        ({}, {}, "there are none"),
        ({"a": len}, {"b": 1}, "only one of them has 'a', 'b'"),
        ({"a": len}, {"a": "half"}, "must be a finite number, got 'half'"),
        ({"a": len}, {"a": math.inf}, "must be a finite number"),
        ({"a": 3}, {"a": 0.5}, "a reward is a function"),
    ],
)
def test_what_makes_no_constraint(features, targets, line):
    with pytest.raises(InputError, match=line):
        moment_constraint(features, targets)


def test_other_misuse():
    wish, program = make(*WISHES["one"])
    with pytest.raises(InputError, match="num_pool must be"):
        moment_constraint({"one": ONE}, {"one": 0.5}, num_pool=1)
    with pytest.raises(InputError, match="takes a model"):
        wish.fit()
    with pytest.raises(InputError, match="not both"):
        wish.fit(program, engine=Exact(), pool=Exact().run(program))
    with pytest.raises(InputError, match="does not use this constraint"):
        wish.fit(make(*WISHES["rare"])[1])
    infinite, program = make(
        {"one": Feature(lambda ids: -math.inf if 1 in ids else 0, upper=None, lower=None)}, {"one": 0.5}
    )
    with pytest.raises(RewardError, match="a mean needs finite values"):
        infinite.fit(program)


def test_a_pool_of_two_completions_is_ambiguous():
    def two():
        completion("a", EOS, [0], 2)
        completion("b", EOS, [0], 2)

    with pytest.raises(InputError, match=r"not one completion to read it from \(a, b\)"):
        make(*WISHES["one"])[0].fit(pool=ImportanceSampling(8).run(two))


def test_inside_a_plate_it_is_refused():
    wish = moment_constraint({"she": says_she}, {"she": 0.5})

    def program():
        with pyro.plate("two", 2):
            wish(completion("x", MESSAGES, "", 3))

    with pytest.raises(InputError, match="inside of a plate"):
        wish.fit(program)

    def beside():
        with pyro.plate("two", 2):
            pyro.sample("z", dist.Bernoulli(0.3))
        wish(completion("x", MESSAGES, "", 3))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wish.fit(beside)
    assert wish.fitted.after["she"].value == pytest.approx(0.5, abs=1e-9)
