"""Jobs over data sets: what is delivered, how they go on, and what they refuse."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from conftest import SEED
from toys import jobs
from toys.jobs import RUN, delivered, digest, events, said

from ppl_align.core.seeds import mix
from ppl_align.jobs.job import Progress


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return jobs.set_up(tmp_path, monkeypatch)


# -- what is delivered ------------------------------------------------------------------------------------------------


def test_completions_with_every_column_of_the_data(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = [{"prompt": str(i % 3), "digit": i, "seed": i, "tags": [i]} for i in range(4)]
    (here / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in data))
    out, _ = said(capsys, *RUN, "--out", "out", "--draws", "3", "--seed", "7")
    assert out.startswith("4 of 4 rows: ")
    frame = delivered(here / "out")
    assert list(frame) == [
        *("data.prompt", "digit", "data.seed", "tags", "row", "engine", "draw", "prompt", "completion"),
        *("reward.wanted", "tokens", "finish_reason", "log_p0", "standing", "effective_draws"),
        *("log_z", "log_z_error", "seed"),
    ]
    assert len(frame) == 12
    assert list(frame["digit"]) == [i for i in range(4) for _ in range(3)]
    assert list(frame["draw"]) == [0, 1, 2] * 4
    assert list(frame["seed"]) == [mix(7, f"row {i}") for i in range(4) for _ in range(3)]
    for line in frame.to_dict("records"):
        words = line["completion"].split()
        assert line["reward.wanted"] == words.count(str(line["digit"] % 3))
        assert line["tokens"] == len(words) + (line["finish_reason"] == "stop")
        assert line["prompt"] == str(line["digit"] % 3)
        assert line["log_p0"] < 0
        assert not line["log_z_error"] <= 0  # or none can be stated
    again = pd.read_csv(here / "out/completions.csv", dtype={"data.prompt": str, "prompt": str, "row": str})
    assert list(again["completion"].astype(str)) == list(frame["completion"])
    assert list(again["tags"]) == [f"[{i}]" for i in range(4) for _ in range(3)]
    datasets = pytest.importorskip("datasets")
    loaded = datasets.load_dataset(
        "parquet", data_files=str(here / "out/completions.parquet"), cache_dir=str(here / "cache")
    )["train"]
    assert loaded["completion"][:] == list(frame["completion"])


def test_draws_are_of_equal_weight_and_from_the_best_run(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from ppl_align import Posterior

    run = [argument for argument in RUN if argument not in ("--keep", "none")]
    said(capsys, *run, "--engine", "steered.py", "--out", "out", "--draws", "400", "--limit", "2", "--all-runs")
    frame = delivered(here / "out")
    assert set(frame["engine"]) == {"sure", "steered"}
    for engine in ("sure", "steered"):
        posterior = Posterior.load(here / f"out/rows/01/{engine}.nc")
        drawn = frame[(frame["row"] == "1") & (frame["engine"] == engine)]["reward.wanted"]
        assert abs(drawn.mean() - posterior.mean("wanted").value) < 4.5 * drawn.std() / 20
    assert {p.name for p in (here / "out/rows/01").iterdir()} == {
        *("sure.nc", "steered.nc", "comparison.csv", "comparison.json", "report.html")
    }
    said(capsys, *run, "--engine", "steered.py", "--out", "best", "--limit", "2")
    assert len(delivered(here / "best")) == 2


def test_several_completions_latents_and_plates(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "asked.py").write_text(
        jobs.MODEL
        + """
import pyro


def dialogue(prompt):
    mood = pyro.sample("mood", pyro.distributions.Normal(0.0, 1.0))
    x = completion("x", _lm, prompt, max_new_tokens=3)
    with pyro.plate("two", 2):
        y = completion("y", _lm, (prompt, x), max_new_tokens=2)
    reward("likes", lambda m: m, mood)
"""
    )
    model = [argument if argument != "asked.py" else "asked.py:dialogue" for argument in RUN]
    (here / "data.jsonl").write_text('{"prompt": "1"}\n')
    said(capsys, *model, "--out", "out")
    (line,) = delivered(here / "out").to_dict("records")
    assert len(line["completion.y"].split("\n")) == 2
    assert line["latent.mood"] == line["reward.likes"]
    assert "completion.x" not in line


def test_the_page_and_the_end(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, err = said(capsys, *RUN, "--out", "out")
    assert "11/11 rows" in err
    assert len(out.splitlines()) <= 24, "it fits on a screen"
    assert "completions: out/completions.parquet, .csv; all rows: out/report.html" in out
    page = (here / "out/report.html").read_text()
    assert page.count("<tr data-standing=") == 11
    summary = json.loads(said(capsys, *RUN, "--out", "out", "--json")[0])
    assert sum(summary["standings"].values()) == 11
    assert [row["number"] for row in summary["rows"]] == list(range(11))


# -- it goes on -------------------------------------------------------------------------------------------------------


def test_the_same_command_goes_on_and_limits_do_not_matter(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said(capsys, *RUN, "--out", "whole")
    said(capsys, *RUN, "--out", "out", "--limit", "4")
    assert list(delivered(here / "out")["row"]) == ["0", "1", "2", "3"]
    said(capsys, *RUN, "--out", "out", "--rows", "9,5")
    assert list(delivered(here / "out")["row"]) == ["0", "1", "2", "3", "5", "9"], "what is done is delivered"
    _, err = said(capsys, *RUN, "--out", "out")
    assert "going on in out: 6 of 11 rows are there" in err
    assert digest(here / "out") == digest(here / "whole")
    assert said(capsys, *RUN, "--out", "out")[1].endswith("going on in out: 11 of 11 rows are there")
    for part in (("--limit", "1"), ("--rows", "9"), ("--shard", "2/3")):
        assert said(capsys, *RUN, "--out", "out", *part)[0].startswith("11 of 11 rows")
        assert digest(here / "out") == digest(here / "whole"), "nothing of it goes by asking for less"
    assert "--rows 11: no row of data.jsonl is called that" in said(capsys, *RUN, "--rows", "11", code=2)[1]


def test_keys_name_rows_and_give_them_their_random_numbers(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said(capsys, *RUN, "--key", "name", "--out", "out", "--rows", "r3")
    (line,) = delivered(here / "out").to_dict("records")
    assert (line["row"], line["seed"]) == ("r3", mix(0, "row r3"))
    lines = (here / "data.jsonl").read_text().splitlines()
    (here / "data.jsonl").write_text("\n".join(reversed(lines)) + "\n")
    said(capsys, *RUN, "--key", "name", "--out", "turned", "--rows", "r3")
    (other,) = delivered(here / "turned").to_dict("records")
    assert other["completion"] == line["completion"]
    (here / "data.jsonl").write_text(lines[0] + "\n" + lines[0] + "\n")
    assert "--key name: rows 0 and 1 are both called 'r0'" in said(capsys, *RUN, "--key", "name", code=2)[1]
    assert "no such column" in said(capsys, *RUN, "--key", "nam", code=2)[1]


@pytest.fixture
def killer(here: Path) -> Iterator[jobs.Killer]:
    found = jobs.Killer(*RUN, "--out", "first")
    yield found
    found.close()


def done(job: Path) -> set[int]:
    """The groups that are done, without a line that a kill has cut short."""
    ledger = job / "ledger.jsonl"
    whole = ledger.read_text().split("\n")[:-1] if ledger.exists() else []
    return {json.loads(line)["group"] for line in whole}


def test_killed_at_any_moment(here: Path, killer: jobs.Killer, capsys: pytest.CaptureFixture[str]) -> None:
    """kill -9 at 20 random moments: at most one group is done twice for each, and the bytes are the same."""
    killer.run(*RUN, "--out", "second")
    started = time.perf_counter()
    killer.run(*RUN, "--out", "whole")
    took = time.perf_counter() - started
    rng, finished = random.Random(SEED), 0
    for moment in range(20):
        (here / "asked.log").write_text("")
        job = here / f"out{moment // 5}"
        before = done(job)
        killed = killer.run(*RUN, "--out", job.name, seconds=rng.uniform(0.1, 0.6) * took)
        begun = {int(digit) // 3 for digit in (here / "asked.log").read_text().split()}
        after = done(job)
        assert not begun & before, "what is done is not done again"
        assert not killed or len(begun - after) <= 1, "only the group at work is lost"
        finished += len(after - before)
        if moment % 5 == 4:
            killer.run(*RUN, "--out", job.name)
            assert digest(job) == digest(here / "whole")
            assert {path.name for path in job.iterdir()} == {path.name for path in (here / "whole").iterdir()}
    assert finished > 4, "jobs were killed on the way, not before it"


def test_ctrl_c_keeps_what_is_done(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ppl_align import ImportanceSampling

    plain, calls = ImportanceSampling.run, 0

    def run(self: ImportanceSampling, *args: object, **options: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise KeyboardInterrupt
        return plain(self, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(ImportanceSampling, "run", run)
    out, err = said(capsys, *RUN, "--out", "out", code=130)
    assert "interrupted: 3 of 11 rows are there; the same command goes on" in err
    assert out.startswith("3 of 11 rows")
    assert list(delivered(here / "out")["row"]) == ["0", "1", "2"]
    said(capsys, *RUN, "--out", "out")
    said(capsys, *RUN, "--out", "whole")
    assert digest(here / "out") == digest(here / "whole")


def test_a_full_disk_ends_it_and_it_goes_on(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow.parquet

    plain, calls = pyarrow.parquet.write_table, 0

    def write(table: object, path: Path, **options: object) -> None:
        nonlocal calls
        calls += 1
        Path(path).write_bytes(b"half")
        if calls == 2:
            raise OSError(28, "No space left on device")
        plain(table, path, **options)

    monkeypatch.setattr(pyarrow.parquet, "write_table", write)
    _, err = said(capsys, *RUN, "--out", "out", code=1)
    assert err.endswith("No space left on device")
    assert len(events(here / "out")) == 1
    said(capsys, *RUN, "--out", "out")
    said(capsys, *RUN, "--out", "whole")
    assert digest(here / "out") == digest(here / "whole")


# -- what it refuses --------------------------------------------------------------------------------------------------


def test_what_has_changed_is_named_and_nothing_is_deleted(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said(capsys, *RUN, "--out", "out", "--limit", "3")
    kept = digest(here / "out")

    def refused(*argv: str) -> str:
        err = said(capsys, *RUN, "--out", "out", *argv, code=2)[1]
        assert "add --force to move that job to out.1 and start anew" in err
        return err

    assert "--set beta" in refused("--set", "beta=0.5")
    assert "the engine sure (num_particles 32 -> 16)" in refused("--set", "sure.num_particles=16")
    assert "the engine steered is new" in refused("--engine", "steered.py")
    assert "--seed (0 -> 3)" in refused("--seed", "3")
    assert "--draws (1 -> 2)" in refused("--draws", "2")
    assert "--key (None -> name)" in refused("--key", "name")
    (here / "asked.py").write_text(jobs.MODEL.replace("* 0.3", "* 0.4"))
    assert "the language model callable-lm (" in refused()
    (here / "asked.py").write_text(jobs.MODEL.replace("% 3", "% 2"))
    assert "the source of asked.py, or of what it calls" in refused()
    (here / "asked.py").write_text(jobs.MODEL)
    jobs.write_data(here / "data.jsonl", 12)
    assert "the data file data.jsonl: 11 -> 12 rows" in refused()
    assert digest(here / "out") == kept
    said(capsys, *RUN, "--out", "out", "--limit", "3", "--force")
    assert digest(here / "out.1") == kept
    said(capsys, *RUN, "--out", "out", "--limit", "3", "--force")
    assert (here / "out.2").is_dir()


def test_another_version_of_a_library_is_named(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ppl_align.jobs import spec

    said(capsys, *RUN, "--out", "out", "--limit", "3")
    monkeypatch.setattr(spec, "versions", lambda: {"torch": "9.9"})
    assert "(2.13.0" in said(capsys, *RUN, "--out", "out", code=2)[1]


def test_folders_that_hold_something_else(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "out").mkdir()
    (here / "out/mine.txt").write_text("keep me")
    err = said(capsys, *RUN, "--out", "out", code=2)[1]
    assert "--out out is not empty and holds no job: name another folder, or add --force to move it to out.1" in err
    said(capsys, *RUN, "--out", "out", "--force", "--limit", "1")
    assert (here / "out.1/mine.txt").read_text() == "keep me"
    assert "is a file: name a folder" in said(capsys, *RUN, "--out", "data.jsonl", code=2)[1]
    for option in ("--draws 2", "--limit 1", "--executor process", "--key name"):
        assert "goes with --data FILE" in said(capsys, "run", "asked.py", *option.split(), code=2)[1]


def test_windows_is_refused_in_one_line(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from types import SimpleNamespace

    from ppl_align.cli import job

    monkeypatch.setattr(job, "os", SimpleNamespace(name="nt"))
    assert "not on Windows: use WSL" in said(capsys, *RUN, "--out", "out", code=2)[1]
    assert not (here / "out").exists()


def test_two_at_a_time_are_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from ppl_align.jobs.ledger import open_ledger

    said(capsys, *RUN, "--out", "out", "--limit", "3")
    with open_ledger(here / "out/ledger.jsonl"):
        for more in ((), ("--force",)):
            assert "another process is at work on out" in said(capsys, *RUN, "--out", "out", *more, code=2)[1]


def test_the_time_that_is_left_runs_down() -> None:
    progress = Progress(total=10, rows=[{}] * 4, new=4, seconds=40.0)
    assert progress.left == 60.0
    progress.since = 25.0
    assert progress.left == 35.0
    progress.since = 100.0
    assert progress.left == 0.0
    assert Progress(total=10, rows=[{}] * 4).left is None, "they were there before"
