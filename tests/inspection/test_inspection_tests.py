"""``inspect`` on programs with constraints that are tests of text, against enumeration."""

from __future__ import annotations

import pytest
from conftest import SEED
from toys.predicates import PROGRAMS

from ppl_align import Enumeration, inspect


@pytest.mark.parametrize("name", ["without_bb", "and_regex", "second_site", "at_the_end"])
def test_the_target_is_what_enumeration_says(name):
    exact = Enumeration().run(PROGRAMS[name])
    seen = inspect(PROGRAMS[name], num_draws=2000, num_prefixes=8, num_continuations=8, seed=SEED)
    estimate = seen.written.log_evidence
    assert estimate.standard_error < 0.1
    assert abs(estimate.value - float(exact.log_evidence)) < 4 * estimate.standard_error
    assert seen.profile is not None
    assert seen.pool.confined == (name != "at_the_end")
    if name == "without_bb":
        assert "draws from within 'calm'" in str(seen)
        assert bool(seen.pool.psi.isfinite().all())
        assert "no: nothing keeps a guide to a test of text" in " ".join(str(seen).split())
