"""``--escalate``: who gets more particles, how many at a time, and that all rounds count."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from toys import jobs
from toys.commands import go_to
from toys.jobs import delivered, digest, summaries

from ppl_align import SMC, ImportanceSampling, Posterior, Rejection
from ppl_align.cli import main
from ppl_align.core.errors import AllDeadError, TooManyDrawsError
from ppl_align.core.turns import Outcome
from ppl_align.jobs.escalation import Attempt
from ppl_align.jobs.plan import Target

MODEL = """
import torch
from ppl_align import MarkovLM, completion, reward

_lm = MarkovLM(torch.zeros(8, 8), torch.zeros(8), eos_id=None)


def wanted(prompt, nats):
    x = completion("x", _lm, prompt, max_new_tokens=2)
    with open("asked.log", "a") as file:
        file.write(f"{nats} {len(x.tokens.reshape(-1, 2))}\\n")
    reward("hits", lambda t: (t == 3).double().sum(-1), x.tokens, beta=1 / nats)
"""
BEGUN = ("run", "wanted.py", "--data", "data.jsonl", "--engine", "few.py", "--keep", "none")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    rows = [{"prompt": "1", "nats": nats} for nats in (1.0, 2.0, 0.8, 4.0)]  # what a hit is worth
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    few = jobs.ENGINE.format("ImportanceSampling", "256, 4")
    return go_to(tmp_path, monkeypatch, wanted=MODEL, few=few, steered=jobs.ENGINE.format("SMC", "32, 4"))


def test_only_what_is_not_sound_takes_more(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*BEGUN, "--out", "plain"]) == 0
    assert main([*BEGUN, "--out", "more", "--escalate", "8"]) == 0
    assert "took more particles than at first" in capsys.readouterr().out
    before, after = summaries(here / "plain"), summaries(here / "more")
    assert [row["standing"] == "sound" for row in before] == [True, False, True, False]
    for old, new in zip(before, after, strict=True):
        assert old["times"] == 1
        if old["standing"] == "sound":
            assert new == old, "what was sound stays as it was"
        else:
            assert new["times"] > 1
            assert new["effective_draws"] > old["effective_draws"]
            assert new["times"] == 8 or new["standing"] == "sound"
    assert any(row["times"] > 1 and row["standing"] == "sound" for row in after)
    plain, more = delivered(here / "plain"), delivered(here / "more")
    assert list(more["log_z"] == plain["log_z"]) == [row["times"] == 1 for row in after]
    assert list(more["seed"]) == list(plain["seed"])


def test_all_rounds_count(here: Path) -> None:
    """What is kept of the row is the pool: the first run, and then others of other random numbers."""
    run = [argument for argument in BEGUN if argument not in ("--keep", "none")]
    assert main([*run, "--rows", "3", "--out", "plain", "--keep", "posteriors"]) == 0
    assert main([*run, "--rows", "3", "--out", "more", "--keep", "posteriors", "--escalate", "3"]) == 0
    first, pool = (Posterior.load(next((here / out / "rows").rglob("few.nc"))) for out in ("plain", "more"))
    assert sum(pool.history["rounds"].tolist()) == pool.log_weight.shape[1] in (512, 768)
    assert torch.equal(pool.log_weight[:, :256], first.log_weight)
    tokens = pool.completions["x"].tokens
    assert torch.equal(tokens[:, :256], first.completions["x"].tokens)
    assert not torch.equal(tokens[:, 256:512], tokens[:, :256])


@pytest.mark.parametrize(("most", "largest"), [(100, 1024), (6200, 2048), (100_000, 8192)])
def test_memory_is_bounded_in_later_rounds(here: Path, most: int, largest: int) -> None:
    """1,024 particles of 3 tokens: as many times as many at once as ``--max-batch-tokens`` has room for."""
    assert main([*BEGUN, "--rows", "3", "--out", "out", "--escalate", "16", "--max-batch-tokens", str(most)]) == 0
    (row,) = summaries(here / "out")
    drawn = [int(line.split()[1]) for line in (here / "asked.log").read_text().splitlines()]
    assert row["times"] == 16
    assert max(drawn) == largest


def test_the_same_bytes_however_it_is_run(here: Path) -> None:
    run = [*BEGUN, "--engine", "steered.py", "--escalate", "4", "--max-batch-tokens", "1600", "--draws", "5"]
    assert main([*run, "--out", "serial"]) == 0
    assert main([*run, "--out", "limited", "--limit", "2"]) == 0
    assert main([*run, "--out", "limited"]) == 0
    assert main([*run, "--out", "process", "--executor", "process", "--workers", "2"]) == 0
    assert digest(here / "serial") == digest(here / "limited") == digest(here / "process")
    assert max(row["times"] for row in summaries(here / "serial")) == 4


def test_it_is_part_of_what_the_job_is(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*BEGUN, "--out", "out", "--escalate", "4"]) == 0
    assert main([*BEGUN, "--out", "out", "--escalate", "8"]) == 2
    assert "--escalate (4 -> 8)" in " ".join(capsys.readouterr().err.split())
    assert main(["run", "wanted.py", "--prompt", "1", "--escalate", "4"]) == 2
    assert "--escalate goes with --data FILE" in " ".join(capsys.readouterr().err.split())


def test_rounds_that_die_and_engines_that_give_up() -> None:
    attempt, engine = Attempt(Target((), {}, seed=0)), ImportanceSampling(16)
    assert attempt.next("is", engine, 1) is engine
    attempt.note("is", engine, Outcome(error=AllDeadError("all dead")))
    assert not attempt.grave
    assert not attempt.runs
    assert "is" in attempt.failed
    again = attempt.next("is", engine, 2)
    assert again == ImportanceSampling(32)
    run = run_of_one_token()
    attempt.note("is", engine, Outcome(value=run))
    assert "is" not in attempt.failed
    assert attempt.runs["is"].log_weight.shape[1] == run.log_weight.shape[1] + 16
    attempt.note("is", ImportanceSampling(32), Outcome(error=AllDeadError("all dead")))
    assert attempt.runs["is"].log_weight.shape[1] == run.log_weight.shape[1] + 48
    assert "is" not in attempt.failed
    attempt.note("rejection", Rejection(), Outcome(error=TooManyDrawsError("too many")))
    assert attempt.next("rejection", Rejection(), 2) is None
    assert not attempt.grave
    attempt.note("smc", SMC(), Outcome(error=ConnectionError("503")))
    assert attempt.grave == ["smc"]
    with pytest.raises(KeyboardInterrupt):
        attempt.note("smc", SMC(), Outcome(error=KeyboardInterrupt()))


def run_of_one_token() -> Posterior:
    from ppl_align.testing.programs import with_eos

    return ImportanceSampling(16).run(with_eos)
