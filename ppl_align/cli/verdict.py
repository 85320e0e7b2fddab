"""One verdict over the rows of ``--data``: each row has a target of its own, and is trusted or not by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from ppl_align.diagnostics.advisor import Advice

SHOWN = 8  # rows that a verdict names of each kind


def over_rows(rows: Mapping[str, Advice | None]) -> Advice:
    """What the advice on every row amounts to; None for a row that no engine finished.

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
    more = f" and {len(rows) - SHOWN} more" if len(rows) > SHOWN else ""
    return f"row{'s' if len(rows) > 1 else ''} {', '.join(rows[:SHOWN])}{more}"
