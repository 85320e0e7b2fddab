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
class Header:
    """What is known of a data file without its rows: its ``columns``, each that any row has, in order of appearance,
    how many rows there are, and the column that names them (``key``; None: their numbers do)."""

    path: Path
    columns: tuple[str, ...]
    count: int
    key: str | None = None

    @property
    def is_text(self) -> bool:
        """Are all cells text, whatever they mean?"""
        return self.path.suffix.lower() == ".csv"

    def where(self, number: int) -> str:
        """A row, as messages call it."""
        return f"--data {self.path}, row {number}"

    def label(self, number: int) -> str:
        """The number of a row, with leading zeros: its folder."""
        return label_of(number, self.count)

    def key_of(self, number: int, row: Row) -> str:
        """What a row is called by, wherever it stands."""
        return str(number) if self.key is None else str(row[self.key])


def label_of(number: int, count: int) -> str:
    """The number of one of ``count`` rows, with leading zeros.

    >>> label_of(7, 50)
    '07'
    """
    return f"{number:0{len(str(count - 1))}d}"


@dataclass(frozen=True)
class Rows:
    """The rows of a file, in its order."""

    header: Header
    rows: list[Row]

    def select(self, number: int | None) -> list[tuple[int, Row]]:
        """``(number, row)`` of all rows, or of one. Raises ``InputError`` where there is no such row."""
        numbered = list(enumerate(self.rows))
        if number is None:
            return numbered
        if number >= len(numbered):
            raise InputError(f"--row {number}: the rows of {self.header.path} are 0 to {len(numbered) - 1}")
        return [numbered[number]]

    @cached_property
    def columns(self) -> dict[str, Any]:
        """Each column as an Arrow array; cells of several types as JSON."""
        return {name: _array([row.get(name) for row in self.rows]) for name in self.header.columns}

    @cached_property
    def keys(self) -> list[str]:
        """What each row is called by."""
        return [self.header.key_of(number, row) for number, row in enumerate(self.rows)]


def read_rows(path: Path, key: str | None = None) -> Rows:
    """Rows in the order of the file, each with a ``prompt``. CSV cells stay text: the caller knows what they mean.

    ``key``: the column that names them. Raises ``InputError`` naming the line that cannot be used."""
    readers = {".jsonl": _jsonl, ".ndjson": _jsonl, ".csv": _csv, ".parquet": _parquet}
    if path.suffix.lower() not in readers:
        raise InputError(f"--data {path}: write a .jsonl, .csv or .parquet file")
    if not path.is_file():
        raise InputError(f"no such data file: {path}")
    try:
        rows = readers[path.suffix.lower()](path)
    except UnicodeDecodeError as error:
        raise InputError(f"--data {path}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    if not rows:
        raise InputError(f"--data {path}: the file has no rows")
    header = Header(path, tuple(dict.fromkeys(name for row in rows for name in row)), len(rows), key)
    for number, row in enumerate(rows):
        if "prompt" not in row:
            raise InputError(f"{header.where(number)}: there is no column 'prompt'; {lacking('prompt', row)}")
        if not isinstance(row["prompt"], (str, list)):
            raise InputError(f"{header.where(number)}: the prompt is {row['prompt']!r}, not text")
    if key is not None:
        _check_keys(header, rows, key)
    return Rows(header, rows)


def _check_keys(header: Header, rows: Sequence[Row], key: str) -> None:
    """Raises ``InputError`` unless every row has a key of its own."""
    if key not in header.columns:
        raise InputError(f"--key {key}: {header.path} has no such column; {lacking(key, header.columns)}")
    first: dict[str, int] = {}
    for number, row in enumerate(rows):
        value = row.get(key)
        if not isinstance(value, (str, int)) or isinstance(value, bool) or not str(value).strip():
            raise InputError(f"{header.where(number)}: the key {key} is {value!r}: text or a whole number is needed")
        if str(value) in first:
            raise InputError(f"--key {key}: rows {first[str(value)]} and {number} are both called {str(value)!r}")
        first[str(value)] = number


def _array(cells: list[Any]) -> Any:
    import pyarrow

    try:
        return pyarrow.array(cells)
    except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError):
        return pyarrow.array([None if cell is None else json.dumps(cell, ensure_ascii=False) for cell in cells])


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
