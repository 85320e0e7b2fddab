"""The adapter under both lines of ArviZ: the installed one, and 1.x in an environment of its own.

The environment is built once, in ``.venv-arviz1`` of the repository or where ``PPL_ALIGN_ARVIZ1_VENV`` says.
"""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from toys.synthetic import importance, smc

from ppl_align.core import arviz_adapter
from ppl_align.posterior import Posterior

TESTS = Path(__file__).parents[1] / "toys"
REQUIREMENTS = TESTS.parent / "requirements-arviz1.txt"


def output_of(*command: str, timeout: float = 60) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def find_python312() -> str | None:
    """A Python of 3.12 or later that runs: a shim on PATH may only say that it does not."""
    candidates = [sys.executable, *(shutil.which(f"python3.{minor}") for minor in (12, 13, 14))]
    roots = {os.environ.get("PYENV_ROOT"), output_of("pyenv", "root")} - {None}
    candidates += [
        str(p) for root in sorted(roots) for p in sorted(Path(root, "versions").glob("3.1[2-9]*/bin/python"))
    ]
    for python in filter(None, candidates):
        if output_of(python, "-c", "import sys, venv; print(sys.version_info >= (3, 12))") == "True":
            return python
    return None


@pytest.fixture(scope="session")
def arviz1_python() -> str:
    python = find_python312()
    if python is None:
        pytest.skip("ArviZ 1.x needs Python 3.12 or later, and none was found on PATH or among pyenv's versions")
    folder = Path(os.environ.get("PPL_ALIGN_ARVIZ1_VENV", TESTS.parents[1] / ".venv-arviz1"))
    own, stamp = folder / "bin" / "python", folder / "requirements.txt"
    wanted = REQUIREMENTS.read_text()
    if not (stamp.is_file() and stamp.read_text() == wanted and output_of(str(own), "-c", "print(1)")):
        subprocess.run([python, "-m", "venv", "--clear", str(folder)], check=True, capture_output=True)
        pip = [str(own), "-m", "pip", "install", "-q", "--retries", "1", "--timeout", "20", "-r", str(REQUIREMENTS)]
        done = subprocess.run(pip, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"ArviZ 1.x could not be installed: {done.stderr.strip().splitlines()[-1]}")
        stamp.write_text(wanted)
    return str(own)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Numbers and files made here, by the ArviZ that is installed."""
    folder = tmp_path_factory.mktemp("arviz")
    importance(particles=200).save(folder / "importance.nc")
    smc(particles=200).save(folder / "smc.nc")
    arviz_adapter.write_netcdf(importance(particles=200).to_arviz(), folder / "by_arviz.nc")
    rng = np.random.default_rng(0)
    # Pareto weights: log w ~ Exponential(rate a) has k = 1 / a
    noise = rng.normal(size=(4, 300))
    np.save(folder / "chains.npy", noise[:, 1:] + 0.9 * noise[:, :-1])  # alike one state apart, and no further
    np.save(folder / "log_weights.npy", rng.exponential(1.0, (3, 4000)) * np.array([[0.2], [0.5], [0.9]]))
    return folder


def check(python: str, folder: Path) -> dict:
    command = [python, str(TESTS / "arviz_script.py"), arviz_adapter.__file__, str(folder)]
    # the environment of its own must not see this one's packages
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    run = importance(particles=200)
    assert found["torch"] is False
    assert found["k"] == pytest.approx([0.2, 0.5, 0.9], abs=0.2)  # a flipped sign would give about -1 or 1.2 everywhere
    assert found["normalised"] == pytest.approx(1.0)
    assert found["heaviest_stay"]
    assert found["mean"] == pytest.approx(float(run.to_arviz()["posterior"]["praise"].mean()), abs=1e-9)
    assert found["by_arviz"] == pytest.approx(found["mean"])
    assert not any("ess" in column for column in found["columns"])
    chains = np.load(folder / "chains.npy")
    assert found["chains"] == pytest.approx(list(arviz_adapter.chain_stats(chains)), rel=1e-9)
    assert found["single"] == pytest.approx(list(arviz_adapter.chain_stats(chains[:1])), rel=1e-9, nan_ok=True)
    assert math.isnan(found["single"][2]), "a single chain agrees with nobody"
    assert found["apart"] == math.inf
    assert all(map(math.isnan, found["nothing"]))
    assert np.allclose(found["autocorrelation"], arviz_adapter.autocorrelation(chains)[:, :4])
    assert np.mean(found["autocorrelation"], axis=0) == pytest.approx([1, 0.9 / 1.81, 0, 0], abs=0.1)
    assert len(list(folder.glob(f"*-{found['version']}.png"))) == 4
    # the way back: what that line wrote is a posterior of ours, and opens in the ArviZ that is installed here
    rewritten = folder / f"rewritten-{found['version']}.nc"
    assert Posterior.load(rewritten).table().equals(run.table())
    assert float(arviz_adapter.read_netcdf(rewritten)["posterior"]["praise"].mean()) == pytest.approx(found["mean"])
    return found


def test_the_installed_line(folder):
    found = check(sys.executable, folder)
    assert found["is_v1"] == (sys.version_info >= (3, 12))


def test_arviz_1(folder, arviz1_python):
    found = check(arviz1_python, folder)
    assert found["is_v1"]
    assert found["container"] == "DataTree"


def test_both_lines_agree_on_k(folder):
    """The installed line against the k that was put in, with the sign of ``psislw`` that belongs to it."""
    log_weights = np.load(folder / "log_weights.npy")
    assert arviz_adapter.psislw(log_weights)[1] == pytest.approx([0.2, 0.5, 0.9], abs=0.2)


def test_importing_the_adapter_imports_no_torch():
    code = (
        "import importlib.util, sys;"
        f"spec = importlib.util.spec_from_file_location('a', {arviz_adapter.__file__!r});"
        "spec.loader.exec_module(importlib.util.module_from_spec(spec));"
        "print('torch' in sys.modules, 'arviz' in sys.modules)"
    )
    assert output_of(sys.executable, "-c", code) == "False False"
