"""Jobs some of whose rows fail: the others go on, and what may be mended is tried again."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from toys import jobs
from toys.jobs import RUN, delivered, digest, said, summaries


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return jobs.set_up(tmp_path, monkeypatch)


def test_a_row_that_fails_leaves_the_others_alone_and_is_tried_again(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said(capsys, *RUN, "--out", "whole")
    (here / "broken").write_text("4 10")
    out, _ = said(capsys, *RUN, "--out", "out", code=1)
    assert out.startswith("11 of 11 rows: ")
    assert "2 failed" in out
    flat = " ".join(out.split())
    assert "4 1 failed --data data.jsonl, row 4: reward 'wanted' raised ConnectionError: 503" in flat
    assert list(delivered(here / "out")["row"]) == [str(i) for i in range(11) if i not in (4, 10)]
    assert "ConnectionError" in (here / "out/report.html").read_text()
    assert "the same command tries 2 of the rows that failed again" in flat
    (here / "broken").unlink()
    (here / "asked.log").write_text("")
    _, err = said(capsys, *RUN, "--out", "out")
    assert "going on in out: 9 of 11 rows are there, 2 failed and are tried again" in err
    assert {int(digit) for digit in (here / "asked.log").read_text().split()} == {3, 4, 5, 9, 10}, "their groups"
    assert digest(here / "out") == digest(here / "whole")


def test_a_row_that_cannot_be_run_is_not_tried_again(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = (here / "data.jsonl").read_text().splitlines()
    lines[2] = '{"prompt": "1", "name": "no digit"}'
    (here / "data.jsonl").write_text("\n".join(lines) + "\n")
    out, _ = said(capsys, *RUN, "--out", "out", code=1)
    assert "asked.py needs a value for 'digit'" in " ".join(out.split())
    _, err = said(capsys, *RUN, "--out", "out", code=1)
    assert err.endswith("going on in out: 11 of 11 rows are there")


def test_where_all_rows_fail_there_are_no_tables(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "broken").write_text("0 1")
    out, _ = said(capsys, *RUN, "--out", "out", "--limit", "2", code=1)
    assert "completions.parquet" not in out
    assert not list((here / "out").glob("completions*"))
    (here / "broken").write_text("1")
    said(capsys, *RUN, "--out", "out", "--limit", "2", code=1)
    assert list(delivered(here / "out")["row"]) == ["0"]


def test_empty_cells_of_numbers_are_the_defaults(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = [argument if argument != "data.jsonl" else "data.csv" for argument in RUN]
    (here / "asked.py").write_text(jobs.MODEL.replace("d % 3", "int(d) % 3"))
    (here / "data.csv").write_text("prompt,digit,beta\n1,2,\n1,2,1.0\n1,2,0.1\n")
    said(capsys, *run, "--out", "csv", "--seed", "3")
    first, second, third = (row["rewards"]["wanted"][1] for row in summaries(here / "csv"))
    assert third > max(first, second)
    (here / "data.jsonl").write_text('{"prompt": "1", "digit": 2, "beta": null}\n{"prompt": "1", "digit": 2}\n')
    said(capsys, *RUN, "--out", "json", "--seed", "3")
    assert list(delivered(here / "json")["log_z"]) == list(delivered(here / "csv")["log_z"])[:2]
    (here / "data.csv").write_text("prompt,digit,beta\n1,,1\n")
    out, _ = said(capsys, *run, "--out", "none", code=1)
    assert "row 0" in out, "an argument without a default has no empty cells"


def test_an_engine_that_alone_found_nothing_is_named(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "refused.py").write_text(jobs.ENGINE.format("Rejection", "num_pilot=64, num_particles=64, max_draws=256"))
    (here / "asked.py").write_text(jobs.MODEL.replace("beta=beta,", "beta=beta, upper=3.0,"))
    out, _ = said(capsys, *RUN, "--engine", "refused.py", "--out", "out", "--limit", "2")
    assert "refused found nothing of 2 rows, which others did; row 0: " in " ".join(out.split())
    assert "max_draws=256" in out


def test_fail_fast_stops(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "broken").write_text("4")
    out, _ = said(capsys, *RUN, "--out", "out", "--fail-fast", code=1)
    assert out.startswith("6 of 11 rows")


def test_rewards_that_fail_for_a_moment_are_tried_again(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    flaky = jobs.MODEL.replace(
        '        raise ConnectionError("503")',
        """
        tries = Path("tries")
        tries.write_text(tries.read_text() + "x")
        if len(tries.read_text()) < 3:
            raise ConnectionError("503")""",
    )
    (here / "asked.py").write_text(flaky)
    (here / "broken").write_text("4")
    (here / "tries").write_text("")
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    said(capsys, *RUN, "--out", "out", "--retries", "2", "--rows", "4")
    assert pauses == [1.0, 2.0]
    assert (here / "tries").read_text().startswith("xxx")
    (here / "tries").write_text("")
    out, _ = said(capsys, *RUN, "--out", "once", "--retries", "1", "--rows", "4", code=1)
    assert "1 failed" in out
