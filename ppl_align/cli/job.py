"""``ppl-align run MODEL --data FILE``: a job over the rows of a data set, which goes on where it stopped."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ppl_align.cli.console import interrupted, note, plain_table, show, user_code, waiting, warn
from ppl_align.cli.job_progress import progress_of
from ppl_align.cli.plan import load_plan
from ppl_align.core.errors import InputError
from ppl_align.jobs.executors import Executor
from ppl_align.jobs.executors.process import Processes
from ppl_align.jobs.executors.serial import Serial
from ppl_align.jobs.export import export
from ppl_align.jobs.folder import SPEC, job_folder
from ppl_align.jobs.job import Job, Selection, grouped
from ppl_align.jobs.ledger import open_ledger
from ppl_align.jobs.merge import merge
from ppl_align.jobs.plan import DEFAULT_ENGINES, Asked, Plan
from ppl_align.jobs.spec import JobSpec
from ppl_align.jobs.summary import STANDINGS, counts, in_the_middle, shortened, standing_of, worst
from ppl_align.jobs.work import KEEP, Order, Worker

MAX_BATCH_TOKENS = 16_384
WHY = 650
"""Characters of why rows are not sound, all together: so the end fits on a screen of 24 lines."""
EXECUTORS = ("serial", "process", "ray")


@dataclass(frozen=True)
class JobOptions:
    """The options of a job, as they were typed. ``threads``: None: as it was begun, else as torch has them."""

    draws: int = 1
    all_runs: bool = False
    max_batch_tokens: int = MAX_BATCH_TOKENS
    threads: int | None = None
    executor: str = "serial"
    workers: int | None = None
    retries: int = 0
    reward_concurrency: int | None = None
    fail_fast: bool = False
    limit: int | None = None
    rows: str | None = None
    shard: str | None = None
    keep: str = "all"
    escalate: int = 1

    def check(self) -> None:
        """Raises ``InputError`` for what cannot be."""
        if os.name == "nt":
            raise InputError("jobs (--data) run on Linux and macOS, not on Windows: use WSL")
        if self.executor not in EXECUTORS:
            raise InputError(f"--executor {self.executor}: choose {', '.join(EXECUTORS)}")
        if self.keep not in KEEP:
            raise InputError(f"--keep {self.keep}: choose {', '.join(KEEP[:-1])} or {KEEP[-1]}")
        if self.executor == "serial" and self.workers not in (None, 1):
            raise InputError(f"--workers {self.workers} goes with --executor process or ray")

    @property
    def selection(self) -> Selection:
        keys = tuple(key.strip() for key in (self.rows or "").split(",") if key.strip())
        if self.rows is not None and not keys:
            raise InputError("--rows KEY,... names no row")
        return Selection(self.limit, keys, self._shard)

    @property
    def _shard(self) -> tuple[int, int]:
        if self.shard is None:
            return 1, 1
        which, slash, many = self.shard.partition("/")
        if not slash or not which.isdecimal() or not many.isdecimal():
            raise InputError(f"--shard {self.shard}: write I/N, say 2/8")
        return int(which), int(many)


def run_job(asked: Asked, engines: Sequence[str], out: Path | None, force: bool, as_json: bool, how: JobOptions) -> int:
    """Check everything, then go on where the job stopped; returns the exit code."""
    how.check()
    selection = how.selection
    plan = load_plan(asked, engines or DEFAULT_ENGINES)
    with _place(out) as root:
        threads = how.threads or (None if force else _begun_with(root)) or torch.get_num_threads()
        spec = JobSpec.of(plan, threads, how.max_batch_tokens, how.draws, how.all_runs, how.escalate)
        with waiting("looking at the rows"), user_code():
            groups = grouped(plan, how.max_batch_tokens, selection.shard)
        wanted = selection.rows(_rows(plan)) & {row for group in groups for row in group.rows}
        executor = _executor(plan, engines, threads, how)
        if out is None:
            note(
                "nothing of this will be kept: with --out DIR there are completions, and the job goes on where it stops"
            )
        folder, goes_on = job_folder(root, spec, force)
        with open_ledger(folder.ledger) as ledger:
            folder.clear_scratch()
            job = Job(plan, groups, folder, ledger, wanted)
            if goes_on:
                rows = job.summaries()
                again = sum(bool(row.get("again")) for row in rows)
                tried = f", {again} failed and are tried again" if again else ""
                note(f"going on in {root}: {len(rows) - again} of {len(wanted)} rows are there{tried}")
            return _run(job, executor, out, as_json, how.fail_fast)


def _run(job: Job, executor: Executor, out: Path | None, as_json: bool, fail_fast: bool) -> int:
    code = 0
    try:
        with user_code(), progress_of() as tell:
            job.run(executor, tell, warn, fail_fast)
    except KeyboardInterrupt:
        code = interrupted(f"{len(job.summaries())} of {len(job.wanted)} rows are there; the same command goes on")
    with user_code():
        rows = job.deliver()
    show(JobEnd(rows, len(job.wanted | {row["number"] for row in rows}), out), as_json)
    return code or int(any("error" in row for row in rows))


def _executor(plan: Plan, engines: Sequence[str], threads: int, how: JobOptions) -> Executor:
    assert plan.header is not None
    order = Order(
        plan.asked,
        tuple(engines or DEFAULT_ENGINES),
        plan.header,
        how.draws,
        how.all_runs,
        threads,
        how.keep,
        how.retries,
        how.reward_concurrency,
        how.escalate,
        how.max_batch_tokens,
    )
    if how.executor == "serial":
        return Serial(Worker(order, plan))
    if how.executor == "process":
        return Processes(order, how.workers or 1)
    from ppl_align.jobs.executors.ray import OnRay

    return OnRay(order, how.workers or 1)


def _rows(plan: Plan) -> Any:
    assert plan.rows is not None
    return plan.rows


def _begun_with(root: Path) -> int | None:
    """The threads that a job was begun with: who goes on need not know."""
    return JobSpec.load(root / SPEC).threads if (root / SPEC).is_file() else None


@contextlib.contextmanager
def _place(out: Path | None) -> Iterator[Path]:
    """The folder of a job; one that is gone at the end, where nobody wants to keep it."""
    if out is not None:
        yield out
        return
    with tempfile.TemporaryDirectory(prefix="ppl-align-") as scratch:
        yield Path(scratch) / "job"


def export_job(root: Path, form: str, out: Path | None) -> int:
    """Write a data set to train on; returns the exit code."""
    found = export(root, form)
    path = root / f"{form}.jsonl" if out is None else out
    found.write(path)
    note(f"{len(found.examples)} examples in {path}")
    for line in found.notes:
        note(line)
    return 0


def merge_jobs(shards: Sequence[Path], out: Path, force: bool, as_json: bool) -> int:
    """Put shards together; returns the exit code."""
    rows, total = merge(shards, out, force)
    show(JobEnd(rows, total, out), as_json)
    if len(rows) < total:
        note(
            f"{total - len(rows)} rows are missing: a shard was not named, or is not done; merge again with all of them"
        )
    return int(len(rows) < total or any("error" in row for row in rows))


@dataclass
class JobEnd:
    """What a job says at its end, on one screen: ``rows``, summaries of those that are done, of ``total``."""

    rows: list[dict[str, Any]]
    total: int
    out: Path | None

    def to_json(self) -> str:
        """``{"standings": {...}, "rows": [summary, ...]}``."""
        return json.dumps({"standings": counts(self.rows), "rows": self.rows}, indent=2, ensure_ascii=False)

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        found = counts(self.rows)
        said = ", ".join(f"{found[standing]} {standing}" for standing in STANDINGS if found[standing])
        yield f"{len(self.rows)} of {self.total} rows{': ' if said else ''}{said}"
        more = [row for row in self.rows if row.get("times", 1) > 1]
        if more:
            yield f"{len(more)} took more particles than at first: {counts(more)['sound']} of these are sound now"
        again = sum(bool(row.get("again")) for row in self.rows)
        if again and self.out is not None:
            yield f"the same command tries {again} of the rows that failed again"
        yield from self._without()
        bad = worst(self.rows)
        if bad:
            table = plain_table()
            table.add_column("row", overflow="fold", max_width=16)
            table.add_column("prompt", no_wrap=True, max_width=16)
            table.add_column("standing", no_wrap=True)
            table.add_column("why, and what to do", overflow="fold")
            for row in bad:
                why = in_the_middle(_why(row), WHY // len(bad))
                table.add_row(row["row"], row["prompt"], standing_of(row), why)
            yield "\nLook at these first:"
            yield table
        if self.out is not None:
            some = len(self.rows) > found["failed"]
            tables = f"completions: {self.out / 'completions.parquet'}, .csv; " if some else ""
            yield f"\n{tables}all rows: {self.out / 'report.html'}"

    def _without(self) -> Iterator[str]:
        """Engines that found nothing of rows of which others did."""
        failed: dict[str, list[str]] = {}
        for row in self.rows:
            for name, error in row.get("failed", {}).items():
                failed.setdefault(name, []).append(f"row {row['row']}: {error.removeprefix('error: ')}")
        for name, errors in failed.items():
            yield f"{name} found nothing of {len(errors)} rows, which others did; {shortened(errors[0], 240)}"


def _why(row: dict[str, Any]) -> str:
    """In a few words: its report has the rest."""
    if "error" in row:
        return str(row["error"]).removeprefix("error: ")
    why = "" if row["standing"] == "unconfirmed" else row["verdict"].removeprefix("No run can be trusted: ")
    return " ".join(filter(None, (why, row["remedy"])))
