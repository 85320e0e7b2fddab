"""``ppl-align compare``: posteriors that were saved earlier, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ppl_align.cli.console import note, show, user_code
from ppl_align.cli.output import output_folder
from ppl_align.cli.results import Results
from ppl_align.core.errors import InputError
from ppl_align.jobs.folder import SPEC

if TYPE_CHECKING:
    from ppl_align.posterior import Posterior


def compare(paths: Sequence[Path], out: Path | None, force: bool, as_json: bool) -> int:
    """Print the comparison; with ``out``, save it. Raises ``InputError`` for what is not a posterior of ours."""
    folder = output_folder(out, force)
    if folder is not None and any(folder.root.resolve() in (p.resolve(), *p.resolve().parents) for p in paths):
        raise InputError(f"--out {out} holds what is compared: name another folder")
    with user_code():
        results = Results(find_runs(paths))
    show(results, as_json)
    if folder is not None:
        folder.open({"compared": [str(path) for path in paths]})
        results.save(folder)
        note(f"saved in {folder.root}")
    return 0


def find_runs(paths: Sequence[Path]) -> dict[str, Posterior]:
    """The posteriors of one target in these files and folders, by name."""
    from ppl_align import Posterior

    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            files += _netcdf(path) or _refuse(path)
        elif path.is_file():
            files.append(path)
        else:
            raise InputError(f"no such file or folder: {path}")
    return {name: Posterior.load(file) for name, file in _named(files).items()}


def _refuse(folder: Path) -> list[Path]:
    """Raises ``InputError`` for a folder without posteriors of its own: of many targets, one is compared at a time."""
    inside = folder / "rows" if (folder / SPEC).is_file() else folder
    rows = [child for child in sorted(inside.iterdir()) if child.is_dir() and _netcdf(child)] if inside.is_dir() else []
    if rows:
        raise InputError(f"{folder} holds a target for each row of a data set: name one of them, say {rows[0]}")
    raise InputError(f"{folder} holds no .nc file: name a folder that `ppl-align run --out` wrote")


def _netcdf(folder: Path) -> list[Path]:
    return sorted(file for file in folder.glob("*.nc") if not file.name.startswith("."))


def _named(files: Sequence[Path]) -> dict[str, Path]:
    """Files by their stem; where stems repeat, with the folder in front."""
    files = list(dict.fromkeys(file.resolve() for file in files))
    stems = [file.stem for file in files]
    named = {}
    for file in files:
        name = file.stem if stems.count(file.stem) == 1 else f"{file.parent.name}/{file.stem}"
        named[name if name not in named else str(file)] = file
    return named
