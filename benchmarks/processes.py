"""The parent's side: one process per contender, asked for one repetition at a time."""

from __future__ import annotations

import fcntl
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PEERS_PYTHON = HERE.parent / ".venv-peers" / "bin" / "python"


@dataclass(frozen=True)
class Entry:
    """A row of the table: a file of ``contenders/``, and what it is told besides the target."""

    key: str
    title: str
    file: str
    options: dict[str, Any] = field(default_factory=dict)
    peer: bool = False


OURS = {"engine": "smc", "prepack": True}
ENTRIES = [
    Entry("smc", "ppl-align SMC", "ours.py", OURS),
    Entry("smc-plain", "  without prepacked layers", "ours.py", {**OURS, "prepack": False}),
    Entry("importance", "ppl-align IS from the prior", "ours.py", {**OURS, "engine": "importance"}),
    Entry("generate", "transformers generate()", "generate.py"),
    Entry("genlm", "genlm-control, as it comes", "peer_genlm.py", {"options": {}, "cache_prompt": False}, peer=True),
    Entry(
        "genlm-tuned",
        "genlm-control, tuned",
        "peer_genlm.py",
        {"options": {"batch_size": 64, "timeout": 0.001}, "cache_prompt": True},
        peer=True,
    ),
    Entry("llamppl", "llamppl, as it comes", "peer_llamppl.py", peer=True),
]


class Machine:
    """Whether we have it to ourselves: two benchmarks at once on few cores slow each other down twenty times.

    Waits for another run of this benchmark to end; ``others()`` is the share of all cores that processes other
    than this one and its children used since then (None where the system does not say)."""

    def __init__(self) -> None:
        self.lock = (Path(tempfile.gettempdir()) / "ppl-align-benchmark.lock").open("w")
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("waiting for another benchmark on this machine to end", file=sys.stderr, flush=True)
            fcntl.flock(self.lock, fcntl.LOCK_EX)
        self.load = os.getloadavg()[0]
        self.before = self._busy(), self._own(), time.monotonic()

    def others(self) -> float | None:
        """To be asked when the children have ended."""
        self.lock.close()
        busy, own, now = self._busy(), self._own(), time.monotonic()
        if busy is None or self.before[0] is None:
            return None
        foreign = (busy - self.before[0]) - (own - self.before[1])
        return max(0.0, foreign / (now - self.before[2]) / (os.cpu_count() or 1))

    @staticmethod
    def _busy() -> float | None:
        """CPU seconds of the whole machine since it started: user, nice and system of Linux."""
        stat = Path("/proc/stat")
        if not stat.exists():
            return None
        return sum(map(int, stat.read_text().split("\n", 1)[0].split()[1:4])) / os.sysconf("SC_CLK_TCK")

    @staticmethod
    def _own() -> float:
        usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(usage.ru_utime + usage.ru_stime for usage in usages)


class Process:
    """A contender that has loaded its model and waits."""

    def __init__(self, entry: Entry, settings: dict[str, Any]) -> None:
        self.entry = entry
        python = str(PEERS_PYTHON) if entry.peer else sys.executable
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        self.child = subprocess.Popen(
            [python, "-W", "ignore", str(HERE / "contenders" / entry.file)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if not os.environ.get("BENCH_VERBOSE") else None,
            text=True,
            env=environment,
        )
        self.threads = self._ask({**settings, **entry.options})["threads"]

    def repeat(self, seed: int, particles: int, tokens: int, profile: bool = False) -> dict[str, Any]:
        return self._ask({"seed": seed, "particles": particles, "tokens": tokens, "profile": profile})

    def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
        assert self.child.stdin is not None
        assert self.child.stdout is not None
        try:
            self.child.stdin.write(json.dumps(message) + "\n")
            self.child.stdin.flush()
            line = self.child.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise SystemExit(
                f"{self.entry.title.strip()} died (exit code {self.child.wait()}): BENCH_VERBOSE=1 shows why"
            )
        return json.loads(line)

    def close(self) -> None:
        """Closing its stdin ends it."""
        if self.child.stdin is not None:
            self.child.stdin.close()
        try:
            self.child.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()
