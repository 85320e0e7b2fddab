"""Names that were: the same objects until 0.3.0, with a word of what they are called now."""

from __future__ import annotations

import importlib

import pytest

import ppl_align
from ppl_align.core.estimate import Estimate
from ppl_align.posterior.optimism import Optimism

OLD = {
    "ppl_align": {
        "Exact": "Enumeration",
        "Nested": "TreePlanner",
        "Conditional": "ConditionalSMC",
        "Length": "LengthLimit",
    },
    "ppl_align.engines": {"Exact": "Enumeration", "Nested": "TreePlanner", "Conditional": "ConditionalSMC"},
    "ppl_align.constraints": {"Length": "LengthLimit", "Reader": "Matcher", "AutomatonReader": "AutomatonMatcher"},
    "ppl_align.lints": {"Glance": "PriorSample"},
    "ppl_align.program": {"Execution": "Particles"},
    "ppl_align.constraints.base": {"Reader": "Matcher"},
    "ppl_align.rewards": {"Length": "LengthReward"},
}


@pytest.mark.parametrize(("module", "old", "new"), [(m, o, n) for m, names in OLD.items() for o, n in names.items()])
def test_an_old_name_is_the_same_class(module, old, new):
    found = importlib.import_module(module)
    with pytest.warns(DeprecationWarning, match=rf"{old} is now called {new}; the old name goes with 0\.3\.0"):
        same = getattr(found, old)
    assert same is getattr(found, new)


def test_a_name_that_never_was_is_an_attribute_error():
    with pytest.raises(AttributeError, match="Exakt"):
        ppl_align.Exakt


@pytest.mark.parametrize(
    ("cls", "name"), [("Enumeration", "exact"), ("TreePlanner", "nested"), ("ConditionalSMC", "conditional")]
)
def test_names_of_engines_which_salt_seeds_and_stand_in_files_stay(cls, name):
    assert getattr(ppl_align, cls).name == name


def test_fields_of_optimism():
    found = Optimism(("o",), Estimate(0.5, 0.0), "exact", {"r": Estimate(1.0, 0.0)}, {"r": Estimate(0.3, 0.1)})
    for old, new in {"tilt": "environment_tilt", "believes": "posterior_mean", "gets": "executed_mean"}.items():
        with pytest.warns(DeprecationWarning, match=f"{old} is now called {new}"):
            assert getattr(found, old) is getattr(found, new)
    assert Optimism.from_json(found.to_json()) == found
    assert '"believes"' in found.to_json(), "files keep the names that they have had"
    with pytest.raises(AttributeError):
        found.luck
