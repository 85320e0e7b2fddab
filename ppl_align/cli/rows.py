"""``--data``: a table of prompts from JSONL, CSV or Parquet."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from ppl_align.core.columns import lacking
from ppl_align.core.errors import InputError, first_line

Row = dict[str, Any]


@dataclass(frozen=True)
class Rows:
    """The rows of a file, in its order."""

    path: Path
    rows: list[Row]

    @cached_property
    def columns(self) -> list[str]:
        """Every column that any row has, in order of appearance."""
        return list(dict.fromkeys(name for row in self.rows for name in row))

    def where(self, number: int) -> str:
        """A row, as messages call it."""
        return f"--data {self.path}, row {number}"

    def select(self, number: int | None) -> list[tuple[int, Row]]:
        """``(number, row)`` of all rows, or of one. Raises ``InputError`` where there is no such row."""
        numbered = list(enumerate(self.rows))
        if number is None:
            return numbered
        if number >= len(numbered):
            raise InputError(f"--row {number}: the rows of {self.path} are 0 to {len(numbered) - 1}")
        return [numbered[number]]


def read_rows(path: Path) -> Rows:
    """Rows in the order of the file, each with a ``prompt``. CSV cells stay text: the caller knows what they mean.

    Raises ``InputError`` naming the line that cannot be used."""
    readers = {".jsonl": _jsonl, ".ndjson": _jsonl, ".csv": _csv, ".parquet": _parquet}
    if path.suffix.lower() not in readers:
        raise InputError(f"--data {path}: write a .jsonl, .csv or .parquet file")
    if not path.is_file():
        raise InputError(f"no such data file: {path}")
    try:
        rows = Rows(path, readers[path.suffix.lower()](path))
    except UnicodeDecodeError as error:
        raise InputError(f"--data {path}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    if not rows.rows:
        raise InputError(f"--data {path}: the file has no rows")
    for number, row in enumerate(rows.rows):
        if "prompt" not in row:
            raise InputError(f"{rows.where(number)}: there is no column 'prompt'; {lacking('prompt', row)}")
        if not isinstance(row["prompt"], (str, list)):
            raise InputError(f"{rows.where(number)}: the prompt is {row['prompt']!r}, not text")
    return rows


def _jsonl(path: Path) -> list[Row]:
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=partial(_object, path, number))
        except json.JSONDecodeError as error:
            raise InputError(f"--data {path}, line {number}: not JSON ({error.msg})") from error
        if not isinstance(row, dict):
            raise InputError(f'--data {path}, line {number}: write one object a line, like {{"prompt": "..."}}')
        rows.append(row)
    return rows


def _csv(path: Path) -> list[Row]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, restkey="", strict=True)
        try:
            _once(path, reader.fieldnames or ())
            rows = list(reader)
        except csv.Error as error:
            raise InputError(f"--data {path}, line {reader.line_num}: {error}") from error
    for number, row in enumerate(rows):
        if "" in row or None in row.values():
            raise InputError(f"--data {path}: row {number} does not have as many cells as the header")
    return rows


def _parquet(path: Path) -> list[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"--data {path}: not a Parquet file ({first_line(error)})") from error
    _once(path, table.column_names)
    return table.to_pylist()


def _object(path: Path, line: int, pairs: list[tuple[str, Any]]) -> Row:
    _once(path, [name for name, _ in pairs], f", line {line}")
    return dict(pairs)


def _once(path: Path, names: Sequence[str], where: str = "") -> None:
    """Of two columns of one name a reader would keep the last and say nothing."""
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise InputError(f"--data {path}{where}: there are two columns {twice!r}: rename one of them, or take it out")
