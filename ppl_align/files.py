"""Files written beside their place and renamed: a reader finds the old one or the new one, never half of one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ppl_align.errors import InputError


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
