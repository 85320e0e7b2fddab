"""``ppl-align check`` as a user meets it: what it says of a spec, and that all of it is on the screen."""

from __future__ import annotations

from pathlib import Path

import pytest
from toys.commands import MODEL, go_to

from ppl_align.cli import main


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return go_to(tmp_path, monkeypatch, toy=MODEL)


def test_check_says_what_it_saw(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "toy.py", "--set", "bias=0"]) == 0
    out, _ = capsys.readouterr()
    assert "completion" in out
    assert "reward 'ones' is 0 on every draw" in out
    (here / "bare.py").write_text(MODEL.split("    reward(")[0].replace("def toy", "def bare"))
    assert main(["check", "bare.py"]) == 0
    assert "the posterior is the prior" in capsys.readouterr().out


def test_check_notices_a_reward_that_changes(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fickle = "reward('fickle', lambda tokens: torch.rand(tokens.shape[:-1]), x.tokens)\n"
    (here / "toy.py").write_text(MODEL.replace("    return x", f"    {fickle}    return x"))
    assert main(["check", "toy.py"]) == 0
    assert "reward 'fickle' gave other values when asked again" in capsys.readouterr().out


def test_check_shows_every_reward_at_80_columns(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"likes_the_letter_number_{i}" for i in range(9)]
    more = "".join(f"    reward('{name}', lambda t: t.double().sum(-1), x.tokens)\n" for name in names)
    (here / "toy.py").write_text(MODEL.replace("    return x", f"{more}    return x").replace('"x"', '"a_long_review"'))
    assert main(["check", "toy.py"]) == 0
    shown = capsys.readouterr().out.split("draws from the prior")[1].split("draws in")[0]
    assert max(map(len, shown.splitlines())) <= 80
    headers = " ".join(line for line in shown.splitlines() if line.startswith("draw "))
    assert headers.replace("draw ", "").split() == ["ones", *names, "log", "weight", "a_long_review"]
