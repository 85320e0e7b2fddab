"""``--data``: one row for ``check`` and ``inspect``, and columns that are not there (jobs: tests/jobs)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from toys.commands import go_to

from ppl_align.cli import main

MODEL = '''
import torch
from ppl_align import CallableLM, completion, reward_funcs

_lm = CallableLM(4, lambda prefix: torch.zeros(len(prefix), 4), eos_id=3)


def _wanted(completions, digit, **kwargs):
    return [float(text.count(str(d))) for text, d in zip(completions, digit)]


def asked(prompt, beta, **columns):
    """A digit that the data set wants; prompt and beta have no defaults."""
    x = completion("x", _lm, prompt, max_new_tokens=3)
    reward_funcs([_wanted], x, beta=float(beta), **columns)
'''
ROWS = [{"prompt": "0", "beta": 1.0, "digit": 1}, {"prompt": "1", "beta": 2.0, "digit": 2}]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write(tmp_path / "data.jsonl", ROWS)
    importing = "from ppl_align import ImportanceSampling\nengine = ImportanceSampling"
    engines = {"sure": f"{importing}(2048, 4)\n", "unsure": f"{importing}(64, 1)\n"}
    return go_to(tmp_path, monkeypatch, asked=MODEL, **engines)


def write(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")


def printed(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 0) -> tuple[str, str]:
    assert main(argv) == code, capsys.readouterr().err
    out, err = capsys.readouterr()
    return " ".join(out.split()), err


def refused(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 2) -> str:
    out, err = printed(capsys, *argv, code=code)
    assert out == ""
    assert len(err.splitlines()) == 1, err
    return err


# -- one row for check and inspect ------------------------------------------------------------------------------------


def test_check_and_inspect_look_at_a_row(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, err = printed(capsys, "check", "asked.py", "--data", "data.jsonl")
    assert "asked.py(prompt='0', beta=1.0, columns={'digit': 1})" in out
    assert "--data data.jsonl, row 0; --row N looks at another" in err
    out, err = printed(capsys, "check", "asked.py", "--data", "data.jsonl", "--row", "1")
    assert "asked.py(prompt='1', beta=2.0, columns={'digit': 2})" in out
    assert "--row" not in err
    look = ("inspect", "asked.py", "--draws", "64", "--json", "--data", "data.jsonl")
    first, second = (json.loads(printed(capsys, *look, *row)[0]) for row in ((), ("--row", "1", "--out", "out")))
    assert (first["beta"], second["beta"]) == (1.0, 2.0)
    assert json.loads((here / "out/run.json").read_text())["row"] == "1"


def test_rows_that_are_not_there(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("check", "inspect"):
        said = refused(capsys, command, "asked.py", "--data", "data.jsonl", "--row", "2")
        assert "--row 2: the rows of data.jsonl are 0 to 1" in said
        assert "--row N goes with --data FILE" in refused(capsys, command, "asked.py", "--row", "0")
        assert "not both" in refused(capsys, command, "asked.py", "--data", "data.jsonl", "--prompt", "0")
        assert "--row" in refused(capsys, command, "asked.py", "--data", "data.jsonl", "--row", "-1")
    assert "needs a value for 'prompt', 'beta': give --set prompt=..., or --data FILE" in refused(
        capsys, "check", "asked.py"
    )


# -- columns that are not there ---------------------------------------------------------------------------------------


def each_refuses(capsys: pytest.CaptureFixture[str], code: int = 2) -> list[str]:
    """What ``check`` and ``inspect`` say, and ``run`` of its only row."""
    data = ("asked.py", "--data", "data.jsonl")
    out, _ = printed(capsys, "run", "--engine", "sure.py", *data, "--json", code=1)
    (row,) = json.loads(out)["rows"]
    commands = (("check",), ("inspect", "--draws", "64"))
    return [row["error"], *(refused(capsys, *command, *data, "--row", "0", code=code) for command in commands)]


@pytest.fixture
def misspelt(here: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    write(here / "data.jsonl", [{"prompt": "0", "beta": 1.0, "digits": 1}])
    return here


@pytest.mark.usefixtures("misspelt")
def test_a_reward_that_needs_another_column(capsys: pytest.CaptureFixture[str]) -> None:
    for said in each_refuses(capsys):
        assert "error: --data data.jsonl, row 0: reward 'wanted' needs the column 'digit' (" in said
        assert "(the only column is 'digits'; did you mean 'digits'?): give it, " in said


def test_a_reward_that_looks_another_column_up(misspelt: Path, capsys: pytest.CaptureFixture[str]) -> None:
    looks_up = MODEL.replace("completions, digit, **kwargs", "completions, **kwargs").replace(
        "digit)", "kwargs['digit'])"
    )
    (misspelt / "asked.py").write_text(looks_up)
    for said in each_refuses(capsys, code=1):
        assert "--data data.jsonl, row 0: reward 'wanted' raised KeyError: 'digit'" in said
        assert "If 'digit' is a column: the columns are 'prompt', 'beta', 'digits'; did you mean 'digits'?" in said


def test_a_key_error_that_names_no_key(misspelt: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bare = MODEL.replace("completions, digit, **kwargs", "completions, **kwargs")
    lines = ["    raise KeyError" if "zip(" in line else line for line in bare.splitlines()]
    (misspelt / "asked.py").write_text("\n".join(lines))
    for said in each_refuses(capsys, code=1):
        assert "data.jsonl, row 0: reward 'wanted' raised KeyError, on the text" in said


def test_a_model_that_needs_another_column(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(here / "data.jsonl", [{"prompt": "0", "betta": 1.0, "digit": 1}])
    for command in (("run", "--engine", "sure.py"), ("check",), ("inspect", "--draws", "64")):
        said = refused(capsys, *command, "asked.py", "--data", "data.jsonl")
        assert "error: --data data.jsonl, row 0: asked.py needs a value for 'beta'; the columns are 'prompt', " in said
        assert "'betta', 'digit'; did you mean 'betta'?; or give --set beta=..." in said
    write(here / "data.jsonl", [{"promt": "0", "beta": 1.0, "digit": 1}])
    assert "there is no column 'prompt'; the columns are 'promt', 'beta', 'digit'; did you mean 'promt'?" in refused(
        capsys, "check", "asked.py", "--data", "data.jsonl"
    )


def test_a_column_that_nobody_takes_may_be_misspelt(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "asked.py").write_text(
        MODEL.replace("beta, **columns", "beta=1.0, digit=1").replace("**columns", "digit=1")
    )
    write(here / "data.jsonl", [{"prompt": "0", "digt": 1, "id": 7}])
    _, err = printed(capsys, "check", "asked.py", "--data", "data.jsonl")
    assert "asked.py has no argument for the columns digt (did you mean 'digit'?), id: it does not see them" in err
