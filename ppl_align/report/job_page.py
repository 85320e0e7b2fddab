"""``report.html`` of a data set: one line a row, text first, sortable and searchable; no network needed to read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ppl_align.diagnostics.columns import is_missing
from ppl_align.report.notebook import template
from ppl_align.report.terminal import cell

STANDINGS = ("sound", "unconfirmed", "unsound", "failed")
"""How a row may end: how far its verdict goes, or without one."""
MOST = 5000
"""Rows that a page shows, those to look at first: a browser is no place for a million."""


def render(
    model: str,
    data: str,
    total: int,
    engines: Sequence[str],
    rows: Sequence[Mapping[str, Any]],
    links: Mapping[int, str],
) -> str:
    """The page as a string. ``rows``: summaries in the order of the data; ``links``: reports of rows, by number."""
    rewards = list(dict.fromkeys(name for row in rows for name in row.get("rewards", {})))
    standings = [_standing(row) for row in rows]
    counts = {standing: standings.count(standing) for standing in STANDINGS}
    gravest = sorted(range(len(rows)), key=lambda i: -STANDINGS.index(standings[i]))[:MOST]
    lines = [_line(rows[i], rewards, links.get(rows[i]["number"])) for i in sorted(gravest)]
    return template("job.html.j2").render(
        model=model,
        data=data,
        total=total,
        engines=engines,
        rewards=rewards,
        rows=lines,
        done=len(rows),
        counts={standing: count for standing, count in counts.items() if count},
    )


def _standing(row: Mapping[str, Any]) -> str:
    return "failed" if "error" in row else str(row["standing"])


def _line(row: Mapping[str, Any], rewards: Sequence[str], link: str | None) -> dict[str, Any]:
    if "error" in row:
        why = row["error"].removeprefix("error: ")
        nothing = {"completion": "", "effective_draws": "", "draws": "", "rewards": [_reward(None) for _ in rewards]}
        return {**row, **nothing, "standing": "failed", "order": 3, "why": why, "link": None}
    return {
        **row,
        "order": STANDINGS.index(row["standing"]),
        "rewards": [_reward(row["rewards"].get(name)) for name in rewards],
        "why": row["verdict"],
        "link": link,
        "draws": cell("ess", row["effective_draws"]),
    }


def _reward(pair: Sequence[float | None] | None) -> dict[str, str]:
    """Under the prior and under the posterior, as they are shown, and what to sort by."""
    before, after = pair or (None, None)
    shown = ["" if is_missing(value) else cell("", value) for value in (before, after)]
    return {"before": shown[0], "after": shown[1], "by": "" if is_missing(after) else repr(after)}
