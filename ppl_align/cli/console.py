"""What the user sees: results on stdout, everything else (progress, notes, errors) on stderr."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console
from rich.table import Table

from ppl_align.core.errors import InputError
from ppl_align.core.listening import listening
from ppl_align.loading import error_line

err = Console(stderr=True, markup=False, highlight=False, emoji=False, soft_wrap=True)
_EVERY = 10.0  # seconds between two lines of progress where there is no terminal


class Told(int):
    """An exit code whose reason the user has been told."""


def interrupted(how_far: str) -> Told:
    """Say after Ctrl-C how far it came; returns the exit code."""
    note(f"interrupted: {how_far}")
    return Told(130)


def note(text: str) -> None:
    """One line for the user, on stderr."""
    err.print(" ".join(text.split()))


def show(result: Any, as_json: bool = False) -> None:
    """A result, on stdout: anything rich can draw, else its text; or its JSON."""
    if as_json:
        print(result.to_json())
    elif hasattr(result, "__rich__") or hasattr(result, "__rich_console__"):
        Console(markup=False, highlight=False, emoji=False).print(result)
    else:
        print(result)


def plain_table() -> Table:
    """Columns two spaces apart under bold headers."""
    return Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")


def report(error: BaseException, debug: bool, line: str = "") -> int:
    """Say what went wrong: one line (``line``, else the error's own), after the traceback if ``debug``; returns the
    exit code.

    2 for what can be mended before an engine starts, 1 for everything else."""
    if debug:
        import traceback

        err.print("".join(traceback.format_exception(error)), end="")
    err.print(line or error_line(error), style="red")
    return 2 if isinstance(error, InputError) else 1


@contextlib.contextmanager
def user_code() -> Iterator[None]:
    """Around models, rewards and engines: prints go to stderr, warnings and log records become one line each."""
    with listening(warn), contextlib.redirect_stdout(sys.stderr):
        yield


def warn(line: str) -> None:
    """What code of the user's has to say."""
    err.print(f"warning: {line}", style="yellow")


def waiting(what: str) -> contextlib.AbstractContextManager[Any]:
    """A spinner on a terminal, nothing elsewhere."""
    return err.status(f"{what} ...") if err.is_terminal else contextlib.nullcontext()


@contextlib.contextmanager
def progress(label: str) -> Iterator[Callable[[int, int, str], None]]:
    """``progress(done, total, note)``: a bar on a terminal, a line now and then elsewhere."""
    if not err.is_terminal:
        last = time.monotonic()

        def line(done: int, total: int, what: str) -> None:
            nonlocal last
            if time.monotonic() - last >= _EVERY:
                last = time.monotonic()
                note(f"{label}: {done}/{total} {what}")

        yield line
        return
    from ppl_align.core.progress import bar

    with bar(err, label) as report:
        yield report
