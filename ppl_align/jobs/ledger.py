"""What a job has done so far, as an append-only file: it survives Ctrl-C, a full disk and kill -9.

One line of JSON for each event, on disk before it counts (``fsync``); one process writes. A line that a kill cut short
is the last one, and is taken off when the job goes on. Lines are plain text because a job is looked at while it runs
(``tail -f``), on file systems of clusters too, where the shared memory that SQLite's write-ahead log needs is missing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from ppl_align.core.errors import InputError, RunError

try:
    import fcntl
except ImportError:  # Windows, where jobs refuse
    fcntl = None  # type: ignore[assignment]

Event = dict[str, Any]


def read_events(path: Path) -> list[Event]:
    """The events of a ledger, in order; without a last line that is not whole.

    Raises ``InputError`` for a line in the middle that is none of ours."""
    if not path.is_file():
        return []
    whole = path.read_bytes().split(b"\n")[:-1]  # what follows the last line break was never finished
    events: list[Event] = []
    for number, line in enumerate(whole, start=1):
        try:
            event = json.loads(line)
            known = isinstance(event, dict) and "event" in event
        except ValueError:
            known = False
        if not known:
            raise InputError(f"{path}, line {number} is no event of a job: was the file edited?")
        events.append(event)
    return events


def last_events(events: Iterable[Event]) -> dict[int, Event]:
    """The last event of each group that is done."""
    return {event["group"]: event for event in events if event["event"] == "group"}


class Ledger:
    """The events so far, and more of them: :meth:`note`. Made by :func:`open_ledger`."""

    def __init__(self, path: Path, file: IO[bytes], events: list[Event]) -> None:
        self.path, self._file, self.events = path, file, events

    def note(self, event: str, **what: Any) -> None:
        """Append an event; it is on disk when this returns. Raises ``RunError`` where the disk refuses."""
        line = json.dumps({"event": event, **what}, ensure_ascii=False).encode() + b"\n"
        at = self._file.seek(0, os.SEEK_END)
        try:
            while line:
                line = line[self._file.write(line) :]  # a raw file may take a part
            os.fsync(self._file.fileno())
        except OSError as error:
            self._file.truncate(at)  # a full disk leaves half of a line
            raise RunError(f"cannot write to {self.path}: {error.strerror or error}") from error
        self.events.append({"event": event, **what})


@contextmanager
def open_ledger(path: Path) -> Iterator[Ledger]:
    """The ledger of a job that begins or goes on; nobody else writes to it meanwhile.

    Raises ``InputError`` where another process does."""
    events = read_events(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b", buffering=0) as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise InputError(f"another process is at work on {path.parent}: wait for it, or stop it") from None
        events = read_events(path)  # nobody has written since
        file.truncate(_whole(path))
        yield Ledger(path, file, events)


def _whole(path: Path) -> int:
    """The bytes of a file up to its last line break."""
    return path.read_bytes().rfind(b"\n") + 1
