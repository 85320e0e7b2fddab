"""Comparisons and completions for a terminal, readable at 80 columns.

Everything here returns a :class:`Printable`: ``print`` gives plain text of 80 columns, a rich console its own width.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ppl_align.core.printed import with_error
from ppl_align.diagnostics.advisor import Advice
from ppl_align.diagnostics.columns import BLOCKS, CHAIN_COLUMNS, CHAINS, TRUST, Column, fixed, is_missing, number
from ppl_align.diagnostics.comparison import Comparison
from ppl_align.posterior.diversity import NUM_DRAWS
from ppl_align.posterior.result import Posterior
from ppl_align.posterior.unstated import unstated_of

WIDTH = 80
_WIDEST = 140  # on a wider screen, lines of text get too long to read
_GAP = 2  # between two columns: one of padding, one that SIMPLE_HEAD draws


class Printable:
    """Something to print: laid out for the width it is printed at."""

    def __init__(self, layout: Callable[[int], RenderableType]) -> None:
        self._layout = layout

    def __str__(self) -> str:
        buffer = io.StringIO()
        console = Console(file=buffer, width=WIDTH, force_terminal=False, color_system=None, legacy_windows=False)
        console.print(self._layout(WIDTH))
        return "\n".join(line.rstrip() for line in buffer.getvalue().rstrip().splitlines())

    __repr__ = __str__

    def __rich_console__(self, console: Console, options: Any) -> Any:
        yield self._layout(min(options.max_width, _WIDEST))


def comparison(compared: Comparison) -> Printable:
    """The tables of a comparison, block by block, and the advice."""

    def layout(width: int) -> RenderableType:
        parts: list[RenderableType] = [
            Text(line, style="dim" if i else "bold") for i, line in enumerate(headline(compared))
        ]
        for title, columns, rows in blocks(compared):
            parts += [Text(), Text(title, style="bold"), *grids("run", [c.header for c in columns], rows, width)]
            if columns and columns[0].block == TRUST and compared.chains:
                numbers = [(f"{name} {what}", cells) for name, what, cells in chain_rows(compared)]
                header = [c.header for c in CHAIN_COLUMNS]
                parts += [Text(), Text(CHAINS, style="bold"), *grids("run", header, numbers, width)]
        return Group(*parts, Text(), advice(compared.advice))

    return Printable(layout)


def blocks(compared: Comparison) -> Iterator[tuple[str, list[Column], list[tuple[str, list[str]]]]]:
    """Title, columns and rows ``(run, cells)`` of each table."""
    every = compared.columns
    for block, title in BLOCKS.items():
        columns = [c for c in every if c.block == block]
        yield title, columns, [(name, [c.text(row) for c in columns]) for name, row in compared.rows.items()]


def chain_rows(compared: Comparison) -> Iterator[tuple[str, str, list[str]]]:
    """``(run, number, cells)`` of what Markov chains tell of each number."""
    for name, numbers in compared.chains.items():
        for what, row in numbers.items():
            yield name, what, [c.text(row) for c in CHAIN_COLUMNS]


def headline(compared: Comparison) -> list[str]:
    """What is compared: the target, the prior's means, what "posterior" refers to, bounds on log Z."""
    reference = compared.reference
    target = f"{reference['model'] or 'one target'}" + (f" with {reference['lm']}" if reference["lm"] else "")
    prompts = reference["prompts"]
    if prompts and prompts != [""]:
        target += f", prompt {prompts[0]!r}" + (f" and {len(prompts) - 1} more" if len(prompts) > 1 else "")
    lines = [f"{len(compared.runs)} run{'s' if len(compared.runs) > 1 else ''} of {target}"]
    known = {name: value for name, value in reference["prior_mean"].items() if not is_missing(value)}
    if known:
        lines.append(
            "under the prior: " + ", ".join(f"E[{name}] = {number(3)(value)}" for name, value in known.items())
        )
    entropy = reference["posterior_entropy"]
    at_least = "at least " if reference["posterior_entropy_is_lower_bound"] else ""
    about = "" if entropy is None else f", with {at_least}{entropy:.2f} nats of entropy"
    if entropy is not None and entropy > _LOG_DRAWS:
        about += f" ({NUM_DRAWS} draws can show {_LOG_DRAWS:.2f})"
    if compared.runs[reference["best_run"]].target == "posterior":
        lines.append(f'"posterior" is as {reference["best_run"]} sees it{about}')
    if reference["optimism"]:
        lines.append(f"{reference['best_run']} conditions the world as well: {reference['optimism']}")
    for name, bounds in reference["evidence_bounds"].items():
        low, high = (with_error(bounds[side], bounds[f"{side}_error"]) for side in ("lower", "upper"))
        lines.append(f"log Z between {low} and {high} ({name}, one exact draw of {bounds['retained']} retained)")
    if reference.get("differ"):
        lines.append(f"beware: {reference['differ']}")
    return lines + unstated_of(compared.runs)


_LOG_DRAWS = math.log(NUM_DRAWS)


def advice(given: Advice) -> RenderableType:
    """The verdict, in the colour of its standing."""
    colour = {"sound": "green", "unconfirmed": "yellow", "unsound": "red"}[given.standing]
    return verdict(given.verdict, colour, given.reasons)


def verdict(line: str, colour: str, reasons: Iterable[str]) -> RenderableType:
    """What it comes to, and below it what that rests on."""
    notes = [Padding(Text(f"- {reason}"), (0, 0, 0, 3)) for reason in reasons]
    return Group(Text(f"=> {line}", style=f"bold {colour}"), *notes)


def grids(
    what: str, header: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]], width: int
) -> list[RenderableType]:
    """One table, or as many as it takes to keep each within ``width``; each begins with the names of the rows.

    ``what`` these are names of; ``rows``: ``(name, cells)``.

    Several tables are about as wide as each other: no column is left over on its own."""
    names = [name for name, _ in rows]
    cells = {column: [row[i] for _, row in rows] for i, column in enumerate(header)}
    needed = {column: max(map(cell_len, [column, *shown])) + _GAP for column, shown in cells.items()}
    room = max([width - 1 - max(cell_len(name) for name in [what, *names]), *needed.values()])
    tables = _fill(needed, room)
    while len(_fill(needed, room - 1)) == len(tables) and room > max(needed.values(), default=room):
        room -= 1
    return [_grid(what, names, {column: cells[column] for column in columns}) for columns in _fill(needed, room)]


def _fill(needed: dict[str, int], room: int) -> list[list[str]]:
    """Columns in order, as many to a table as there is room for."""
    tables: list[list[str]] = []
    used = room
    for header, size in needed.items():
        if used + size > room:
            tables.append([])
            used = 0
        tables[-1].append(header)
        used += size
    return tables


def empty_table() -> Table:
    """As all tables of a terminal look."""
    return Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False, header_style="bold cyan")


def _grid(what: str, rows: Sequence[str], columns: dict[str, list[str]]) -> Table:
    table = empty_table()
    table.add_column(what, no_wrap=True)
    for header in columns:
        table.add_column(Text(header), justify="right", no_wrap=True)
    for i, name in enumerate(rows):
        table.add_row(Text(name), *(Text(column[i]) for column in columns.values()))
    return table


def best_completions(posterior: Posterior, n: int = 5) -> Printable:
    """The ``n`` most probable texts of a posterior, with their probability and rewards."""
    return Printable(lambda width: _texts(posterior.table(by="text").head(n)))


def frame(data: pd.DataFrame) -> Printable:
    """A pandas frame with its texts wrapped instead of cut."""
    return Printable(lambda width: _texts(data, index=True))


def _texts(data: pd.DataFrame, index: bool = False) -> Table:
    """Numbers to the left at their own width, texts to the right in what is left."""
    numbers, texts, rows = numbers_and_texts(data)
    table = empty_table()
    if index:
        table.add_column("", justify="right", style="dim", no_wrap=True)
    for name in numbers:
        table.add_column(Text(name), justify="right", no_wrap=True)
    for name in texts:
        table.add_column(Text(name), overflow="fold", ratio=1)
    for label, row in zip(data.index, rows, strict=True):
        table.add_row(*([str(label)] if index else []), *map(Text, row))
    return table


def numbers_and_texts(data: pd.DataFrame) -> tuple[list[str], list[str], list[list[str]]]:
    """Names of the columns of numbers and of those of texts, and the cells of each row in that order."""
    texts = [c for c in data.columns if data[c].map(lambda value: isinstance(value, str)).any()]
    numbers = [c for c in data.columns if c not in texts]
    rows = [
        [*(cell(str(name), row[name]) for name in numbers), *(visible(str(row[name])) for name in texts)]
        for row in data.to_dict("records")
    ]
    return list(map(str, numbers)), list(map(str, texts)), rows


def cell(name: str, value: Any) -> str:
    """A number of a table of draws, as the column of this name shows it."""
    if isinstance(value, tuple):
        return "(" + ", ".join(cell("", v) for v in value) + ")"
    if is_missing(value):
        return "-"
    if name == "probability":
        return f"{value:.4f}"
    if name == "log_prior":
        return fixed(1)(value)
    return number(3)(value) if isinstance(value, float) else str(value)


def visible(text: str) -> str:
    """Line ends as signs, so that one completion stays one row; an empty completion says so."""
    shown = text.replace("\r", "").replace("\n", "⏎ ").strip()
    return shown or "(empty)"
