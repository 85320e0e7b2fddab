"""What a job has found, as data sets in TRL's formats; shards that become one job."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from toys import jobs
from toys.jobs import RUN, delivered, digest

from ppl_align.cli import main


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return jobs.set_up(tmp_path, monkeypatch)


def exported(here: Path, capsys: pytest.CaptureFixture[str], form: str) -> tuple[list[dict[str, Any]], str]:
    capsys.readouterr()
    assert main(["export", "out", "--format", form]) == 0
    lines = (here / f"out/{form}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines], " ".join(capsys.readouterr().err.split())


def test_formats(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*RUN, "--out", "out", "--draws", "50", "--limit", "4"]) == 0
    frame = delivered(here / "out")
    sft, said = exported(here, capsys, "sft")
    assert said == "200 examples in out/sft.jsonl"
    assert [line["completion"] for line in sft] == list(frame["completion"])
    assert [line["prompt"] for line in sft] == list(frame["prompt"])
    weighted, _ = exported(here, capsys, "weighted")
    by_row = pd.DataFrame(weighted).groupby("prompt")["weight"].sum()
    assert by_row["0"] == pytest.approx(2), "rows 0 and 3 have one prompt"
    assert by_row["1"] == pytest.approx(1)
    row = frame[frame["row"] == "1"]
    want = (row["completion"] == weighted_of(weighted, "1")["completion"]).mean()
    assert weighted_of(weighted, "1")["weight"] == pytest.approx(want)
    pairs, said = exported(here, capsys, "preference")
    assert set(pairs[0]) == {"prompt", "chosen", "rejected", "margin"}
    assert all(pair["margin"] > 0 for pair in pairs)
    left_out = 200 - len(pairs)
    assert f"{left_out} of 200 pairs have a margin of 0 or less, and are left out" in said
    assert "DPO on these pairs does not give the posterior back" in said
    for pair in pairs:
        digit = {"0": None, "1": "1", "2": "2"}[pair["prompt"]]
        if digit is not None:
            gain = pair["chosen"].split().count(digit) - pair["rejected"].split().count(digit)
            assert pair["margin"] == pytest.approx(gain), "beta is 1: as many nats"
    assert main(["export", "out", "--format", "sft", "--out", "sft.parquet"]) == 0
    assert len(pd.read_parquet(here / "sft.parquet")) == 200


def weighted_of(examples: list[dict[str, Any]], prompt: str) -> dict[str, Any]:
    return max((one for one in examples if one["prompt"] == prompt), key=lambda one: one["weight"])


def test_draws_of_the_prior_are_draws_of_the_prior(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rejected texts come from the prior: the mean of what the reward counts is not tilted."""
    assert main([*RUN, "--out", "out", "--draws", "400", "--rows", "1", "--set", "sure.num_particles=400"]) == 0
    (path,) = (here / "out/parts").glob("*.parquet")
    part = pd.read_parquet(path)
    means = part.groupby("_prior")["reward.wanted"].mean()
    assert means[True] < means[False] - 0.5


def test_chats_stay_chats(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chat = [{"role": "user", "content": "1"}]
    (here / "data.jsonl").write_text(json.dumps({"prompt": chat, "digit": 1}) + "\n")
    model = jobs.MODEL.replace("_lm, prompt,", '_lm, prompt[0]["content"],')
    (here / "asked.py").write_text(model)
    assert main([*RUN, "--out", "out"]) == 0
    (line,), _ = exported(here, capsys, "sft")
    assert line["prompt"] == chat
    assert line["completion"] == [{"role": "assistant", "content": delivered(here / "out")["completion"][0]}]


def test_what_cannot_be_exported(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*argv: str) -> str:
        assert main(argv) == 2
        return " ".join(capsys.readouterr().err.split())

    assert "holds no job" in refused("export", ".")
    steered = [argument if argument != "sure.py" else "steered.py" for argument in RUN]
    assert main([*steered, "--out", "out", "--limit", "1"]) in (0, 1)
    assert "--format dpo: choose sft, preference, weighted" in refused("export", "out", "--format", "dpo")
    assert "no run of this job represents the prior" in refused("export", "out", "--format", "preference")
    assert "write a .jsonl or .parquet file" in refused("export", "out", "--out", "x.csv")


def test_without_draws_of_the_prior_there_are_no_pairs(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "moved.py").write_text(jobs.ENGINE.format("SMC", '8, 4, twist="prefix", ess_threshold=1.0'))
    run = ["moved.py" if argument == "sure.py" else argument for argument in RUN]
    assert main([*run, "--out", "out", "--limit", "2"]) == 0
    capsys.readouterr()
    assert main(["export", "out", "--format", "preference"]) == 2
    assert "say --engine importance" in " ".join(capsys.readouterr().err.split())
    assert not (here / "out/preference.jsonl").exists()


def test_chats_stay_chats_among_columns_of_that_name(here: Path) -> None:
    chat = [{"role": "user", "content": "1"}]
    line = {"prompt": chat, "digit": 2, "data.prompt": "mine", "completion": "yours"}
    (here / "data.jsonl").write_text(json.dumps(line) + "\n")
    (here / "asked.py").write_text(jobs.MODEL.replace("_lm, prompt, max", "_lm, '1', max"))  # it has no chat template
    assert main([*RUN, "--out", "out"]) == 0
    (found,) = delivered(here / "out").to_dict("records")
    assert found["data.prompt"] == "mine"
    assert found["data.data.prompt"][0]["content"] == "1"
    assert found["data.completion"] == "yours"
    assert main(["export", "out", "--format", "sft"]) == 0
    (example,) = [json.loads(line) for line in (here / "out/sft.jsonl").read_text().splitlines()]
    assert example["prompt"] == chat
    assert example["completion"][0]["role"] == "assistant"


def test_shards_become_the_whole(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*RUN, "--out", "whole"]) == 0
    run = [argument for argument in RUN if argument not in ("--keep", "none")]
    for shard in (1, 2, 3):
        assert main([*run, "--keep", "posteriors", "--out", f"s{shard}", "--shard", f"{shard}/3"]) == 0
    capsys.readouterr()
    assert main(["merge", "s1", "s3", "s3", "--out", "some"]) == 1
    out, err = capsys.readouterr()
    assert out.startswith("8 of 11 rows")
    assert "3 rows are missing: a shard was not named, or is not done" in err
    assert main(["merge", "s1", "s2", "s3", "--out", "all"]) == 0
    assert digest(here / "all") == digest(here / "whole")
    assert (here / "all/rows/04/sure.nc").is_file()
    assert main(["merge", "s1", "s2", "s3", "--out", "some"]) == 0, "it goes on"
    assert digest(here / "some") == digest(here / "whole")
    assert main([*RUN, "--out", "all"]) == 0, "and so does the job"
    (here / "broken").write_text("4")
    assert main([*run, "--keep", "none", "--out", "f2", "--shard", "2/3"]) == 1
    assert main(["merge", "s1", "f2", "s3", "--out", "mended"]) == 1
    (here / "broken").unlink()
    assert main([*run, "--keep", "none", "--out", "f2", "--shard", "2/3"]) == 0
    assert main(["merge", "s1", "f2", "s3", "--out", "mended"]) == 0, "what was done again since is taken over"
    assert digest(here / "mended") == digest(here / "whole")
    assert main([*RUN, "--out", "other", "--seed", "1", "--limit", "1"]) == 0
    capsys.readouterr()
    assert main(["merge", "s1", "other", "--out", "x"]) == 2
    assert "s1 and other are no shards of one job: --seed (0 -> 1)" in " ".join(capsys.readouterr().err.split())
    assert not (here / "x").exists()
    assert main([*RUN, "--out", "y", "--shard", "4/3"]) == 2
