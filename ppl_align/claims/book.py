"""The claims as a short book: one Markdown file, written from the essays and from what their studies found."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from ppl_align.claims import CHAPTERS, essay, load, statement
from ppl_align.claims.findings import Finding
from ppl_align.claims.running import Result
from ppl_align.core.files import written_beside

_OPEN = 8  # checks of each claim that are not folded away

_OPENING = """\
# Alignment as inference: the claims

*Written by `ppl-align claims --lm --book docs/claims.md`; do not edit. Every number below was computed by that command;
`--seed 7` computes them again from other random numbers.*

This library rests on one idea: an aligned language model is a posterior. The prior is the language model `p0`, the
reward is a likelihood `w = exp(r / beta)`, and the target is `p* = p0 w / Z`. From that idea follow statements that
could be wrong. Here each of them is a small experiment with exact answers, whose code is the file linked under its
title. Some are true, some are half true, and the half that is not is usually the one that costs money.

How to read a table: *expected* is what theory says, or a stated figure (closed form or published), or an independent
exact computation; *measured* is what the library computed; *error* is a rounding tolerance (`≤`), a standard error
(`se`), of which 4.6 are allowed, or `one run` where a single random run is compared with a bound. `J(q) = E_q[r] - beta
KL(q||p0)` is the objective of KL-regularised RL; `V` is the soft value, `V(x_<=t) = log E_p0[w | x_<=t]`.
"""


def write(path: Path, figures: Path, results: Sequence[Result]) -> None:
    """Write the book to ``path``; ``figures`` is the folder that holds ``<id>.png``. Replaces the file at once.

    Raises ``InputError`` where the file system refuses."""
    by_name = {result.name: result for result in results}
    link = Path(os.path.relpath(figures, path.parent))
    with written_beside(path) as temporary:
        temporary.write_text(compose(by_name, link), encoding="utf-8")


def compose(results: Mapping[str, Result], figures: Path) -> str:
    """The whole text."""
    parts = [_OPENING, _contents()]
    for title, (introduction, names) in CHAPTERS.items():
        parts += [f"## {title}\n", f"{textwrap.fill(introduction, 118)}\n"]
        parts += [_section(name, results.get(name), figures) for name in names]
    return "\n".join(parts).rstrip() + "\n"


def _contents() -> str:
    lines = []
    for title, (_, names) in CHAPTERS.items():
        lines.append(f"* **{title}**")
        lines += [f"  * [{name}](#{name}): {statement(load(name))}" for name in names]
    return "\n".join(lines) + "\n"


def prose(name: str) -> str:
    """Title, link to the code and essay of a claim: all that does not depend on a run."""
    module = load(name)
    code = f"../ppl_align/claims/{name.replace('-', '_')}.py"
    return f"### {name}\n\n**{statement(module)}** ([code]({code}))\n\n{essay(module)}\n"


def _section(name: str, result: Result | None, figures: Path) -> str:
    if result is None:
        return prose(name)
    return f"{prose(name)}\n![{statement(load(name))}]({(figures / name).as_posix()}.png)\n\n{_table(result)}"


def _table(result: Result) -> str:
    """The first checks in the open, the others folded."""
    lines = result.found.lines
    text = _rows(lines[:_OPEN])
    if len(lines) > _OPEN:
        more = f"{len(lines) - _OPEN} more checks"
        text += f"\n<details><summary>{more}</summary>\n\n{_rows(lines[_OPEN:])}\n</details>\n"
    return text + (f"\nStopped: {result.failure}\n" if result.failure else "")


def _rows(lines: Sequence[Finding]) -> str:
    rows = ["| check | expected | measured | error | |", "|---|--:|--:|--:|---|"]
    for line in lines:
        cells = [line.what, line.expected, line.measured, line.error, "ok" if line.passed else "**FAILED**"]
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows) + "\n"
