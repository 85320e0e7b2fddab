"""Files of earlier versions: what was written is read, compared and exported as it was.

tests/data/formatN holds files of every engine that format N wrote, and ``facts.json``, what that version
said of them; ``stored_posteriors.py`` wrote both.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from ppl_align import compare
from ppl_align.lm.completions import tensor_of
from ppl_align.posterior import Posterior

FOLDER = Path(__file__).parents[1] / "data"
FOLDERS = [path for path in sorted(FOLDER.glob("format*")) if path.is_dir()]
FILES = sorted(FOLDER.glob("format*/*.nc"))
PROGRAMS = ("wishes", "told", "served")


def facts(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((path.parent / "facts.json").read_text(encoding="utf-8"))[path.stem]
    return found


def close(found: Any, said: Any) -> bool:
    """Numbers to ten digits; NaN and the infinities are written as words, several numbers as a list."""
    if isinstance(said, list):
        return all(close(x, before) for x, before in zip(found, said, strict=True))
    said = float(said)
    return bool(math.isclose(float(found), said, rel_tol=1e-10) or (math.isnan(float(found)) and math.isnan(said)))


def test_there_are_files_of_every_engine() -> None:
    for folder in FOLDERS:
        engines = {facts(path)["engine"] for path in folder.glob("*.nc")}
        assert engines >= {"exact", "importance", "smc", "svi", "rejection", "nested"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_it_says_what_it_said(path: Path) -> None:
    run, said = Posterior.load(path), facts(path)
    assert (run.engine, list(run.log_weight.shape), run.target) == (said["engine"], said["shape"], said["target"])
    assert list(run.particles) == said["sites"]
    assert all(close(z, before) for z, before in zip(run.log_evidence, said["log_evidence"], strict=True))
    for reward, mean in said["means"].items():
        assert close(run.mean(reward).value, mean)
    for reward, scale in said["scales"].items():  # a number in format 1, and the same for every particle
        assert run.scales[reward].shape == run.log_weight.shape
        assert bool((run.scales[reward] == float(scale)).all())
    for column, amount in said["cost"].items():
        assert getattr(run.cost, column) == amount
    believes = None if run.optimism is None else {name: e.value for name, e in run.optimism.posterior_mean.items()}
    assert believes is None if said["optimism"] is None else believes == pytest.approx(said["optimism"])
    table = run.table()
    assert len(table) == said["rows"]
    for column, before in said["best"].items():
        now = table.iloc[0][column]
        assert now == before if isinstance(now, str) else close(now, before), column


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_it_is_exported_and_written_again(path: Path, tmp_path: Path) -> None:
    run = Posterior.load(path)
    exported = run.to_arviz()
    assert exported["weighted"]["log_weight"].values == pytest.approx(run.log_weight.numpy())
    again = Posterior.load(run.save(tmp_path / "again.nc"))
    assert torch.equal(again.log_weight, run.log_weight)
    for name, value in run.particles.items():
        assert torch.equal(tensor_of(again.particles[name]), tensor_of(value))
    for mine, its in ((again.rewards, run.rewards), (again.scales, run.scales), (again.log_upper, run.log_upper)):
        assert list(mine) == list(its)
        for name in mine:
            torch.testing.assert_close(mine[name], its[name], equal_nan=True)
    assert str(again.mean("praise")) == str(run.mean("praise"))


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_runs_of_one_program_are_compared(folder: Path, program: str) -> None:
    paths = [path for path in sorted(folder.glob(f"{program}-*.nc")) if "conditional" not in path.stem]
    comparison = compare(paths)
    assert list(comparison.table.index) == [path.stem for path in paths]
    assert comparison.advice.verdict
    for path in paths:
        assert close(comparison.table.loc[path.stem, "E[praise]"], facts(path)["means"]["praise"])


def test_formats_stand_side_by_side() -> None:
    """What format 1 wrote and what format 2 wrote of the same runs is one posterior."""
    for path in sorted((FOLDER / "format1").glob("*.nc")):
        one, two = Posterior.load(path), Posterior.load(FOLDER / "format2" / path.name)
        assert torch.equal(one.log_weight, two.log_weight)
        assert list(one.rewards) == list(two.rewards)
