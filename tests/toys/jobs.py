"""A small job: a model file, an engine, a data file of eleven rows, and how to look at what came of it."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from ppl_align.cli import main
from toys.commands import go_to

MODEL = '''
from pathlib import Path

import torch
from ppl_align import CallableLM, completion, reward

_lm = CallableLM(4, lambda prefix: torch.stack([(prefix == v).sum(-1) * 0.3 for v in range(4)], -1), eos_id=3)


def _wanted(completions, digit, **_):
    with open("asked.log", "a") as file:
        file.write(f"{digit[0]}\\n")
    broken = Path("broken")
    if broken.exists() and str(digit[0]) in broken.read_text().split():
        raise ConnectionError("503")
    return [float(text.count(str(d % 3))) for text, d in zip(completions, digit)]


def asked(prompt, digit, beta=1.0):
    """A digit that the data set wants."""
    x = completion("x", _lm, prompt, max_new_tokens=3)
    reward("wanted", _wanted, x, beta=beta, columns={"digit": digit})
'''
ENGINE = "from ppl_align import {0}\nengine = {0}({1})\n"
COUNT = 11


def files() -> dict[str, str]:
    """Python files by name."""
    return {
        "asked": MODEL,
        "sure": ENGINE.format("ImportanceSampling", "32, 4"),
        "steered": ENGINE.format("SMC", '8, 4, twist="prefix", ess_threshold=1.0'),
    }


def write_data(path: Path, count: int = COUNT) -> None:
    """Rows whose numbers are written as digits, so that the log of the reward tells them apart."""
    rows = [{"prompt": str(i % 3), "digit": i, "name": f"r{i}"} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def set_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files and data in an empty folder, which is gone to."""
    write_data(folder / "data.jsonl")
    return go_to(folder, monkeypatch, **files())


def said(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 0) -> tuple[str, str]:
    """What a command prints, and what it notes in one line."""
    assert main(argv) == code, capsys.readouterr().err
    out, err = capsys.readouterr()
    return out, " ".join(err.split())


RUN = ("run", "asked.py", "--data", "data.jsonl", "--engine", "sure.py", "--max-batch-tokens", "1600", "--keep", "none")
"""Groups of three rows: 128 particles of 4 tokens each."""


def digest(folder: Path) -> str:
    """Of ``completions.parquet``."""
    return hashlib.sha256((folder / "completions.parquet").read_bytes()).hexdigest()


def delivered(folder: Path) -> pd.DataFrame:
    return pd.read_parquet(folder / "completions.parquet")


def summaries(folder: Path) -> list[dict[str, Any]]:
    """Of the rows that are done."""
    return [row for part in sorted((folder / "parts").glob("*.json")) for row in json.loads(part.read_text())]


def events(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]


_KILLER = """
import contextlib, json, os, signal, sys, time
from ppl_align.cli import main
with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
    main(json.loads(sys.argv[1]))
for line in sys.stdin:
    argv, seconds = json.loads(line)
    pid = os.fork()
    if pid == 0:
        for stream in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        os._exit(main(argv))
    if seconds is not None:
        time.sleep(seconds)
        os.kill(pid, signal.SIGKILL)
    print(os.WIFSIGNALED(os.waitpid(pid, 0)[1]), flush=True)
"""


class Killer:
    """Runs commands in processes that are killed after a while. They are forked from one that has run ``first`` and so
    has imported all it needs: a kill meets a job at work and no imports."""

    def __init__(self, *first: str) -> None:
        command = [sys.executable, "-W", "ignore", "-c", _KILLER, json.dumps(first)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self, *argv: str, seconds: float | None = None) -> bool:
        """Was it killed? Without ``seconds`` it runs to its end."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps([argv, seconds]) + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip() == "True"

    def close(self) -> None:
        self.process.communicate()
