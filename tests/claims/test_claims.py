"""The claims hold, the command says so, and the book is what the essays say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from conftest import SEED

from ppl_align import claims
from ppl_align.claims import CLAIMS, book, findings, running
from ppl_align.claims.findings import Findings
from ppl_align.cli import main
from ppl_align.core.errors import InputError

BOOK = Path(__file__).parents[2] / "docs" / "claims.md"


@pytest.mark.parametrize("name", list(CLAIMS)[::8])  # `make claims` runs all, tests/statistical with other seeds
def test_claim(name, tmp_path):
    (result,) = running.run([name], seed=SEED)
    assert not result.failure, result.failure
    wrong = [line for line in result.found.lines if not line.passed]
    assert not wrong
    assert len(result.found.lines) >= 3
    figure = claims.load(name).figure(result.found)
    figure.savefig(tmp_path / "figure.png", dpi=60)
    assert (tmp_path / "figure.png").stat().st_size > 4000


@pytest.mark.parametrize("name", CLAIMS)
def test_essays_are_essays(name):
    module = claims.load(name)
    assert 20 < len(claims.statement(module)) <= 110
    text = claims.essay(module)
    assert len(text.split()) > 100
    assert "**In practice.**" in text
    assert re.search(r"^Source", text.splitlines()[-1]) or "Source" in text.split("\n\n")[-1]
    assert len(Path(module.__file__).read_text().splitlines()) < 300


@pytest.mark.parametrize("name", CLAIMS)
def test_the_book_says_what_the_code_says(name):
    """The prose of docs/claims.md is that of the modules, and its tables show no failure."""
    text = BOOK.read_text(encoding="utf-8")
    assert book.prose(name) in text, "run: make book"
    assert (BOOK.parent / "claims" / f"{name}.png").is_file()
    assert "FAILED" not in text


def test_every_way_of_being_right_can_fail():
    found = Findings()
    found.equal("a", 1.0, 1.0 + 1e-10)
    found.rounds_to("b", 0.7005668, "0.700567")
    found.agrees("c", 1.0, 0.1, 1.4)
    found.less("d", 1.0, 2.0, 0.1)
    found.greater("d", 2.0, 1.0, 0.1)
    found.holds("e", True)
    assert found.passed
    for wrong in (
        lambda f: f.equal("a", 1.0, 1.0 + 1e-8),
        lambda f: f.rounds_to("b", 0.7005676, "0.700567"),
        lambda f: f.agrees("c", 1.0, 0.1, 1.0 + 0.1 * findings.Z + 0.01),
        lambda f: f.agrees("c", 1.0, 0.0, 1.0),
        lambda f: f.agrees("c", 1.0, float("nan"), 1.0),
        lambda f: f.less("d", 1.0, 1.0),
        lambda f: f.less("d", 1.0, 1.4, 0.1),
        lambda f: f.greater("d", 1.0, 1.0),
        lambda f: f.greater("d", 1.0, 2.0),
        lambda f: f.greater("d", 1.4, 1.0, 0.1),
        lambda f: f.greater("d", 1.0, float("nan"), run=True),
        lambda f: f.holds("e", False),
    ):
        found = Findings()
        wrong(found)
        assert not found.passed
    assert not Findings().passed, "nothing was found"


def test_the_measured_number_is_printed_as_measured():
    found = Findings()
    found.less("a", 1.0, 2.0)
    found.greater("b", 2.0, 1.0, 0.1)
    found.greater("c", 2.0, 1.0, run=True)
    shown = [(line.expected, line.measured, line.error) for line in found.lines]
    assert shown == [("< 2", "1", "exact"), ("> 1", "2", "se 0.1"), ("> 1", "2", "one run")]


def test_the_command(capsys, tmp_path, monkeypatch):
    assert main(["claims", "f-divergences", "overoptimisation", "--figures", str(tmp_path / "figures")]) == 0
    shown = capsys.readouterr()
    assert "overoptimisation" in shown.out
    assert " ok" in shown.out
    assert "all hold" in shown.err
    assert max(map(len, shown.out.splitlines())) <= 80
    assert sorted(p.name for p in (tmp_path / "figures").iterdir()) == ["f-divergences.png", "overoptimisation.png"]
    assert main(["claims", "overoptimisation", "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert told["claim"] == "overoptimisation"
    assert all(check["passed"] for check in told["checks"])
    assert main(["claims", "--list"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in CLAIMS)


def test_a_claim_that_fails_or_stops_is_reported(capsys, monkeypatch):
    def refuted(found):
        found.equal("two is three", 2.0, 3.0)

    def broken(found):
        found.equal("one is one", 1.0, 1.0)
        raise ValueError("no such thing")

    monkeypatch.setattr(claims.load("moments"), "study", refuted)
    assert main(["claims", "moments"]) == 1
    shown = capsys.readouterr()
    assert "FAILED" in shown.out
    assert "FAILED: moments" in shown.err
    monkeypatch.setattr(claims.load("moments"), "study", broken)
    assert main(["claims", "moments"]) == 1
    assert "stopped: ValueError: no such thing" in capsys.readouterr().out


def test_names_and_folders_that_do_not_exist(capsys, tmp_path):
    assert main(["claims", "momments"]) == 2
    assert "did you mean 'moments'" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert main(["claims", "moments", "--figures", str(tmp_path / "file" / "x")]) == 2
    assert main(["claims", "moments", "--book", str(tmp_path / "book.md")]) == 2
    with pytest.raises(InputError):
        claims.load("nothing")


def test_the_book(tmp_path):
    results = list(running.run(["overoptimisation"], seed=SEED))
    text = book.compose({"overoptimisation": results[0]}, Path("claims"))
    assert text.count("### ") == len(CLAIMS)
    assert "![" in text
    assert "| check | expected |" in text
    book.write(tmp_path / "book.md", tmp_path / "figures", results)
    assert (tmp_path / "book.md").read_text(encoding="utf-8").startswith("# Alignment as inference")
