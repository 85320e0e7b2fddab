"""The two galleries: model specs (``models/``) and engine recipes (``inference/``), one readable file each.

In an installed wheel the folders lie beside this file; in the source tree they are the top-level folders of the
same names. Files are listed by reading them, never by importing them: a model file may load a language model.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Literal

Kind = Literal["models", "inference"]


@dataclass(frozen=True)
class Entry:
    """One file of a gallery: the name it is run by, where it lies, the first line of its docstring."""

    name: str
    path: Path
    summary: str


def folder(kind: Kind) -> Path:
    """Where a gallery lies: in the wheel, else in the source tree that this package was installed from."""
    here = Path(str(files(__name__)))
    packaged = here / kind
    return packaged if packaged.is_dir() else here.parent.parent / kind


def entries(kind: Kind) -> list[Entry]:
    """The gallery in alphabetical order."""
    paths = sorted(p for p in folder(kind).glob("*.py") if not p.name.startswith("_"))
    return [Entry(path.stem, path, summary(path)) for path in paths]


def find(kind: Kind, name: str) -> Path | None:
    """The file called ``name``, or None."""
    return next((entry.path for entry in entries(kind) if entry.name == name), None)


def summary(path: Path) -> str:
    """First line of a file's docstring; where it has none, of its first public function's."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError) as error:
        return f"(cannot be read: {error})"
    functions = [n for n in tree.body if isinstance(n, ast.FunctionDef) and not n.name.startswith("_")]
    docs = [ast.get_docstring(tree), *map(ast.get_docstring, functions)]
    return next((doc.splitlines()[0] for doc in docs if doc), "")
