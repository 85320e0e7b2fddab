"""Moment constraints in plain Pyro and by hand, and what they refuse."""

from __future__ import annotations

import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from toys.moments import CONSTRAINTS, FIRST, MESSAGES, ONE, Feature, make, says_she

from ppl_align import SMC, Enumeration, ImportanceSampling, completion, moment_constraint
from ppl_align.core.errors import InputError, RewardError
from ppl_align.program import Program
from ppl_align.program.sketch import sketch
from ppl_align.testing.programs import EOS

# -- in and out of inference --------------------------------------------------------------------------------------


def test_a_sketch_fits_nothing():
    constraint, program = make(*CONSTRAINTS["one"])
    assert sketch(Program(program)).stopped is None
    assert constraint.fitted is None


def test_plain_pyro_after_a_fit():
    constraint, program = make(*CONSTRAINTS["one"])
    with pytest.raises(InputError, match=r"fit it first, constraint.fit\(model\)"):
        poutine.trace(program).get_trace()
    weight = constraint.fit(program).fitted.weights["one"].value
    node = poutine.trace(program).get_trace().nodes["one"]
    phi = node["infer"]["ppl_align"].reward
    torch.testing.assert_close(node["fn"].log_prob(node["value"]), weight * (phi - 0.7))


def test_by_hand_it_says_what_the_features_are():
    constraint = moment_constraint({"she": says_she}, {"she": 0.5})
    assert constraint("she is")["she"] == 1.0
    assert constraint.fitted is None


def test_it_prints_what_was_reached():
    constraint, program = make(*CONSTRAINTS["two"])
    assert repr(constraint) == "MomentConstraint(E[one] = 0.6, E[score] = 500)"
    lines = repr(constraint.fit(program)).splitlines()
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
    "nowhere": ({"none": Feature(lambda ids: None)}, {"none": 0}, "applies to none"),
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
@pytest.mark.parametrize("engine", [Enumeration(), ImportanceSampling(500, 1)], ids=["exact", "draws"])
def test_what_cannot_be_met_is_said(name, engine):
    features, targets, line = REFUSED[name]
    constraint, program = make(features, targets)
    with pytest.raises(InputError, match=line) as raised:
        constraint.fit(program, engine=engine)
    assert "\n" not in str(raised.value)
    with pytest.raises(InputError, match=line):
        SMC(8).run(program)
    assert constraint.fitted is None


def test_a_target_barely_inside():
    """Feasible is feasible, however far out: one law in a million has it."""
    constraint, program = make({"one": ONE}, {"one": 1 - 1e-6})
    constraint.fit(program, engine=Enumeration())
    assert Enumeration().run(program).mean("one").value == pytest.approx(1 - 1e-6, abs=1e-12)


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
    constraint, program = make(*CONSTRAINTS["one"])
    with pytest.raises(InputError, match="num_pool must be"):
        moment_constraint({"one": ONE}, {"one": 0.5}, num_pool=1)
    with pytest.raises(InputError, match="takes a model"):
        constraint.fit()
    with pytest.raises(InputError, match="not both"):
        constraint.fit(program, engine=Enumeration(), pool=Enumeration().run(program))
    with pytest.raises(InputError, match="does not use this constraint"):
        constraint.fit(make(*CONSTRAINTS["rare"])[1])
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
        make(*CONSTRAINTS["one"])[0].fit(pool=ImportanceSampling(8).run(two))


def test_inside_a_plate_it_is_refused():
    constraint = moment_constraint({"she": says_she}, {"she": 0.5})

    def program():
        with pyro.plate("two", 2):
            constraint(completion("x", MESSAGES, "", 3))

    with pytest.raises(InputError, match="inside of a plate"):
        constraint.fit(program)

    def beside():
        with pyro.plate("two", 2):
            pyro.sample("z", dist.Bernoulli(0.3))
        constraint(completion("x", MESSAGES, "", 3))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        constraint.fit(beside)
    assert constraint.fitted.after["she"].value == pytest.approx(0.5, abs=1e-9)
