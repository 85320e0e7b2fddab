"""What is told of a run is computed once within ``told_once``, and anew outside it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from synthetic import importance

from ppl_align import compare
from ppl_align.diagnostics import evidence
from ppl_align.posterior import weights
from ppl_align.posterior.once import once, told_once


def counted() -> tuple[list[object], object]:
    """Where calls are noted, and a function of a run that notes them."""
    calls: list[object] = []

    @once
    def told(run: object, more: int = 0) -> float:
        calls.append((run, more))
        return float(len(calls))

    return calls, told


def test_once_inside_anew_outside() -> None:
    calls, told = counted()
    a, b = SimpleNamespace(), SimpleNamespace()
    assert [told(a), told(a)] == [1, 2]
    with told_once():
        assert [told(a), told(a), told(b), told(a, 1), told(a, more=1), told(a, 1)] == [3, 3, 4, 5, 6, 5]
        with told_once():  # within another, it is that one
            assert told(a) == 3
        assert told(b) == 4
    assert told(a) == 7
    assert len(calls) == 7


def test_runs_that_are_gone_lend_nobody_their_answers() -> None:
    _, told = counted()
    with told_once():
        assert len({told(SimpleNamespace()) for _ in range(100)}) == 100


def test_nothing_is_kept_after_an_error() -> None:
    calls, told = counted()
    a = SimpleNamespace()
    try:
        with told_once():
            told(a)
            raise KeyError
    except KeyError:
        told(a)
    assert len(calls) == 2


def test_a_run_that_changed_between_two_comparisons_is_told_anew() -> None:
    run = importance()
    before = compare([run])
    run.log_weight = run.log_weight + 1.0
    after = compare([run])
    assert after.table["log_evidence"].iloc[0] == pytest.approx(before.table["log_evidence"].iloc[0] + 1)
    assert evidence.log_z(run).value == pytest.approx(after.table["log_evidence"].iloc[0])


def test_a_comparison_says_what_is_said_of_each_run_alone() -> None:
    run = importance()
    row = compare([run]).table.iloc[0]
    assert (row["log_evidence"], row["se[log Z]"]) == tuple(evidence.log_z(run))
    assert (row["E[praise]"], row["se[praise]"]) == tuple(run.mean("praise"))
    assert row["largest_weight"] == weights.largest(run)
