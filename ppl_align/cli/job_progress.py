"""How far a job is: a live table on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.live import Live
from rich.table import Table

from ppl_align.cli.console import err, note
from ppl_align.jobs.job import Progress
from ppl_align.jobs.summary import STANDINGS, counts

EVERY = 10.0
"""Seconds between two lines where there is no terminal."""
PICTURE = 0.25
"""Seconds between two pictures on one."""


@contextmanager
def progress_of() -> Iterator[Callable[[Progress], None]]:
    """A function to tell how far the job is."""
    if not err.is_terminal:
        yield _lines()
        return
    with Live(Table(), console=err, transient=True, refresh_per_second=4, redirect_stdout=False) as live:
        last = 0.0

        def tell(progress: Progress) -> None:
            nonlocal last
            if time.monotonic() - last >= PICTURE:  # it is told of every token of every row
                last = time.monotonic()
                live.update(_table(progress))

        yield tell


def _lines() -> Callable[[Progress], None]:
    last, said = time.monotonic(), 0

    def tell(progress: Progress) -> None:
        nonlocal last, said
        news = progress.new > said
        if (news and time.monotonic() - last >= EVERY) or (news and len(progress.rows) == progress.total):
            last, said = time.monotonic(), progress.new
            note(", ".join(f"{name} {value}" if name != "rows" else f"{value} rows" for name, value in facts(progress)))

    return tell


def facts(progress: Progress) -> list[tuple[str, str]]:
    """``(what, how much)``, each in a few characters."""
    found = [("rows", f"{len(progress.rows)}/{progress.total}")]
    left = progress.left
    if left is not None and progress.seconds > 0:
        found += [("ETA", _time(left)), ("tokens/s", f"{progress.lm_tokens / progress.seconds:,.0f}")]
    by_standing = counts(progress.rows)
    return found + [(name, str(by_standing[name])) for name in STANDINGS if by_standing[name]]


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _table(progress: Progress) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    known = facts(progress)
    for name, _ in known:
        table.add_column(name, justify="right")
    if progress.at_work:
        table.add_column("at work")
    table.add_row(*(value for _, value in known), *([progress.at_work] if progress.at_work else []))
    return table
