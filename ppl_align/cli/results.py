"""From finished posteriors to what is printed and saved: one comparison, or one for each row of ``--data``."""

from __future__ import annotations

import html
import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ppl_align.cli.console import plain_table
from ppl_align.cli.output import OutputFolder

if TYPE_CHECKING:
    from ppl_align.diagnostics.advisor import Advice
    from ppl_align.posterior import Posterior

SHOWN = 3  # completions printed for each engine
NAMED = 8  # rows that a verdict names of each kind


@dataclass
class Group:
    """Posteriors of one target, by engine. ``row`` is empty where there is only one target."""

    row: str
    prompt: Any
    runs: dict[str, Posterior]


class Results:
    """Groups and their comparisons: engines are compared within a row, since rows have different targets.

    ``pairs``: the groups that have runs; ``advice``: the verdict on the only one, or over all rows."""

    def __init__(self, groups: Sequence[Group]) -> None:
        from ppl_align import compare

        compared = [(group, compare(group.runs) if group.runs else None) for group in groups]
        self.pairs = [(group, comparison) for group, comparison in compared if comparison is not None]
        self.single = len(groups) == 1 and not groups[0].row
        given = {group.row: None if comparison is None else comparison.advice for group, comparison in compared}
        self.advice = self.pairs[0][1].advice if self.single else over_rows(given)

    def to_json(self) -> str:
        """The comparison, or ``{"advice": ..., "rows": [{"row", "prompt", "comparison"}, ...]}``."""
        if self.single:
            return self.pairs[0][1].to_json()
        rows = [{"row": g.row, "prompt": g.prompt, "comparison": json.loads(c.to_json())} for g, c in self.pairs]
        return json.dumps({"advice": asdict(self.advice), "rows": rows}, indent=2, ensure_ascii=False)

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        """The comparison and the best completions of each engine; of many rows, one table and the verdict."""
        from ppl_align.report.terminal import advice, best_completions

        if not self.single:
            yield from (self._overview(), "", *self._unstated(), advice(self.advice))
            return
        group, comparison = self.pairs[0]
        yield comparison
        for name, posterior in group.runs.items():
            yield f"\n{name}: the most probable of what it found"
            yield best_completions(posterior, SHOWN)

    def save(self, folder: OutputFolder) -> None:
        """Comparison and report; of many rows, one set for each row and one for all."""
        for group, comparison in self.pairs:
            folder.write_all(folder.root / group.row, comparison.save)
        if not self.single:
            folder.write_all(folder.root, self._save_overview)

    def _overview(self) -> Any:
        from ppl_align.diagnostics.columns import ANSWER

        table = plain_table()
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

    def _unstated(self) -> list[str]:
        """Why some numbers of the overview have no error; an engine is named once for each reason."""
        from ppl_align.posterior.unstated import unstated_of

        return list(dict.fromkeys(line for group, _ in self.pairs for line in unstated_of(group.runs)))

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
        found = "".join(f"<li>{html.escape(reason)}</li>" for reason in self.advice.reasons)
        verdict = f"<p><b>{html.escape(self.advice.verdict)}</b></p><ul>{found}</ul>"
        lines = [
            f'<li><a href="{group.row}/report.html">row {group.row}</a>: {html.escape(_words(group.prompt))} '
            f"<br>{html.escape(comparison.advice.verdict)}</li>"
            for group, comparison in self.pairs
        ]
        head = "<!doctype html><meta charset=utf-8><title>ppl-align</title><h1>One report for each row</h1>"
        (folder / "report.html").write_text(f"{head}{verdict}<ul>{''.join(lines)}</ul>\n", encoding="utf-8")


def _words(prompt: Any) -> str:
    """A prompt as a reader knows it: of chat messages, what the last one says."""
    if isinstance(prompt, list) and prompt and isinstance(prompt[-1], dict):
        return str(prompt[-1].get("content", ""))
    return str(prompt)


def over_rows(rows: Mapping[str, Advice | None]) -> Advice:
    """What the advice on every row amounts to; None for a row that no engine finished. Each row has a target of its
    own, and is trusted or not by itself.

    ``standing`` is that of the worst row; ``reasons`` has a line for each row that cannot be trusted as it is."""
    from ppl_align.diagnostics.advisor import CAVEAT, Advice

    kinds: dict[str, list[str]] = {"sound": [], "unconfirmed": [], "unsound": [], "missing": []}
    for row, advice in rows.items():
        kinds["missing" if advice is None else advice.standing].append(row)
    good, count = len(kinds["sound"]), len(rows)
    parts = [f"{good} of {count} row{'s' if count > 1 else ''} can be trusted"]
    if good == count:
        parts = [f"All {count} rows can be trusted" if count > 1 else "The row can be trusted"]
    for kind, what in (
        ("unsound", "not to be trusted"),
        ("unconfirmed", "unconfirmed"),
        ("missing", "without a result"),
    ):
        if kinds[kind]:
            parts.append(f"{what}: {_listed(kinds[kind])}")
    why = {row: "no engine finished." if advice is None else advice.verdict for row, advice in rows.items()}
    reasons = [f"row {row}: {why[row]}" for row in rows if row not in kinds["sound"]]
    if any(advice is not None and CAVEAT in advice.reasons for advice in rows.values()):
        reasons.append(CAVEAT)
    worst: Literal["sound", "unconfirmed", "unsound"] = "unconfirmed" if kinds["unconfirmed"] else "sound"
    if kinds["unsound"] or kinds["missing"]:
        worst = "unsound"
    return Advice("; ".join(parts) + ".", tuple(reasons), worst)


def _listed(rows: Sequence[str]) -> str:
    more = f" and {len(rows) - NAMED} more" if len(rows) > NAMED else ""
    return f"row{'s' if len(rows) > 1 else ''} {', '.join(rows[:NAMED])}{more}"
