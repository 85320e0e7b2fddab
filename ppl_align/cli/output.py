"""The output folder: nothing half-written, nothing of the user's overwritten."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ppl_align.core.errors import InputError, RunError

MANIFEST = "run.json"


class OutputFolder:
    """Files are written beside their place and renamed; ``run.json`` says what was asked for and which files are ours.

    ``force`` lets a run into a folder that is not empty; it removes the files its manifest names, and no others.
    Raises ``InputError`` unless the folder can be used; finding out leaves nothing behind.
    """

    def __init__(self, root: Path, force: bool) -> None:
        self.root = root
        self.manifest: dict[str, Any] = {}
        self.files: list[str] = []
        self.begun = False
        root = existing = root.absolute()
        try:
            if root.exists() and not root.is_dir():
                raise InputError(f"--out {self.root} is a file: name a folder")
            existing = next(p for p in (root, *root.parents) if p.exists())
            # tried out, since permissions do not tell of every folder, and root has them all
            with tempfile.TemporaryDirectory(dir=existing, prefix=".partial-") as scratch:
                (Path(scratch) / root.relative_to(existing)).mkdir(parents=True, exist_ok=True)
            taken = root.is_dir() and any(root.iterdir())
        except OSError as error:
            raise InputError(f"--out {self.root}: cannot write to {existing} ({error.strerror})") from None
        if taken and not force:
            raise InputError(f"--out {self.root} is not empty: name another folder, or add --force to replace its run")

    def open(self, manifest: dict[str, Any]) -> None:
        """Note what this run is. Nothing is touched before there is something to write: a run that fails at once
        leaves no trace, and the run that the folder held."""
        self.manifest = manifest

    def _begin(self) -> None:
        """Create the folder, and clear away the run it held."""
        self.begun = True
        self.root.mkdir(parents=True, exist_ok=True)
        for path in self._owned():
            path.unlink(missing_ok=True)
            if path.parent != self.root and not any(path.parent.iterdir()):
                path.parent.rmdir()

    def write(self, relative: str, writer: Callable[[Path], object]) -> None:
        """``writer(path)`` writes a file; it appears under its own name when it is whole."""
        target = self.root / relative
        self.write_all(target.parent, lambda folder: writer(folder / target.name))

    def write_all(self, folder: Path, writer: Callable[[Path], object]) -> None:
        """``writer(folder)`` writes any number of files; they appear when all of them are whole."""
        try:
            if not self.begun:
                self._begin()
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder, prefix=".partial-") as scratch:
                writer(Path(scratch))
                for path in sorted(Path(scratch).iterdir()):
                    os.replace(path, folder / path.name)
                    self.files.append((folder / path.name).relative_to(self.root).as_posix())
            self._note()
        except OSError as error:
            raise RunError(f"cannot write to {folder}: {error.strerror or error}") from error

    def _note(self) -> None:
        text = json.dumps({**self.manifest, "files": sorted(set(self.files))}, indent=1, default=str)
        scratch = self.root / f".{MANIFEST}.partial"
        scratch.write_text(text + "\n", encoding="utf-8")
        os.replace(scratch, self.root / MANIFEST)

    def _owned(self) -> list[Path]:
        """What the manifest of an earlier run lists, as long as it lies inside this folder."""
        listed = read_manifest(self.root).get("files", [])
        root = self.root.resolve()
        places = (root, *filter(Path.is_dir, root.iterdir()))
        paths = [self.root / name for name in listed if isinstance(name, str)]
        return [p for p in paths if p.is_file() and p.resolve().parent in places]


def output_folder(out: Path | None, force: bool) -> OutputFolder | None:
    """The folder of ``--out``, checked; None without one. Raises ``InputError`` unless it can be used."""
    return None if out is None else OutputFolder(out, force)


def read_manifest(folder: Path) -> dict[str, Any]:
    """What an earlier run noted of itself; empty where there is nothing readable."""
    try:
        found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
