"""The work on a group of rows: every engine on all of them, in one batch; what comes of it, as files and lines."""

from __future__ import annotations

import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ppl_align.core.cost import Cost, measure
from ppl_align.core.errors import InputError, ModelError
from ppl_align.core.listening import listening
from ppl_align.core.progress import Report, silent
from ppl_align.core.turns import Turns
from ppl_align.diagnostics.comparison import Comparison, compare
from ppl_align.engines.base import Engine
from ppl_align.jobs.delivered import Line, best_of, lines_of, lines_of_prior
from ppl_align.jobs.escalation import Attempt, rounds, widths
from ppl_align.jobs.groups import in_groups
from ppl_align.jobs.plan import Asked, Plan, Target, make_plan
from ppl_align.jobs.rows import Header, Row
from ppl_align.jobs.serving import serve
from ppl_align.jobs.summary import last_words, summary
from ppl_align.posterior import Posterior
from ppl_align.rewards.waiting import patience

KEEP = ("all", "posteriors", "reports", "none")
"""What may be kept of each row besides its completions."""


@dataclass(frozen=True)
class Order:
    """What a worker is told once: how to do any group.

    ``asked``, ``engines``, ``header``: what is run on which data; ``draws``, ``all_runs``: what is delivered of a row;
    ``threads`` of torch; ``keep``: what is kept of a row besides, one of :data:`KEEP`; ``retries``, ``concurrency``: of
    rewards (:func:`~ppl_align.rewards.waiting.patience`); ``escalate``: rows that are not sound may take so many times
    the particles (:mod:`ppl_align.jobs.escalation`), ``max_batch_tokens`` at a time"""

    asked: Asked
    engines: tuple[str, ...]
    header: Header
    draws: int = 1
    all_runs: bool = False
    threads: int = 1
    keep: str = "all"
    retries: int = 0
    concurrency: int | None = None
    escalate: int = 1
    max_batch_tokens: int = 1


@dataclass
class RowResult:
    """What came of a row: the ``lines`` to deliver, a ``summary`` of it (JSON-able), and ``files`` by relative path.

    ``error``: one line, where it failed; ``again``: another try may end otherwise (a service was away)"""

    number: int
    key: str
    prompt: str
    lines: list[Line] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    error: str | None = None
    again: bool = False

    def as_summary(self) -> dict[str, Any]:
        """The summary with the row's number; of one that failed, its error instead."""
        if self.error is not None:
            failed = {"error": self.error, "again": self.again}
            return {"number": self.number, "row": self.key, "prompt": self.prompt, **failed}
        return {"number": self.number, "row": self.key, "prompt": self.prompt, **self.summary}


@dataclass
class GroupResult:
    """What came of a group, what it took, and what models and engines ``said`` (warnings, a line each)."""

    rows: list[RowResult]
    seconds: float
    cost: Cost
    said: list[str] = field(default_factory=list)


def lost(order: Order, rows: Sequence[tuple[int, Row]], why: str) -> GroupResult:
    """The result of a group whose worker did not come back."""
    header = order.header
    failed = [_of_row(header, number, row) for number, row in rows]
    for result in failed:
        result.error, result.again = f"error: {header.where(result.number)}: {why}", True
    return GroupResult(failed, 0.0, Cost())


def _in_round(progress: Report, number: int) -> Report:
    """Says that it is a round after the first."""
    return lambda done, total, note: progress(done, total, f"round {number}: {note}")


def _of_row(header: Header, number: int, row: Row) -> RowResult:
    return RowResult(number, header.key_of(number, row), last_words(row["prompt"]))


class Worker:
    """Does groups of rows, one after the other; has loaded model and engines once."""

    def __init__(self, order: Order, plan: Plan | None = None) -> None:
        self.order = order
        self.plan = make_plan(order.asked, order.engines, order.header) if plan is None else plan

    def do(self, rows: Sequence[tuple[int, Row]], progress: Report = silent) -> GroupResult:
        """The results of rows ``(number, row)`` that share their batch."""
        started, threads = time.perf_counter(), torch.get_num_threads()
        torch.set_num_threads(self.order.threads)
        said: list[str] = []
        waits = patience(self.order.retries, concurrency=self.order.concurrency)
        try:
            with measure() as cost, waits, listening(said.append):
                results = self._results(rows, progress)
        finally:
            torch.set_num_threads(threads)
        return GroupResult(results, time.perf_counter() - started, cost, said)

    def _results(self, rows: Sequence[tuple[int, Row]], progress: Report) -> list[RowResult]:
        attempts: dict[int, Attempt] = {}
        done = {number: _of_row(self.order.header, number, row) for number, row in rows}
        for number, row in rows:
            try:
                attempts[number] = Attempt(self.plan.target(number, row))
            except InputError as error:
                done[number].error = f"error: {error}"
        for round_, times in enumerate(rounds(self.order.escalate)):
            going = [one for one in attempts.values() if round_ == 0 or one.wants_more]
            for one in going:
                one.times += times
            for name in self.plan.engines if going else ():
                self._run([one for one in going if not one.grave], name, round_, times, progress)
        for number, attempt in attempts.items():
            self._finish(done[number], attempt)
        return list(done.values())

    def _run(self, attempts: Sequence[Attempt], name: str, round_: int, times: int, progress: Report) -> None:
        """One round of one engine: ``times`` the particles that it is set to, for all of ``attempts``."""
        engine, most = self.plan.engines[name], self.order.max_batch_tokens
        runs: list[tuple[Attempt, Any, int]] = []
        sizes: list[int] = []
        for attempt in attempts:
            # In the first round the rows are a batch as they are: that is what a group is.
            each = engine.texts_at_once * self.plan.tokens(attempt.target) if round_ else 0
            for part, width in enumerate(widths(times, most // each if each else times)):
                more = attempt.next(name, engine, width)
                if more is not None:
                    runs.append((attempt, more, attempt.seed(round_, part)))
                    sizes.append(width * each)
        for batch in in_groups(sizes, most):
            together = [runs[at] for at in batch.rows]
            told = progress if not round_ else _in_round(progress, round_ + 1)
            works = [self._work(more, attempt.target, seed, told) for attempt, more, seed in together]
            for (attempt, more, _), outcome in zip(together, Turns(serve).run(works), strict=True):
                attempt.note(name, more, outcome)

    def _work(self, engine: Engine, target: Target, seed: int, progress: Report) -> Callable[[], Posterior]:
        model = self.plan.model
        return lambda: engine.run(model, *target.args, seed=seed, progress=progress, **target.kwargs)

    def _finish(self, result: RowResult, attempt: Attempt) -> None:
        """What the engines found, or why there is nothing to deliver: an error that others would meet, too."""
        target, failed, runs = attempt.target, attempt.failed, attempt.runs
        if self.order.asked.debug:
            for error in failed.values():
                print("".join(traceback.format_exception(error)), end="", file=sys.stderr)
        errors = {name: self.plan.explain(target, error) for name, error in failed.items()}
        if attempt.grave or not runs:
            result.error = errors[(attempt.grave or list(errors))[0]]
            result.again = any(not isinstance(failed[name], (InputError, ModelError)) for name in attempt.grave)
            return
        try:
            compared = compare(runs)
            best = best_of(runs, compared.advice)
            for name in runs if self.order.all_runs else [best]:
                result.lines += lines_of(target, name, runs[name], compared.advice, self.order.draws)
            result.lines += lines_of_prior(target, runs, compared.advice, self.order.draws)
            result.summary = summary(compared, best, attempt.times) | ({"failed": errors} if errors else {})
            result.files = self._files(compared)
        except Exception as error:
            result.error, result.again = self.plan.explain(target, error), True

    def _files(self, compared: Comparison) -> dict[str, bytes]:
        """The posteriors, and the comparison with its report."""
        with tempfile.TemporaryDirectory(prefix="ppl-align-") as scratch:
            folder = Path(scratch)
            if self.order.keep in ("all", "posteriors"):
                for name, run in compared.runs.items():
                    run.save(folder / f"{name}.nc")
            if self.order.keep in ("all", "reports"):
                compared.save(folder)
            return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
