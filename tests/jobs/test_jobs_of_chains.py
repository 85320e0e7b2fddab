"""Jobs whose engine is a Markov chain: what is delivered, kept, exported, and not taken further."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from toys import jobs
from toys.jobs import RUN, delivered

from ppl_align import MCMC, Posterior
from ppl_align.cli import main
from ppl_align.posterior.kind import Kind

CHAINS = "num_chains=4, num_samples=24, num_warmup=4"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = jobs.set_up(tmp_path, monkeypatch)
    (folder / "chains.py").write_text(jobs.ENGINE.format("MCMC", CHAINS))
    return folder


def command(*more: str, engines: tuple[str, ...] = ("chains.py",)) -> list[str]:
    kept = [argument for argument in RUN if argument not in ("--engine", "sure.py", "--keep", "none")]
    return [*kept, *(part for engine in engines for part in ("--engine", engine)), "--limit", "2", *more]


def test_states_are_delivered_and_log_z_is_null(here: Path) -> None:
    assert main(command("--out", "out", "--draws", "12", "--keep", "posteriors")) in (0, 1)
    frame = delivered(here / "out")
    assert len(frame) == 24
    assert set(frame["engine"]) == {"chains"}
    assert frame["log_z"].isna().all()
    assert frame["log_z_error"].isna().all()
    assert (frame["effective_draws"] > 0).all()
    files = sorted((here / "out").rglob("*.nc"))
    assert len(files) == 2
    run = Posterior.load(files[0])
    assert run.kind is Kind.CHAIN
    assert run.history["accepted"].shape == (28, 4)
    assert set(run.history["move_site"]) == {"x"}
    states = set(run.particles["x"].texts())
    assert set(frame[frame["row"] == frame["row"][0]]["completion"]) <= states


def test_they_are_exported(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command("--out", "out", "--draws", "12", "--keep", "none")) in (0, 1)
    assert main(["export", "out", "--format", "weighted"]) == 0
    lines = [json.loads(line) for line in (here / "out/weighted.jsonl").read_text().splitlines()]
    assert pd.DataFrame(lines)["weight"].sum() == pytest.approx(2)
    capsys.readouterr()
    assert main(["export", "out", "--format", "preference"]) == 2
    assert "no run of this job represents the prior" in " ".join(capsys.readouterr().err.split())


def test_escalation_leaves_chains_alone(here: Path) -> None:
    """More states later would be other chains."""
    assert main(command("--out", "out", "--keep", "posteriors", "--escalate", "4")) in (0, 1)
    for file in (here / "out").rglob("*.nc"):
        assert Posterior.load(file).log_weight.shape == (4, 24)
    assert MCMC().more(2, None) is None


def test_beside_an_engine_with_evidence(here: Path) -> None:
    assert main(command("--out", "out", "--keep", "posteriors", engines=("chains.py", "sure.py"))) in (0, 1)
    frame = delivered(here / "out")
    weighed = frame["engine"] == "sure"
    assert frame["log_z"].notna().tolist() == weighed.tolist()


def test_the_same_chains_again(here: Path) -> None:
    for out in ("one", "other"):
        assert main(command("--out", out, "--keep", "posteriors")) in (0, 1)
    runs = [[Posterior.load(file) for file in sorted((here / out).rglob("*.nc"))] for out in ("one", "other")]
    for one, other in zip(*runs, strict=True):
        assert torch.equal(one.history["accepted"], other.history["accepted"])
        assert torch.equal(one.particles["x"].tokens, other.particles["x"].tokens)
