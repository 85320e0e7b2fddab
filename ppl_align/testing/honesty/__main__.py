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
from pathlib import Path
from typing import Any

import torch

from ppl_align.files import written_beside
from ppl_align.testing.honesty import coverage, greens
from ppl_align.testing.honesty.coverage import Cells
from ppl_align.testing.honesty.page import page
from ppl_align.testing.honesty.problems import KINDS

SEEDS, SVI_SEEDS = 1000, 200
_MOST_ROUNDS = 400


def main() -> None:
    """Parse, measure, write."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--particles", type=int, default=256)
    arguments.add_argument("--replicates", type=int, default=4, help="of the runs that are judged")
    arguments.add_argument("--share", type=float, default=1.0, help="of the seeds and runs: less is sooner")
    arguments.add_argument("--state", type=Path, default=Path("runs/honesty"))
    arguments.add_argument("--page", type=Path, default=None, help="write the tables there; else they are printed")
    asked = arguments.parse_args()
    state = asked.state / f"seed{asked.seed}-n{asked.particles}-r{asked.replicates}-share{asked.share:g}"
    state.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with ProcessPoolExecutor(max_workers=os.cpu_count(), initializer=_quiet) as pool:
        cells = _coverage(asked, state, pool, began)
        found = _greens(asked, state, pool, began)
    options = f"--seed {asked.seed} --particles {asked.particles}" + (
        "" if asked.share == 1 else f" --share {asked.share:g}"
    )
    settings = {
        "seeds": _part(SEEDS, asked.share),
        "svi_seeds": _part(SVI_SEEDS, asked.share),
        "particles": asked.particles,
        "replicates": asked.replicates,
        "most": _part(greens.MOST_RUNS, asked.share),
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


def _coverage(
    asked: Any, state: Path, pool: ProcessPoolExecutor, began: float
) -> dict[tuple[str, str], coverage.Cells]:
    waiting: dict[tuple[str, str], Any] = {}
    for engine in coverage.ENGINES:
        for kind in KINDS:
            seeds = _part(SVI_SEEDS if engine == "svi" else SEEDS, asked.share)
            work = (coverage.measure, engine, kind, seeds, asked.particles, asked.seed)
            waiting[engine, kind] = _submit(pool, state / f"coverage-{engine}-{kind}.json", *work)
    cells: dict[tuple[str, str], Cells] = {}
    for (engine, rewards), result in waiting.items():
        cells[engine, rewards] = Cells.from_dict(result())
        print(f"{time.monotonic() - began:6.0f} s  coverage of {engine}, {rewards} rewards", flush=True)
    return cells


def _greens(asked: Any, state: Path, pool: ProcessPoolExecutor, began: float) -> greens.Greens:
    found, at_once = greens.Greens(), os.cpu_count() or 1
    most = _part(greens.MOST_RUNS, asked.share)
    for first in range(0, _MOST_ROUNDS, at_once):
        wanted = {kind: found.unsettled(kind, most) for kind in KINDS}
        if not any(wanted.values()):
            break
        results = []
        for at in range(first, first + at_once):
            for kind in KINDS:
                if wanted[kind]:
                    sizes = (asked.particles, asked.replicates)
                    work = (greens.round_of, 10_000 * asked.seed + at, kind, *sizes, sorted(wanted[kind]))
                    results.append(_submit(pool, state / f"greens-{kind}-{at}.json", *work))
        for result in results:
            found.add(greens.Greens.from_dict(result()))
        print(f"{time.monotonic() - began:6.0f} s  green lights, round {first + at_once}", flush=True)
    return found


def _submit(pool: ProcessPoolExecutor, path: Path, work: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    """What was measured before, or will be: ``arguments`` are part of it."""
    key = repr(arguments)
    if path.is_file():
        saved = json.loads(path.read_text(encoding="utf-8"))
        if saved["arguments"] == key:
            return lambda: saved["found"]
    future = pool.submit(work, *arguments)

    def result() -> Any:
        found = future.result().as_dict()
        with written_beside(path) as temporary:
            temporary.write_text(json.dumps({"arguments": key, "found": found}), encoding="utf-8")
        return found

    return result


if __name__ == "__main__":
    main()
