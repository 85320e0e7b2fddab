"""``ppl-align compare``: posteriors that were saved earlier, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ppl_align.cli.console import note, show, user_code
from ppl_align.cli.output import output_folder, read_manifest
from ppl_align.cli.results import Group, Results
from ppl_align.core.errors import InputError


def compare(paths: Sequence[Path], out: Path | None, force: bool, as_json: bool) -> int:
    """Print the comparison; with ``out``, save it. Raises ``InputError`` for what is not a posterior of ours."""
    folder = output_folder(out, force)
    if folder is not None and any(folder.root.resolve() in (p.resolve(), *p.resolve().parents) for p in paths):
        raise InputError(f"--out {out} holds what is compared: name another folder")
    with user_code():
        results = Results(find_groups(paths))
    show(results, as_json)
    if folder is not None:
        folder.open({"compared": [str(path) for path in paths]})
        results.save(folder)
        note(f"saved in {folder.root}")
    return 0


def find_groups(paths: Sequence[Path]) -> list[Group]:
    """Files and folders of one target each make one group; a folder written with ``--data`` makes one for each row."""
    from ppl_align import Posterior

    files: list[Path] = []
    groups: list[Group] = []
    for path in paths:
        if path.is_dir():
            own = _netcdf(path)
            rows = [] if own else [child for child in sorted(path.iterdir()) if child.is_dir() and _netcdf(child)]
            if not own and not rows:
                raise InputError(f"{path} holds no .nc file: name a folder that `ppl-align run --out` wrote")
            files += own
            jobs = read_manifest(path).get("jobs", []) if rows else []
            prompts = {child.name: "" for child in rows} | {str(j.get("row")): j.get("prompt") for j in jobs}
            finished = {child.name: _netcdf(child) for child in rows}
            for row, prompt in sorted(prompts.items()):  # also those that no engine finished
                runs = {file.stem: Posterior.load(file) for file in finished.get(row, [])}
                groups.append(Group(row, prompt, runs))
        elif path.is_file():
            files.append(path)
        else:
            raise InputError(f"no such file or folder: {path}")
    if files and groups:
        raise InputError("some of these hold one target and some hold one for each row of --data: compare them apart")
    if files:
        groups = [Group("", None, {name: Posterior.load(file) for name, file in _named(files).items()})]
    return groups


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
