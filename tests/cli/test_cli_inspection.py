"""``ppl-align inspect`` as a user meets it: what it prints and saves, and what it refuses in one line."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
from toys.commands import go_to

from ppl_align.cli import main

MODEL = '''
import torch
from ppl_align import CallableLM, completion, reward

_lm = CallableLM(4, lambda prefix: torch.zeros(len(prefix), 4), eos_id=3)


def toy(prompt: str = "0", beta: float = 1.0):
    """A toy that likes ones."""
    x = completion("x", _lm, prompt, max_new_tokens=3)
    reward("ones", lambda tokens: (tokens == 1).double().sum(-1), x.tokens, beta=beta, upper=3.0)
    return x
'''


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return go_to(tmp_path, monkeypatch, toy=MODEL)


def test_the_command(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["inspect", "toy.py", "--draws", "100", "--set", "beta=0.5", "--event", "has one=1", "--out", "out"]
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert "=> beta between" in out
    assert "has one" in out
    assert "0.5" in out
    assert "saved in out" in err
    assert {p.name for p in (here / "out").iterdir()} >= {"inspection.json", "inspection.txt", "inspection.png"}
    assert main([*arguments, "--json", "--force"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["num_draws"], found["beta"]) == (100, 0.5)


def test_events_of_the_command_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for bad, says in (("one", "NAME=REGEX"), ("one=(", "no regular expression"), ("=1", "NAME=REGEX")):
        assert main(["inspect", "toy.py", "--event", bad]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert says in err
        assert len(err.splitlines()) == 1
    assert main(["inspect", "toy.py", "--event", "a=1", "--event", "a=2"]) == 2
    assert "given twice" in capsys.readouterr().err
    assert main(["inspect", "toy.py", "--draws", "1"]) == 2


def test_a_folder_that_cannot_be_written_is_refused_before_the_work(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Permissions do not tell: root has them all, also on what is read-only."""

    def refuse(path: str, *_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)

    (here / "toy.py").write_text("raise AssertionError('this was to be refused before')")
    monkeypatch.setattr(os, "mkdir", refuse)
    for command in ("inspect", "run"):
        assert main([command, "toy.py", "--out", "out"]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("error: --out out: cannot write to ")
        assert err.endswith(f"({os.strerror(errno.EROFS)})\n")
    monkeypatch.undo()
    assert main(["inspect", str(here / "toy.py"), "--out", str(here / ("long" * 100))]) == 2
    assert "cannot write" in capsys.readouterr().err
    assert not list(here.glob(".partial*"))


def test_tables_are_printed_even_if_they_cannot_be_saved(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("ppl_align.inspection.Inspection.save", full)
    assert main(["inspect", "toy.py", "--draws", "50", "--out", "out"]) == 1
    out, err = capsys.readouterr()
    assert "=> " in out
    assert err.endswith(f"error: cannot write to out: {os.strerror(errno.ENOSPC)}\n")


def test_a_reward_that_raises_is_one_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "toy.py").write_text(MODEL.replace("tokens == 1", "tokens == one"))
    assert main(["inspect", "toy.py"]) == 1
    assert "reward 'ones' raised NameError" in capsys.readouterr().err
