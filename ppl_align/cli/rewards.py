"""``ppl-align rewards``: the rewards that come with the library, one line each."""

from __future__ import annotations

import math
from typing import Any

from ppl_align.cli.console import note, plain_table, show
from ppl_align.rewards.registry import SHIPPED, Shipped


def listing() -> int:
    """Name, range and meaning on stdout; how to use one on stderr."""
    table = plain_table()
    for column in ("name", "range", "what"):
        table.add_column(column, no_wrap=column != "what")
    for name, entry in sorted(SHIPPED.items()):
        table.add_row(name, reach(entry), entry.what)
    show(table)
    calls = ", ".join(entry.call for _, entry in sorted(SHIPPED.items()) if entry.arguments)
    note("\nby name: reward(name, 'vader', text) or --set reward=vader; by path: my_module:reward or my_file.py:reward")
    note(
        "a classifier: its folder or hub name, of several labels with the one that is wanted: --set reward=folder:LABEL"
    )
    note(f"with arguments, from ppl_align.rewards: {calls}")
    return 0


def reach(entry: Shipped) -> str:
    """The range of a reward as far as it is known before it is built: a bound may depend on the arguments.

    >>> reach(SHIPPED["vader"]), reach(SHIPPED["judge"]), reach(SHIPPED["keywords"])
    ('[-1, 1]', '(-inf, inf)', '[0, ...]')
    """
    held = entry.kind if entry.arguments else entry.kind()
    low, high = (_side(getattr(held, side, None), unknown) for side, unknown in (("lower", "-inf"), ("upper", "inf")))
    return f"{'(' if low == '-inf' else '['}{low}, {high}{')' if high == 'inf' else ']'}"


def _side(bound: Any, unknown: str) -> str:
    if isinstance(bound, property):
        return "..."
    return unknown if bound is None or math.isinf(bound) else f"{bound:.5g}"
