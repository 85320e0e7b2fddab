"""What is told of a run is computed once, and anew when somebody changes the run."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
from toys.synthetic import importance

from ppl_align import compare
from ppl_align.posterior import evidence
from ppl_align.posterior.once import forget, once
from ppl_align.posterior.run_summary import summary_of


def counted() -> tuple[list[object], object]:
    """Where calls are noted, and a function of a run that notes them."""
    calls: list[object] = []

    @once
    def told(run: object, more: int = 0) -> float:
        calls.append((run, more))
        return float(len(calls))

    return calls, told


def test_once_for_each_run_and_each_argument() -> None:
    calls, told = counted()
    a, b = SimpleNamespace(), SimpleNamespace()
    assert [told(a), told(a), told(b), told(a, 1), told(a, more=1), told(a, 1)] == [1, 1, 2, 3, 4, 3]
    assert len(calls) == 4
    forget(a)
    assert [told(a), told(b)] == [5, 2]


def test_runs_that_are_gone_lend_nobody_their_answers() -> None:
    _, told = counted()
    assert len({told(SimpleNamespace()) for _ in range(100)}) == 100


def test_nothing_is_kept_after_an_error() -> None:
    calls: list[int] = []

    @once
    def fails(run: object) -> float:
        calls.append(1)
        raise KeyError

    a = SimpleNamespace()
    for _ in range(2):
        with pytest.raises(KeyError):
            fails(a)
    assert len(calls) == 2


def test_what_is_kept_goes_into_no_copy_and_no_file() -> None:
    run = importance()
    evidence.log_z(run)
    assert "_told" not in replace(run).__dict__
    assert "_told" not in run.__getstate__()
    changed = replace(run, log_weight=run.log_weight + 1)
    assert evidence.log_z(changed).value == pytest.approx(evidence.log_z(run).value + 1)


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
    assert row["largest_weight"] == float(run.importance_weights.largest.mean())
    told = summary_of(run)
    assert told is summary_of(run)
    assert row["log_evidence"] == told.log_z.value
