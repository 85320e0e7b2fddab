"""The contract of engines, where many are held to it on the same programs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from ppl_align import Engine
from ppl_align.testing import PROGRAMS, Oracle
from ppl_align.testing.checks import CHECKS, STATISTICAL
from ppl_align.testing.contract import Case
from ppl_align.testing.report import Report
from ppl_align.testing.statistics import RATE

FILES = "importance"
"""The engine whose runs are saved and shown to ArviZ, which takes longer than all else: how a program's sites are kept
in a file is the same for all engines, and test_engines.py looks at one of each."""


@lru_cache
def oracle_of(name: str) -> Oracle:
    """Of a program of :mod:`ppl_align.testing`, enumerated once for all tests."""
    return Oracle(PROGRAMS[name])


def contract_of(
    engine: Engine, programs: Mapping[str, Callable[..., Any] | Oracle], seed: int = 0, num_replicates: int = 300
) -> Report:
    """``check_engine``, with files for one engine only."""
    level = RATE / (len(STATISTICAL) * len(programs))
    checks = [check for check in CHECKS if check != "arviz" or engine.name == FILES]
    results = []
    for name, program in programs.items():
        oracle = program if isinstance(program, Oracle) else Oracle(program)
        results += Case(engine, name, oracle, seed, num_replicates, level).results(checks)
    return Report(f"contract of {engine.name}", results)
