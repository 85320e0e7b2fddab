"""Which engine reaches what, at what price: the errors of log Z and of a mean against LM tokens, half a nat to thirty.

    python benchmarks/frontier.py [--only NAME] [--toys] [--page docs/frontier.md]

Each engine runs at one or two sizes, several independent replicates of each; tokens are all positions that the network
has read for a replicate (drawn, scored, prompts; of tempered SMC its share of the pilot). On toys, where most texts
begin alike, they are counted before what begins alike is read once. An hour on two cores. What has been run is kept in
``--out`` and not run again; ``--page`` writes the page of what is there.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from frontier_targets import TARGETS, Answer, Target, infill_of
from torch import Tensor

from ppl_align import Engine, Posterior
from ppl_align.core.errors import PplAlignError
from ppl_align.core.files import written_beside
from ppl_align.lm.decoding import Population
from ppl_align.particles.weights import log_mean_exp

SEED = 1
WANTED = 0.1
"""Nats: the error of log Z for which tokens are named."""
FAR = 8.0
"""Nats of KL(p* || p0) from which on importance sampling is out of reach."""


def main() -> None:
    """Run what is missing, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="targets whose name holds this")
    parser.add_argument("--toys", action="store_true", help="targets with exact answers only")
    parser.add_argument("--out", type=Path, default=Path("build/frontier"))
    parser.add_argument("--page", type=Path)
    how = parser.parse_args()
    how.out.mkdir(parents=True, exist_ok=True)
    for name, target in TARGETS.items():
        if how.only in name and (target.answer is not None or not how.toys):
            for row in rows_of(name, target, how.out):
                print(line_of(name, row), flush=True)
    if how.page is not None:
        from frontier_page import write

        write(how.page, {name: rows_of(name, target, how.out, run=False) for name, target in TARGETS.items()})


def rows_of(name: str, target: Target, out: Path, run: bool = True) -> list[dict[str, Any]]:
    """A row for each engine and size: run now, or long ago."""
    rows = []
    for label, engines in target.engines(target.replicates).items():
        for engine in engines:
            key = hashlib.sha256(f"{name} {target.args} {label} {engine!r} {SEED}".encode()).hexdigest()[:16]
            path = out / f"{key}.json"
            if not path.exists() and run:
                found = {"target": name, "engine": label, "config": repr(engine), **measured(name, target, engine)}
                with written_beside(path) as temporary:
                    temporary.write_text(json.dumps(found))
            if path.exists():
                rows.append(json.loads(path.read_text()))
    return rows


def measured(name: str, target: Target, engine: Engine) -> dict[str, Any]:
    """What one run of R replicates has found: by replicate log Zhat (None for chains) and the mean of the reward."""
    kwargs = infill_of(SEED).arguments if name == "infilling" else {}
    began = time.perf_counter()
    try:
        with positions() as asked:
            run = engine.run(target.model, *target.args, seed=SEED, **kwargs)
    except PplAlignError as error:
        return {"failed": str(error), "seconds": time.perf_counter() - began}
    cost = run.cost
    decoded = cost.lm_tokens if target.answer is None else sum(asked)
    return {
        "tokens": (decoded + cost.scored_tokens + cost.prompt_tokens) / target.replicates,
        "seconds": cost.seconds,
        "log_evidence": run.log_evidence.tolist() if run.kind.has_evidence else None,
        "mean": means(run, target.of).tolist() if target.of else None,
        "log_weight_mean": log_weight_means(run).tolist(),
    }


@contextmanager
def positions() -> Iterator[list[int]]:
    """How many texts go on to read a token, at each step of each population in the block."""
    counts: list[int] = []
    advance = Population.advance

    def counted(self: Population) -> None:
        advance(self)
        counts.append(int(self.running.sum()))

    Population.advance = counted  # type: ignore[method-assign]
    try:
        yield counts
    finally:
        Population.advance = advance  # type: ignore[method-assign]


def means(run: Posterior, reward: str) -> Tensor:
    """E[r] of each replicate, [R]."""
    share = torch.softmax(run.log_weight, -1).nan_to_num(0.0)
    return (share * run.rewards[reward]).sum(-1)


def log_weight_means(run: Posterior) -> Tensor:
    """E[log w] of each replicate, [R] nats: minus log Z it is KL(p* || p0)."""
    share = torch.softmax(run.log_weight, -1).nan_to_num(0.0)
    psi = torch.stack([value.double() for value in run.factors.values()]).sum(0)
    return torch.where(share > 0, share * psi, 0.0).sum(-1)


def line_of(name: str, row: dict[str, Any]) -> str:
    """For the terminal."""
    if "failed" in row:
        return f"{name:20} {row['engine']:28} {row['failed'][:60]}"
    log_z = row["log_evidence"]
    spread = "" if log_z is None else f"log Z {float(log_mean_exp(torch.tensor(log_z))):8.3f}"
    return f"{name:20} {row['engine']:28} {row['tokens']:12,.0f} tokens {row['seconds']:7.1f} s  {spread}"


def reference(target: Target, rows: list[dict[str, Any]]) -> Answer:
    """The exact answer; else of what was run the best: E[log Zhat] is never above log Z, so that the engine with the
    largest mean of log Zhat has seen most."""
    if target.answer is not None:
        return target.answer()
    known = [row for row in rows if row.get("log_evidence")]
    best = max(known, key=lambda row: sum(row["log_evidence"]) / len(row["log_evidence"]))
    log_z = torch.tensor(best["log_evidence"], dtype=torch.float64)
    share = torch.softmax(log_z, -1)
    value = float(log_mean_exp(log_z))
    mean = math.nan if best["mean"] is None else float((share * torch.tensor(best["mean"]).double()).sum())
    psi = float((share * torch.tensor(best["log_weight_mean"]).double()).sum())
    return Answer(value, mean, psi - value)


def error(found: list[float] | None, truth: float) -> float:
    """Root mean square error over replicates; infinite where one of them is dead."""
    if found is None:
        return math.nan
    off = torch.tensor(found, dtype=torch.float64) - truth
    return float(off.square().mean().sqrt())


if __name__ == "__main__":
    sys.exit(main())
