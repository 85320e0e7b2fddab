"""One job from the shards that several machines did of it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ppl_align.core.errors import InputError
from ppl_align.jobs.folder import SPEC, JobFolder, job_folder
from ppl_align.jobs.ledger import last_events, open_ledger, read_events
from ppl_align.jobs.results import deliver
from ppl_align.jobs.rows import label_of
from ppl_align.jobs.spec import JobSpec, differences


def merge(shards: Sequence[Path], out: Path, force: bool = False) -> tuple[list[dict[str, Any]], int]:
    """Put the groups of these jobs together in ``out``; the summaries of their rows, and how many rows there are to be.

    The files are those that one job over all rows would have written. A merge that was stopped goes on. Raises
    ``InputError`` for folders that hold no job, or jobs that were asked for something else."""
    folders = [JobFolder(shard) for shard in shards]
    for folder in folders:
        if not (folder.root / SPEC).is_file():
            raise InputError(
                f"{folder.root} holds no job: name folders that `ppl-align run --shard I/N --out DIR` wrote"
            )
    specs = [JobSpec.load(folder.spec) for folder in folders]
    for folder, spec in zip(folders[1:], specs[1:], strict=True):
        changed = differences(specs[0], spec)
        if changed:
            raise InputError(f"{folders[0].root} and {folder.root} are no shards of one job: {'; '.join(changed)}")
    merged, _ = job_folder(out, specs[0], force)
    total = specs[0].data["rows"]
    with open_ledger(merged.ledger) as ledger:
        merged.clear_scratch()
        there = last_events(ledger.events)
        for folder in folders:
            for group, event in last_events(read_events(folder.ledger)).items():
                if there.get(group) != event:  # new, or done again since: rows that had failed, say
                    _copy(folder, merged, event, total)
                    ledger.note(**event)
        return deliver(merged, sorted(last_events(ledger.events))), total


def _copy(folder: JobFolder, merged: JobFolder, event: dict[str, Any], total: int) -> None:
    for number in event["rows"]:
        label = label_of(number, total)
        if folder.row(label).is_dir():
            merged.write_row(label, {path.name: path.read_bytes() for path in sorted(folder.row(label).iterdir())})
    for place in (JobFolder.summaries, JobFolder.lines):
        source = place(folder, event["group"])
        merged.write(place(merged, event["group"]), lambda path, source=source: shutil.copyfile(source, path))  # type: ignore[misc]
