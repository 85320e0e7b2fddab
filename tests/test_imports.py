"""Data goes one way: which folder may import which, read off the imports."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import ppl_align

ROOT = Path(ppl_align.__file__).parent
ABOVE = {"engines", "guides", "inspection", "lints", "diagnostics", "report", "cli", "claims", "testing"}
ROOMS = {path.name for path in ROOT.iterdir() if path.is_dir() and path.name != "__pycache__"}
MAY_NOT: dict[str, set[str]] = {
    "core": ROOMS - {"core"},
    "particles": ABOVE | {"posterior", "moments", "preferences"},
    "lm": ABOVE | {"particles"} | {"rewards", "constraints", "program", "posterior", "moments", "preferences"},
    "data": ABOVE | {"lm", "particles", "rewards", "constraints", "program", "posterior", "moments", "preferences"},
    "rewards": ABOVE | {"particles", "constraints", "program", "posterior", "moments", "preferences"},
    "constraints": ABOVE | {"particles", "program", "posterior", "moments", "preferences"},
    "program": ABOVE | {"particles", "posterior", "moments", "preferences"},
}
"""Folders by those that they do not know, functions' own imports included; types alone may be named."""


@pytest.mark.parametrize("folder", MAY_NOT)
def test_nothing_below_knows_what_is_above(folder: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in sorted((ROOT / folder).rglob("*.py"))
        for name in imported(ast.parse(path.read_text(encoding="utf-8")))
        if name.startswith("ppl_align.") and name.split(".")[1] in MAY_NOT[folder]
    ]
    assert wrong == []


def imported(tree: ast.AST) -> Iterator[str]:
    """Modules that are imported when the code runs."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        yield from imported(node)


def test_the_reader_of_imports_sees_all_of_them() -> None:
    code = "import a.b\nfrom c import d\ndef f():\n    from e.f import g\nif TYPE_CHECKING:\n    import hidden\n"
    assert set(imported(ast.parse(code))) == {"a.b", "c", "c.d", "e.f", "e.f.g"}
