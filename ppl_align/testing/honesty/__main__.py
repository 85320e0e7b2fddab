"""``python -m ppl_align.testing.honesty``: measure coverage and false greens, and write the page.

Resumable: what is measured lies in ``--state``, a file for each part, and is not measured again.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import torch

from ppl_align.core.files import written_beside
from ppl_align.testing.honesty import coverage, greens
from ppl_align.testing.honesty.coverage import Cells
from ppl_align.testing.honesty.groups import of_chains
from ppl_align.testing.honesty.page import page
from ppl_align.testing.honesty.problems import KINDS

_MOST_ROUNDS = 400
_SLOW = ("rejection", "svi")
_KEPT_APART = {
    "greens": tuple(d for d in greens.DIAGNOSTICS if d not in (*_SLOW, *greens.FAR, greens.ESCALATED)),
    "slow-greens": _SLOW,
    "escalated": (greens.ESCALATED,),
    "far-greens": greens.FAR,
}
"""What is measured together, so that two cores have as much to do."""
_SMALL = {"far-greens": {"graded": 10, "rare": 5}}
"""Problems of a round, where fewer runs are wanted than a round of all brings."""


def main() -> None:
    """Parse, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--particles", type=int, default=256, help="of each replicate of the runs that are judged")
    parser.add_argument("--replicates", type=int, default=4, help="of the runs that are judged")
    parser.add_argument("--share", type=float, default=1.0, help="of the seeds and runs: less is sooner")
    parser.add_argument("--state", type=Path, default=Path("runs/honesty"))
    parser.add_argument("--page", type=Path, default=None, help="write the tables there; else they are printed")
    asked = parser.parse_args()
    asked.state /= f"seed{asked.seed}-share{asked.share:g}"
    asked.state.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(max_workers=os.cpu_count(), initializer=_quiet) as pool:
        parts = _Parts(asked.state, pool)
        cells = _coverage(asked, parts)
        found = _greens(asked, parts)
    options = f"--seed {asked.seed} --particles {asked.particles} --replicates {asked.replicates}" + (
        "" if asked.share == 1 else f" --share {asked.share:g}"
    )
    settings = {
        "seeds": _part(coverage.SEEDS, asked.share),
        "fewer": ", ".join(f"{name} {_part(seeds, asked.share)}" for name, seeds in coverage.FEWER.items()),
        "longest": coverage.LONGEST_DEAR,
        "each": ", ".join(f"{n} {e.num_particles}" for n, e in coverage.ENGINES.items() if not of_chains(e)),
        "states": ", ".join(f"{n} {e.num_samples}" for n, e in coverage.ENGINES.items() if of_chains(e)),
        "pilot": coverage.TOGETHER,
        "particles": asked.particles,
        "replicates": asked.replicates,
        "most": _part(greens.MOST_RUNS, asked.share),
        "dear": ", ".join(f"{d} {greens.most_runs(d, _part(greens.MOST_RUNS, asked.share))}" for d in greens.DEAR),
        "greens": greens.wanted_greens(_part(greens.MOST_RUNS, asked.share)),
        "max_draws": greens.ENGINES["rejection"].max_draws,
        "first": greens.first_round(asked.particles),
        "budget": greens.BUDGET,
        "svi_steps": greens.ENGINES["svi"].num_steps,
        "minutes": round(parts.cpu / 60),
        "tempered": greens.ENGINES["tempered"].num_particles,
        "chains": ", ".join(
            f"{n} {e.num_chains} of {e.num_samples}" for n, e in greens.ENGINES.items() if of_chains(e)
        ),
    }
    text = page(f"python -m ppl_align.testing.honesty {options}", cells, found, settings)
    if asked.page is None:
        print(text)
        return
    with written_beside(asked.page) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _quiet() -> None:
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)  # what runs notice of their programs


def _part(count: int, share: float) -> int:
    return max(1, math.ceil(count * share))


def _coverage(asked: Any, parts: _Parts) -> dict[tuple[str, str], coverage.Cells]:
    waiting: dict[tuple[str, str], Any] = {}
    for name, engine in coverage.ENGINES.items():
        for kind in KINDS:
            seeds = _part(coverage.FEWER.get(name, coverage.SEEDS), asked.share)
            work = (coverage.measure, name, engine, kind, seeds, asked.seed)
            waiting[name, kind] = parts.submit(f"coverage-{name}-{kind}", *work)
    cells: dict[tuple[str, str], Cells] = {}
    for (name, rewards), result in waiting.items():
        cells[name, rewards] = Cells.from_dict(result())
        parts.say(f"coverage of {name}, {rewards} rewards")
    return cells


def _greens(asked: Any, parts: _Parts) -> greens.Greens:
    found, at_once = greens.Greens(), os.cpu_count() or 1
    most, sizes = _part(greens.MOST_RUNS, asked.share), (asked.particles, asked.replicates)
    for first in range(0, _MOST_ROUNDS, at_once):
        wanted = {kind: sorted(found.unsettled(kind, most)) for kind in KINDS}
        if not any(wanted.values()):
            break
        results = []
        for at in range(first, first + at_once):
            for kind, (name, diagnostics) in product(KINDS, _KEPT_APART.items()):
                rows = [row for row in wanted[kind] if row[0] in diagnostics]
                if rows:
                    problems = (_SMALL[name][kind],) if name in _SMALL else ()
                    work = (greens.round_of, 10_000 * asked.seed + at, kind, *sizes, rows, *problems)
                    part = f"{name}-n{sizes[0]}-r{sizes[1]}-{kind}-{at}"
                    results.append(parts.submit(part, *work, engines=greens.ENGINES))
        for result in results:
            found.add(greens.Greens.from_dict(result()))
        parts.say(f"green lights, round {first + at_once}, {sum(map(len, wanted.values()))} rows wanted more runs")
    return found


class _Parts:
    """What is measured, a file for each part in ``folder``; what was measured before is read."""

    def __init__(self, folder: Path, pool: ProcessPoolExecutor) -> None:
        self.folder, self.pool, self.began, self.cpu = folder, pool, time.monotonic(), 0.0

    def say(self, what: str) -> None:
        print(f"{time.monotonic() - self.began:6.0f} s  {what}", flush=True)

    def submit(self, name: str, work: Callable[..., Any], *arguments: Any, engines: Any = None) -> Callable[[], Any]:
        """The part ``name``: it is measured anew with other ``arguments``, or where ``engines`` have other settings."""
        path, key = self.folder / f"{name}.json", repr((arguments, engines))
        saved = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        future = None if saved.get("arguments") == key else self.pool.submit(_timed, work, *arguments)

        def result() -> Any:
            part = saved
            if future is not None:
                found, cpu = future.result()
                part = {"arguments": key, "found": found.as_dict(), "cpu": cpu}
                with written_beside(path) as temporary:
                    temporary.write_text(json.dumps(part), encoding="utf-8")
            self.cpu += part["cpu"]
            return part["found"]

        return result


def _timed(work: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    began = time.process_time()
    return work(*arguments), time.process_time() - began


if __name__ == "__main__":
    main()
