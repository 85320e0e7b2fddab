"""The folder of a job: what is in it, and how it gets there, so that a kill at any moment leaves nothing half-written.

    job.json             what was asked for (JobSpec)
    ledger.jsonl         which groups of rows are done
    parts/000012.*       what came of a group: lines to deliver (Parquet), summaries of its rows (JSON)
    rows/0007/           of a row: posteriors (netCDF), comparison, report
    completions.*, report.html    of all rows; made anew from the parts at the end

Nothing is deleted: ``--force`` moves the folder of another job to ``DIR.1``.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from ppl_align.core.errors import InputError, RunError
from ppl_align.jobs.ledger import open_ledger
from ppl_align.jobs.spec import JobSpec, differences

SPEC, LEDGER = "job.json", "ledger.jsonl"
_SCRATCH = ".partial-"


class JobFolder:
    """The files of one job below ``root``."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def spec(self) -> Path:
        return self.root / SPEC

    @property
    def ledger(self) -> Path:
        return self.root / LEDGER

    def row(self, label: str) -> Path:
        return self.root / "rows" / label

    def lines(self, group: int) -> Path:
        return self.root / "parts" / f"{group:06d}.parquet"

    def summaries(self, group: int) -> Path:
        return self.root / "parts" / f"{group:06d}.json"

    def begin(self, spec: JobSpec) -> None:
        """Make the folder of a new job."""
        self.write(self.spec, spec.save)

    def clear_scratch(self) -> None:
        """Take away what a kill has left half-written; for whoever holds the ledger."""
        for path in [*self.root.glob(f"{_SCRATCH}*"), *self.root.glob(f"*/{_SCRATCH}*")]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def write(self, path: Path, writer: Callable[[Path], object]) -> None:
        """``writer(path)`` writes a file; it is on disk, and whole, when it appears under its own name.

        Raises ``RunError`` where the disk refuses."""
        scratch = path.parent / f"{_SCRATCH}{path.name}"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            writer(scratch)
            with scratch.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(scratch, path)
        except OSError as error:
            raise RunError(f"cannot write to {path}: {error.strerror or error}") from error
        finally:
            scratch.unlink(missing_ok=True)

    def write_row(self, label: str, files: Mapping[str, bytes]) -> None:
        """The folder of a row, whole, in place of an earlier one."""
        place = self.row(label)
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=place.parent, prefix=_SCRATCH) as scratch:
                new, old = Path(scratch) / "new", Path(scratch) / "old"
                new.mkdir()
                for name, content in files.items():
                    (new / name).write_bytes(content)
                if place.exists():
                    os.replace(place, old)
                os.replace(new, place)
        except OSError as error:
            raise RunError(f"cannot write to {place}: {error.strerror or error}") from error

    def write_part(self, group: int, lines: pyarrow.Table, summaries: list[dict[str, Any]]) -> None:
        """What came of a group."""
        text = json.dumps(summaries, ensure_ascii=False, indent=1)
        self.write(self.summaries(group), lambda path: path.write_text(text + "\n", encoding="utf-8"))
        self.write(self.lines(group), lambda path: write_parquet(lines, path))

    def read_part(self, group: int) -> tuple[pyarrow.Table, list[dict[str, Any]]]:
        """Raises ``InputError`` for a part that is missing or broken."""
        try:
            summaries = json.loads(self.summaries(group).read_text(encoding="utf-8"))
            return pyarrow.parquet.read_table(self.lines(group), partitioning=None), summaries
        except (OSError, ValueError, pyarrow.ArrowException) as error:
            raise InputError(
                f"{self.lines(group)} cannot be read: {error}. Was it edited? --force starts anew"
            ) from None


def write_parquet(table: pyarrow.Table, path: Path) -> None:
    """The same bytes for the same table."""
    pyarrow.parquet.write_table(table, path, compression="zstd", version="2.6", data_page_version="1.0")


def job_folder(root: Path, spec: JobSpec, force: bool) -> tuple[JobFolder, bool]:
    """The folder of a job and whether it goes on there; ``force`` moves what else is there out of the way.

    Raises ``InputError`` for a folder that holds another job, or anything else, and where nothing can be written."""
    folder = JobFolder(root)
    if root.exists() and not root.is_dir():
        raise InputError(f"--out {root} is a file: name a folder")
    if root.is_dir() and any(not path.name.startswith(_SCRATCH) for path in root.iterdir()):
        if not force:
            _refuse_another(folder, spec)
            return folder, True
        if folder.ledger.is_file():
            with open_ledger(folder.ledger):  # nobody is at work there
                pass
        _moved(root, _next_to(root))
    try:
        folder.begin(spec)
    except RunError as error:
        raise InputError(f"--out {root}: {error}") from None
    return folder, False


def _refuse_another(folder: JobFolder, spec: JobSpec) -> None:
    """Raises ``InputError`` unless the folder holds this very job."""
    root, aside = folder.root, _next_to(folder.root)
    if not folder.spec.is_file():
        raise InputError(
            f"--out {root} is not empty and holds no job: name another folder, or add --force to move it to {aside}"
        )
    changed = differences(JobSpec.load(folder.spec), spec)
    if changed:
        raise InputError(
            f"the job in {root} was begun with something else: {'; '.join(changed)}. Name another folder, or add "
            f"--force to move that job to {aside} and start anew"
        )


def _next_to(root: Path) -> Path:
    number = 1
    while (aside := root.with_name(f"{root.name}.{number}")).exists():
        number += 1
    return aside


def _moved(root: Path, aside: Path) -> None:
    try:
        os.replace(root, aside)
    except OSError as error:
        raise InputError(f"cannot move {root} to {aside}: {error.strerror or error}") from None
