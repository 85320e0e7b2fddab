"""``completions.parquet``, ``completions.csv`` and the top page: what is delivered, made from the parts of a job."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.compute

from ppl_align.jobs.delivered import as_table, in_order
from ppl_align.jobs.folder import JobFolder, write_parquet
from ppl_align.jobs.rows import Rows
from ppl_align.jobs.spec import JobSpec

COMPLETIONS = "completions.parquet"


def deliver(folder: JobFolder, groups: Sequence[int], rows: Rows, wanted: set[int]) -> list[dict[str, Any]]:
    """Write the files of all ``wanted`` rows that are done, and the page; the summaries, in the order of the data.

    Nothing in the tables depends on the clock, nor on how often the job was stopped."""
    parts = [folder.read_part(group) for group in groups]
    found = [row for _, summaries in parts for row in summaries if row["number"] in wanted]
    lines = pyarrow.concat_tables([as_table([]), *(table for table, _ in parts)], promote_options="permissive")
    lines = lines.filter(pyarrow.compute.is_in(lines["number"], pyarrow.array(sorted(wanted), pyarrow.int64())))
    table = with_columns_of(rows, lines["number"].to_pylist(), in_order(lines).drop_columns("number"))
    folder.write(folder.root / COMPLETIONS, lambda path: write_parquet(table, path))
    folder.write(folder.root / "completions.csv", lambda path: _write_csv(table, path))
    _write_page(folder, found, rows)
    return found


def with_columns_of(rows: Rows, at: Sequence[int], lines: pyarrow.Table) -> pyarrow.Table:
    """``lines`` with the columns of the data in front, line i with those of row ``at[i]``. A column that is called like
    one of ours becomes ``data.NAME``."""
    columns: dict[str, Any] = {}
    for name in rows.header.columns:
        cells = [row.get(name) for row in rows.rows]
        taken = _array(cells).take(pyarrow.array(at, pyarrow.int64()))
        columns[f"data.{name}" if name in lines.column_names else name] = taken
    return pyarrow.table({**columns, **{name: lines[name] for name in lines.column_names}})


def _array(cells: list[Any]) -> pyarrow.Array:
    """Cells of one type as they are; of several, as JSON."""
    try:
        return pyarrow.array(cells)
    except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError):
        return pyarrow.array([None if cell is None else json.dumps(cell, ensure_ascii=False) for cell in cells])


def _write_csv(table: pyarrow.Table, path: Path) -> None:
    frame = table.to_pandas()
    for name, field in zip(table.column_names, table.schema, strict=True):
        if pyarrow.types.is_nested(field.type):
            cells = table[name].to_pylist()
            frame[name] = [None if cell is None else json.dumps(cell, ensure_ascii=False) for cell in cells]
    frame.to_csv(path, index=False)


def _write_page(folder: JobFolder, found: Sequence[dict[str, Any]], rows: Rows) -> None:
    from ppl_align.report.job_page import render

    spec = JobSpec.load(folder.spec)
    reports = {row["number"]: f"rows/{rows.header.label(row['number'])}/report.html" for row in found}
    links = {number: path for number, path in reports.items() if (folder.root / path).is_file()}
    page = render(spec.model, rows.header.path.name, rows.header.count, list(spec.engines), found, links)
    folder.write(folder.root / "report.html", lambda path: path.write_text(page, encoding="utf-8"))
