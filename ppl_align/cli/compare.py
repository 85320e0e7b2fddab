"""``ppl-align compare``: posteriors that were saved earlier, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ppl_align.cli.console import note, user_code
from ppl_align.cli.output import OutputFolder, read_manifest
from ppl_align.cli.results import Group, Results
from ppl_align.errors import InputError


def compare(paths: Sequence[Path], out: Path | None, force: bool, as_json: bool) -> int:
    """Print the comparison; with ``out``, save it. Raises ``InputError`` for what is not a posterior of ours."""
    folder = None if out is None else OutputFolder(out, force)
    if folder is not None:
        folder.check()
        if any(folder.root.resolve() in (path.resolve(), *path.resolve().parents) for path in paths):
            raise InputError(f"--out {out} holds what is compared: name another folder")
    with user_code():
        results = Results(find_groups(paths))
    if folder is not None:
        folder.open({"compared": [str(path) for path in paths]})
        results.save(folder)
    if as_json:
        print(results.to_json())
    else:
        results.show()
    if folder is not None:
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
            prompts = {job.get("row"): job.get("prompt") for job in read_manifest(path).get("jobs", [])}
            for child in rows:
                runs = {file.stem: Posterior.load(file) for file in _netcdf(child)}
                groups.append(Group(child.name, prompts.get(child.name, ""), runs))
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
