"""What a report of a contract looks like."""

from __future__ import annotations

import pytest
from toys.broken_engines import ONE, TWO, TooMuchEvidence

from ppl_align.core.printed import say_z
from ppl_align.rewards import Vader
from ppl_align.testing import PROGRAMS, Report, check_engine, check_reward
from ppl_align.testing.checks import CHECKS
from ppl_align.testing.report import Result
from ppl_align.testing.statistics import say_p


def test_a_report_is_a_table_of_at_most_80_columns_and_its_reasons():
    report = check_engine(TooMuchEvidence(), {**ONE, **TWO})
    shown = str(report)
    assert max(map(len, shown.splitlines())) <= 80
    head, *rows = shown.splitlines()
    assert head.split() == ["program", "run", *CHECKS]
    assert rows[1].split() == ["with_eos", *["ok"] * 7, "FAIL", rows[1].split()[-1]]
    assert "=> contract of importance: " in shown
    assert "- with_eos (Zhat" in shown
    with pytest.raises(AssertionError, match=r"with_eos \(Zhat"):
        report.raise_if_failed()


def test_the_whole_contract_fits_into_80_columns():
    results = [
        Result(subject, check, "failed" if check == "Zhat" else "passed", "it does not")
        for subject in PROGRAMS
        for check in ("run", *CHECKS)
    ]
    shown = str(Report("contract of anything", results))
    assert max(map(len, shown.splitlines())) <= 80
    assert shown.count("program ") == 1, "one table"
    assert shown.count("it does not") == 1, "subjects with the same story share a line"
    assert "with_eos, fixed_length, whole_prefix and 13 more (Zhat): it does not" in " ".join(shown.split())


def test_a_report_about_one_thing_lists_its_checks_below_one_another():
    shown = str(check_reward(Vader()))
    assert shown.splitlines()[0].split() == ["check", "vader"]
    assert "=> contract of the reward vader: all 11 checks passed" in shown


def test_numbers_far_out_are_said_in_words():
    assert (say_p(0.0), say_p(1e-5)) == ("p < 1e-300", "p = 1.0e-05")
    assert (say_z(1301551933.4), say_z(99.96)) == ("over 100 standard errors", "100.0 standard errors")


def test_an_empty_report_is_no_pass():
    assert not Report("nothing", [])
