"""``progress=True``: a bar on terminals and in notebooks, for whatever takes long. Elsewhere it shows nothing."""

from __future__ import annotations

import contextlib
import importlib
import io
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ppl_align.core.errors import InputError

Report = Callable[[int, int, str], None]
"""``report(done, total, note)``, called as the work goes on."""
_WIDTH = 24  # characters of the bar
_PAUSE = 0.2  # seconds between two pictures in a notebook


def silent(done: int, total: int, note: str) -> None:
    """A report that nobody wants."""


@contextlib.contextmanager
def reporting(progress: bool | Report | None, label: str) -> Iterator[Report]:
    """What a ``progress=`` argument asks for: True a bar, a function itself, False or None nothing.

    Raises ``InputError`` for anything else."""
    if progress is None or progress is False:
        yield silent
    elif progress is True:
        with _bar_here(label) as report:
            yield report
    elif callable(progress):
        yield progress
    else:
        raise InputError(f"progress is True, or a function of (done, total, note); got {progress!r}")


@contextlib.contextmanager
def bar(console: Console, label: str) -> Iterator[Report]:
    """A bar on this console, gone at the end. What is printed meanwhile appears above it."""
    with Progress(*_columns(), console=console, transient=True, redirect_stdout=sys.stdout.isatty()) as bars:
        task = bars.add_task(label, total=None, what="")
        yield lambda done, total, note: bars.update(task, completed=done, total=total, what=note)


def _bar_here(label: str) -> contextlib.AbstractContextManager[Report]:
    if _in_notebook():
        return _notebook_bar(label)
    console = Console(stderr=True)
    if console.is_terminal and not console.is_dumb_terminal:
        return bar(console, label)
    return contextlib.nullcontext(silent)


def _columns() -> tuple[Any, ...]:
    return (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=_WIDTH),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[what]}", markup=False),
    )


def _in_notebook() -> bool:
    """Is there a kernel that shows pictures? (IPython in a terminal is a terminal.)"""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None and hasattr(ipython, "get_ipython") else None
    return shell is not None and hasattr(shell, "kernel")


@contextlib.contextmanager
def _notebook_bar(label: str) -> Iterator[Report]:
    """The same bar as a picture that is drawn anew; needs nothing that a notebook has not (rich would: ipywidgets)."""
    shown = importlib.import_module("IPython.display")
    bars = Progress(*_columns(), console=Console(file=io.StringIO()), auto_refresh=False)
    task = bars.add_task(label, total=None, what="")
    handle = shown.display(shown.HTML(""), display_id=True)
    last = 0.0

    def report(done: int, total: int, note: str) -> None:
        nonlocal last
        bars.update(task, completed=done, total=total, what=note)
        if time.monotonic() - last >= _PAUSE:
            last = time.monotonic()
            handle.update(shown.HTML(_picture(bars)))

    try:
        yield report
    finally:
        handle.update(shown.HTML(""))


def _picture(bars: Progress) -> str:
    console = Console(file=io.StringIO(), record=True, width=100, force_jupyter=False, force_terminal=True)
    console.print(bars.get_renderable())
    return console.export_html(inline_styles=True, code_format='<pre style="margin:0">{code}</pre>')
