"""The child's side of the benchmark: load once, then answer one repetition per line of JSON.

Runs in any environment that has torch; the peers' environment knows nothing of ppl_align.

    parent -> child    the settings, then one request per repetition
    child  -> parent   {"ready": ...}, then one result per request
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn


@dataclass
class Outcome:
    """What one repetition produced: ids without the prompt, and where the contender has them the other numbers."""

    sequences: Sequence[Sequence[int]]
    log_z: float | None = None
    resamplings: int | None = None
    forward_seconds: float | None = None


class Contender(Protocol):
    """``network`` is where positions are counted; ``reset`` (untimed) forgets what an earlier repetition cached."""

    network: nn.Module

    def reset(self) -> None: ...

    def run(self, seed: int, particles: int, tokens: int) -> Outcome: ...


class Meter:
    """Calls of a network, rows times positions pushed through it, and the time inside it.

    ``synchronise`` waits for the device around every call: true times on CUDA, for a slower run."""

    def __init__(self, network: nn.Module) -> None:
        self.synchronise = False
        self.clear()
        network.register_forward_pre_hook(self._enter, with_kwargs=True)
        network.register_forward_hook(self._leave)

    def clear(self) -> None:
        self.forwards, self.positions, self.seconds, self.entered = 0, 0, 0.0, 0.0

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        ids = args[0] if args else kwargs["input_ids"]
        self.forwards += 1
        self.positions += ids.numel()
        self.entered = self._now()

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self.seconds += self._now() - self.entered

    def _now(self) -> float:
        if self.synchronise:
            torch.cuda.synchronize()
        return time.perf_counter()


class ResamplingCount:
    """How often a peer resampled: wraps the ``get_resampling_fn`` that its SMC module looks up."""

    def __init__(self, module: Any) -> None:
        self.calls = 0
        original = module.get_resampling_fn

        def counting(name: str) -> Callable[..., Any]:
            resample = original(name)

            def counted(weights: Any) -> Any:
                self.calls += 1
                return resample(weights)

            return counted

        module.get_resampling_fn = counting


class Memory:
    """MB beyond what was held when it was made, at the most: on the device, or resident (None where no system says)."""

    def __init__(self) -> None:
        self.on_cuda = torch.cuda.is_available()
        self.status = Path("/proc/self/status")
        if self.on_cuda:
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated() / 1e6
        elif self.status.exists():
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
            self.before = self._resident("VmRSS")

    def peak(self) -> float | None:
        if self.on_cuda:
            return torch.cuda.max_memory_allocated() / 1e6 - self.before
        return self._resident("VmHWM") - self.before if self.status.exists() else None

    def _resident(self, which: str) -> float:
        line = next(line for line in self.status.read_text().splitlines() if line.startswith(which))
        return int(line.split()[1]) * 1024 / 1e6


def _until_eos(row: Sequence[int], eos: int) -> tuple[int, ...]:
    """The ids that belong to a sequence, EOS included."""
    return tuple(row[: row.index(eos) + 1]) if eos in row else tuple(row)


def _repetition(contender: Contender, meter: Meter, eos: int, request: dict[str, Any]) -> dict[str, Any]:
    on_cuda = torch.cuda.is_available()
    contender.reset()
    meter.clear()
    meter.synchronise = bool(request["profile"]) and on_cuda
    memory = Memory()
    started = time.perf_counter()
    outcome = contender.run(request["seed"], request["particles"], request["tokens"])
    if on_cuda:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    rows = [_until_eos(list(row), eos) for row in outcome.sequences]
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        "seconds": seconds,
        "generated": sum(map(len, rows)),
        "unique": len(set(rows)),
        "forwards": meter.forwards,
        "positions": meter.positions,
        "forward_seconds": meter.seconds if outcome.forward_seconds is None else outcome.forward_seconds,
        "log_z": outcome.log_z,
        "resamplings": outcome.resamplings,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6,
        "beyond_mb": memory.peak(),
        "device_mb": torch.cuda.max_memory_allocated() / 1e6 if on_cuda else None,
    }


def serve(build: Callable[[dict[str, Any]], Contender]) -> None:
    """Answer the parent until it closes the pipe. What libraries print goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    settings = json.loads(sys.stdin.readline())
    contender = build(settings)
    meter = Meter(contender.network)
    _say(answers, {"ready": True, "threads": torch.get_num_threads()})
    for line in sys.stdin:
        _say(answers, _repetition(contender, meter, settings["eos_id"], json.loads(line)))


def _say(answers: Any, message: dict[str, Any]) -> None:
    answers.write(json.dumps(message) + "\n")
    answers.flush()
