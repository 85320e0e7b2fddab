"""``completions.parquet``, ``completions.csv`` and the top page: what is delivered, made from the parts of a job."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.compute

from ppl_align.jobs.delivered import as_table, in_order
from ppl_align.jobs.folder import JobFolder, write_parquet
from ppl_align.jobs.rows import label_of
from ppl_align.jobs.spec import JobSpec

COMPLETIONS = "completions.parquet"


def deliver(folder: JobFolder, groups: Sequence[int]) -> list[dict[str, Any]]:
    """Write the files of all rows that are done, and the page; the summaries, in the order of the data.

    Nothing in the tables depends on the clock, nor on how often the job was stopped. Where no row has a completion
    there are no tables: an empty one is more than ``datasets`` can read."""
    parts = [folder.read_part(group) for group in groups]
    found = [row for _, summaries in parts for row in summaries]
    table = in_order(posterior_lines([lines for lines, _ in parts]))
    writers: dict[str, Callable[[Path], object]] = {
        COMPLETIONS: lambda path: write_parquet(table, path),
        "completions.csv": lambda path: _write_csv(table, path),
    }
    for name, writer in writers.items():
        if len(table):
            folder.write(folder.root / name, writer)
        else:
            (folder.root / name).unlink(missing_ok=True)
    _write_page(folder, found)
    return found


def posterior_lines(parts: Sequence[pyarrow.Table], prior: bool = False) -> pyarrow.Table:
    """Lines from all parts, in the order of the data; with ``prior`` the draws of the prior."""
    lines = pyarrow.concat_tables(parts or [as_table([])], promote_options="permissive")
    return lines.filter(pyarrow.compute.equal(lines["_prior"], prior))


def _write_csv(table: pyarrow.Table, path: Path) -> None:
    frame = table.to_pandas()
    for name, field in zip(table.column_names, table.schema, strict=True):
        if pyarrow.types.is_nested(field.type):
            cells = table[name].to_pylist()
            frame[name] = [None if cell is None else json.dumps(cell, ensure_ascii=False) for cell in cells]
    frame.to_csv(path, index=False)


def _write_page(folder: JobFolder, found: Sequence[dict[str, Any]]) -> None:
    from ppl_align.report.job_page import render

    spec = JobSpec.load(folder.spec)
    total = spec.data["rows"]
    reports = {row["number"]: f"rows/{label_of(row['number'], total)}/report.html" for row in found}
    links = {number: path for number, path in reports.items() if (folder.root / path).is_file()}
    page = render(spec.model, spec.data["file"], total, list(spec.engines), found, links)
    folder.write(folder.root / "report.html", lambda path: path.write_text(page, encoding="utf-8"))
