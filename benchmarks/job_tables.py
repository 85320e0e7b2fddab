"""What each row of a large job takes of the process that started it, whoever does the rows.

    python benchmarks/job_tables.py [--rows 3000]

One row is done as ``ppl-align run --limit 1`` does it; then what came back is taken as the result of every row, and
timed: *grouping* (rows are read and bound, and how many tokens they have is found), *writing* (what comes back, as a
job writes it), *delivering* (the tables and the page at the end). Last, what is on disk without reports.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from job_costs import ENGINE, MODEL

from ppl_align.cli.job import MAX_BATCH_TOKENS
from ppl_align.jobs.delivered import as_table, renamed, with_columns_of
from ppl_align.jobs.folder import JobFolder
from ppl_align.jobs.job import grouped
from ppl_align.jobs.plan import Asked, make_plan
from ppl_align.jobs.results import deliver
from ppl_align.jobs.spec import JobSpec


def main() -> None:
    """A line for each of the three, and one for the disk."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=3000)
    rows: int = parser.parse_args().rows
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        Path("film.py").write_text(MODEL)
        Path("few.py").write_text(ENGINE.format(16))
        Path("data.jsonl").write_text(
            "".join(json.dumps({"prompt": f"The movie number {row} was"}) + "\n" for row in range(rows))
        )
        job = ["run", "film.py", "--data", "data.jsonl", "--engine", "few.py", "--out", "one", "--keep", "none"]
        command = [str(Path(sys.executable).with_name("ppl-align")), *job, "--limit", "1"]
        subprocess.run(command, check=True, capture_output=True)
        found, (summary,) = JobFolder(Path("one")).read_part(0)

        plan = make_plan(Asked("film.py", data=Path("data.jsonl")), ("few.py",))
        assert plan.rows is not None
        lines = found.drop_columns(list(renamed(plan.rows.header.columns).values())).to_pylist()
        began = time.perf_counter()
        groups = grouped(plan, MAX_BATCH_TOKENS)
        print(f"grouping    {1000 * (time.perf_counter() - began) / rows:6.2f} ms a row, {len(groups)} groups")

        folder = JobFolder(Path("all"))
        folder.begin(JobSpec.of(plan, 1, MAX_BATCH_TOKENS, 1, False))
        began = time.perf_counter()
        for group in groups:
            came_back = as_table([{**line, "_number": row, "row": str(row)} for row in group.rows for line in lines])
            summaries = [{**summary, "number": row, "row": str(row)} for row in group.rows]
            folder.write_part(group.number, with_columns_of(plan.rows, came_back), summaries)
        print(f"writing     {1000 * (time.perf_counter() - began) / rows:6.2f} ms a row")

        began = time.perf_counter()
        deliver(folder, [group.number for group in groups])
        print(f"delivering  {1000 * (time.perf_counter() - began) / rows:6.2f} ms a row")
        held = sum(file.stat().st_size for file in folder.root.rglob("*"))
        print(f"on disk     {held / rows:6.0f} bytes a row")


if __name__ == "__main__":
    main()
