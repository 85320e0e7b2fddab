"""From finished posteriors to what is printed and saved: one comparison, or one for each row of ``--data``."""

from __future__ import annotations

import html
import json
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppl_align.cli.console import show
from ppl_align.cli.output import OutputFolder

if TYPE_CHECKING:
    from ppl_align.diagnostics.comparison import Comparison
    from ppl_align.posterior import Posterior

SHOWN = 3  # completions printed for each engine


@dataclass
class Group:
    """Posteriors of one target, by engine. ``row`` is empty where there is only one target."""

    row: str
    prompt: Any
    runs: dict[str, Posterior]


class Results:
    """Groups and their comparisons: engines are compared within a row, since rows have different targets."""

    def __init__(self, groups: Sequence[Group]) -> None:
        from ppl_align import compare

        self.pairs: list[tuple[Group, Comparison]] = [(group, compare(group.runs)) for group in groups]
        self.single = len(groups) == 1 and not groups[0].row

    def to_json(self) -> str:
        """The comparison, or ``{"rows": [{"row", "prompt", "comparison"}, ...]}``."""
        if self.single:
            return self.pairs[0][1].to_json()
        rows = [{"row": g.row, "prompt": g.prompt, "comparison": json.loads(c.to_json())} for g, c in self.pairs]
        return json.dumps({"rows": rows}, indent=2, ensure_ascii=False)

    def show(self) -> None:
        """The comparison and the best completions of each engine; of many rows, one table."""
        if not self.single:
            show(self._overview())
            return
        from ppl_align.report.terminal import best_completions

        group, comparison = self.pairs[0]
        show(comparison)
        for name, posterior in group.runs.items():
            show(f"\n{name}: the most probable of what it found")
            show(best_completions(posterior, SHOWN))

    def save(self, folder: OutputFolder) -> None:
        """Comparison and report; of many rows, one set for each row and one for all."""
        for group, comparison in self.pairs:
            folder.write_all(folder.root / group.row, comparison.save)
        if not self.single:
            folder.write_all(folder.root, self._save_overview)

    def _overview(self) -> Any:
        from rich.table import Table

        from ppl_align.diagnostics.columns import ANSWER

        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        columns = [c for c in self.pairs[0][1].columns if c.block == ANSWER or c.key == "ess"]
        for header in ("row", "prompt", "run"):
            table.add_column(header, overflow="fold")
        for column in columns:
            table.add_column(column.header, justify="right")
        for group, comparison in self.pairs:
            first = (group.row, textwrap.shorten(_words(group.prompt), 30, placeholder="..."))
            for name, row in comparison.rows.items():
                table.add_row(*first, name, *(column.text(row) for column in columns))
                first = ("", "")
        return table

    def _save_overview(self, folder: Path) -> None:
        import pandas as pd

        tables = []
        for group, comparison in self.pairs:
            table = comparison.table.reset_index()
            table.insert(0, "prompt", [str(group.prompt)] * len(table))
            table.insert(0, "row", group.row)
            tables.append(table)
        pd.concat(tables).to_csv(folder / "comparison.csv", index=False)
        (folder / "comparison.json").write_text(self.to_json(), encoding="utf-8")
        lines = [
            f'<li><a href="{group.row}/report.html">row {group.row}</a>: {html.escape(_words(group.prompt))} '
            f"<br>{html.escape(comparison.advice.verdict)}</li>"
            for group, comparison in self.pairs
        ]
        head = "<!doctype html><meta charset=utf-8><title>ppl-align</title><h1>One report for each row</h1>"
        (folder / "report.html").write_text(f"{head}<ul>{''.join(lines)}</ul>\n", encoding="utf-8")


def _words(prompt: Any) -> str:
    """A prompt as a reader knows it: of chat messages, what the last one says."""
    if isinstance(prompt, list) and prompt and isinstance(prompt[-1], dict):
        return str(prompt[-1].get("content", ""))
    return str(prompt)
