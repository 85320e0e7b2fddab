"""A ledger holds what was noted, whatever happened to the process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ppl_align.core.errors import InputError, RunError
from ppl_align.jobs.ledger import Ledger, open_ledger, read_events

WRITES = """
import sys
from pathlib import Path
from ppl_align.jobs.ledger import open_ledger
with open_ledger(Path(sys.argv[1])) as ledger:
    for number in range(10**6):
        ledger.note("done", number=number, text="x" * 5000)
        print(number, flush=True)
"""


def test_what_was_noted_is_there_when_it_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "job" / "ledger.jsonl"
    assert read_events(path) == []
    with open_ledger(path) as ledger:
        ledger.note("begun", seed=3)
        ledger.note("done", group=0, name="Zürich\n")
    with open_ledger(path) as ledger:
        assert ledger.events == [{"event": "begun", "seed": 3}, {"event": "done", "group": 0, "name": "Zürich\n"}]
        ledger.note("done", group=1)
        assert [event["group"] for event in ledger.events if event["event"] == "done"] == [0, 1]
    assert [event["event"] for event in read_events(path)] == ["begun", "done", "done"]


@pytest.mark.parametrize("cut", [1, 7, 20])
def test_a_line_that_was_cut_short_never_was(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "ledger.jsonl"
    with open_ledger(path) as ledger:
        ledger.note("done", group=0)
        ledger.note("done", group=1)
    os.truncate(path, path.stat().st_size - cut)
    assert [event["group"] for event in read_events(path)] == [0]
    with open_ledger(path) as ledger:
        ledger.note("done", group=1)
    assert [event["group"] for event in read_events(path)] == [0, 1]


def test_a_line_of_somebody_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_text('{"event": "done"}\nhello\n{"event": "done"}\n')
    with pytest.raises(InputError, match="line 2 is no event of a job"):
        read_events(path)


def test_killed_at_any_moment(tmp_path: Path) -> None:
    """What the process had said was noted is noted, and the next one goes on from there."""
    path, last = tmp_path / "ledger.jsonl", -1
    for wait in (0.0, 0.01, 0.03):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITES, str(path)], stdout=subprocess.PIPE, text=True, bufsize=1
        )
        assert process.stdout is not None
        said = [int(process.stdout.readline())]
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        said += [int(line) for line in process.stdout if line.endswith("\n")]
        process.wait()
        process.stdout.close()
        noted = read_events(path)
        assert len(noted) >= last + 1 + len(said)
        assert all(json.dumps(event) for event in noted)
        last = len(noted) - 1


def test_one_process_writes(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    with open_ledger(path):
        found = subprocess.run([sys.executable, "-c", WRITES, str(path)], capture_output=True, text=True, check=False)
    assert "another process is at work on" in found.stderr


class Full:
    """A file on a disk that is full after half of a line."""

    def __init__(self, file: object) -> None:
        self.file = file

    def __getattr__(self, name: str) -> object:
        return getattr(self.file, name)

    def write(self, line: bytes) -> int:
        self.file.write(line[: len(line) // 2])  # type: ignore[attr-defined]
        raise OSError(28, "No space left on device")


def test_a_full_disk_leaves_no_half_line(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    with open_ledger(path) as ledger:
        ledger.note("done", group=0)
        full = Ledger(path, Full(ledger._file), list(ledger.events))  # type: ignore[arg-type]
        with pytest.raises(RunError, match="No space left on device"):
            full.note("done", group=1)
        ledger.note("done", group=2)
    assert [event["group"] for event in read_events(path)] == [0, 2]
