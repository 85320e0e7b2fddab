"""Files written beside their place and renamed: a reader finds the old one or the new one, never half of one."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ppl_align.core.errors import InputError


def made_folder(directory: str | Path) -> Path:
    """The folder, made if need be. Raises ``InputError`` where the file system refuses."""
    folder = Path(directory)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror}") from None
    return folder


@contextmanager
def written_beside(path: Path) -> Iterator[Path]:
    """A temporary file to write to, in the folder of ``path`` (made if need be); it becomes ``path`` at the end.

    Raises ``InputError`` where the file system refuses."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"cannot save to {path}: {error.strerror or error}") from None
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def folder_beside(path: Path, ours: str) -> Iterator[Path]:
    """A temporary folder to fill, beside ``path``; it becomes ``path`` at the end, and nothing is left of it on errors.

    A folder that holds a file named ``ours`` is replaced. Raises ``InputError`` for one that holds anything else, and
    where the file system refuses."""
    path = path.expanduser()
    scratch: Path | None = None
    try:
        if path.exists() and not path.is_dir():
            raise InputError(f"cannot save to {path}: it is a file; name a folder")
        if path.is_dir() and any(path.iterdir()) and not (path / ours).is_file():
            raise InputError(f"cannot save to {path}: the folder is not empty; name another")
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}-"))
        scratch.chmod(0o755)
        yield scratch
        if path.is_dir():
            old = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}-"))
            os.replace(path, old)
            shutil.rmtree(old, ignore_errors=True)
        os.replace(scratch, path)
    except OSError as error:
        raise InputError(f"cannot save to {path}: {error.strerror or error}") from None
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)
