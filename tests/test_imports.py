"""Data goes one way: which folder may import which, read off the imports."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import ppl_align

ROOT = Path(ppl_align.__file__).parent
ORDER = (
    "core",
    "gallery",
    "loading",
    "data",
    "lm",
    "tokens",
    "rewards",
    "constraints",
    "particles",
    "program",
    "runner",
    "twists",
    "guides",
    "kernels",
    "posterior",
    "engines",
    "moments",
    "preferences",
    "lints",
    "inspection",
    "diagnostics",
    "report",
    "jobs",
    "testing",
    "claims",
    "cli",
)
"""The rooms of the house: each knows those before it, and none after it."""
RENDERERS = {"report"}
"""May be imported by what prints itself (``__str__``, ``_repr_html_``), inside of functions."""
OUTSIDE = {"testing", "claims"}
"""Nobody imports these, but the command line, which runs the claims."""


PUBLIC = {"errors", "text"}
"""Public addresses of what is elsewhere: nobody here goes by them, nor by the package itself."""


def files_of(room: str) -> list[Path]:
    alone = ROOT / f"{room}.py"
    return [alone] if alone.exists() else sorted((ROOT / room).rglob("*.py"))


@pytest.mark.parametrize("room", ORDER)
def test_a_room_knows_only_those_below(room: str) -> None:
    above = set(ORDER[ORDER.index(room) + 1 :])
    wrong = []
    for path in files_of(room):
        for name, lazy in imported(ast.parse(path.read_text(encoding="utf-8"))):
            if name.split(".")[0] != "ppl_align":
                continue
            other = name.split(".")[1] if "." in name else ""
            excused = lazy and other in RENDERERS
            within = other in ORDER or room in OUTSIDE | {"cli"}  # those use the library as a reader does
            above_it = other in above and not excused
            if not within or above_it or (other in OUTSIDE - {room} and room not in OUTSIDE | {"cli"}):
                wrong.append(f"{path.relative_to(ROOT)}: {name}")
    assert wrong == []


def test_every_room_has_its_place() -> None:
    rooms = {path.stem for path in ROOT.iterdir() if path.is_dir() or path.suffix == ".py"}
    assert rooms - {"__pycache__", "__init__"} - PUBLIC == set(ORDER)


def imported(tree: ast.AST, lazy: bool = False) -> Iterator[tuple[str, bool]]:
    """Modules that are imported, for their types or when the code runs, and whether inside of a function."""
    for node in ast.iter_child_nodes(tree):
        inside = lazy or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module, inside
            yield from ((f"{node.module}.{alias.name}", inside) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, inside) for alias in node.names)
        yield from imported(node, inside)


def test_the_reader_of_imports_sees_all_of_them() -> None:
    code = "import a.b\nfrom c import d\ndef f():\n    from e.f import g\nif TYPE_CHECKING:\n    import hidden\n"
    found = set(imported(ast.parse(code)))
    assert found == {("a.b", False), ("c", False), ("c.d", False), ("e.f", True), ("e.f.g", True), ("hidden", False)}


@pytest.mark.parametrize("room", ["diagnostics", "report", "cli"])
def test_numbers_about_one_run_are_read_off_its_summary(room: str) -> None:
    """What computes them is known to ``RunSummary`` alone: what stands side by side cannot differ."""
    computing = {f"ppl_align.posterior.{name}" for name in ("diversity", "evidence", "lineage", "policy")}
    found = []
    for path in sorted((ROOT / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                names = [alias.name for alias in node.names if not alias.name.isupper()]
                computes = node.module in computing and names
                whole = node.module == "ppl_align.posterior" and {f"{node.module}.{name}" for name in names} & computing
                found += [f"{path.name}: {node.module} {names}"] if computes or whole else []
    assert found == []
