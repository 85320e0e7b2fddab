"""A run that fails at once: no trace of it, and nothing lost of what was there."""

from __future__ import annotations

from pathlib import Path

import pytest
from toys.commands import go_to

from ppl_align.cli import main

MODEL = """
import torch
from ppl_align import CallableLM, completion, reward

_lm = CallableLM(4, lambda prefix: torch.zeros(len(prefix), 4), eos_id=3)


def {name}():
    x = completion("x", _lm, "0", max_new_tokens=3)
    reward("ones", lambda tokens: (tokens == 1).double().sum(-1), x.tokens, beta={beta})
"""
ENGINE = "from ppl_align import ImportanceSampling\nengine = ImportanceSampling(num_particles=16)\n"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    good, bad = MODEL.format(name="good", beta=1.0), MODEL.format(name="bad", beta=0.0)
    return go_to(tmp_path, monkeypatch, good=good, bad=bad, few=ENGINE)


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*")}


def test_a_run_that_fails_leaves_no_folder(here: Path) -> None:
    assert main(["run", "bad.py", "--engine", "few.py", "--out", "out"]) != 0
    assert not (here / "out").exists()
    assert main(["run", "good.py", "--engine", "few.py", "--out", "out"]) == 0


def test_with_force_the_old_run_stays_until_there_is_a_new_one(here: Path) -> None:
    assert main(["run", "good.py", "--engine", "few.py", "--out", "out"]) == 0
    before = files(here / "out")
    assert main(["run", "bad.py", "--engine", "few.py", "--out", "out", "--force"]) != 0
    assert files(here / "out") == before
    assert main(["run", "good.py", "--engine", "few.py", "--out", "out", "--force", "--seed", "3"]) == 0
    assert files(here / "out").keys() == before.keys()
    assert files(here / "out") != before
