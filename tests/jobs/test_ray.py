"""Ray: the same bytes as one process, also when a worker is killed on the way. In a network namespace of its own, with
nothing but loopback: Ray would bind the machine's address."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from toys import jobs
from toys.commands import go_to
from toys.jobs import RUN, digest

from ppl_align.cli import main

ALONE = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
KILLING = """
import os, signal, sys, threading, time
from pathlib import Path
from ppl_align.cli import main

def kill():
    # the first worker that is seen at work
    while True:
        time.sleep(0.01)
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                if path.read_bytes().startswith(b"ray::Worker.do"):
                    os.kill(int(path.parent.name), signal.SIGKILL)
                    Path("killed").touch()
                    return
            except OSError:
                pass

threading.Thread(target=kill, daemon=True).start()
sys.exit(main(sys.argv[1:]))
"""


def has_namespaces() -> bool:
    if any(shutil.which(name) is None for name in ("unshare", "ip")):
        return False
    return subprocess.run([*ALONE, "true"], capture_output=True).returncode == 0


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
@pytest.mark.skipif(not has_namespaces(), reason="no network namespaces here")
def test_a_killed_worker_on_ray(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here = jobs.set_up(tmp_path, monkeypatch)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert main([*RUN, "--out", "whole"]) == 0
    ray = ("--out", "out", "--executor", "ray", "--workers", "2")
    done = subprocess.run(
        [*ALONE, sys.executable, "-W", "ignore", "-c", KILLING, *RUN, *ray], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert (here / "killed").exists()
    assert "11 of 11 rows" in done.stdout
    assert digest(here / "out") == digest(here / "whole")


def test_without_ray_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs.write_data(tmp_path / "data.jsonl")
    go_to(tmp_path, monkeypatch, **jobs.files())
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main([*RUN, "--executor", "ray", "--out", "out"]) == 2
    assert "--executor ray needs Ray: pip install 'ppl-align[ray]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists(), "bad input leaves nothing behind"
