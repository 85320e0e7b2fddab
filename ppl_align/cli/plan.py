"""What a command was asked for, loaded and checked, with a word to the user about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from difflib import get_close_matches

from ppl_align.cli.console import note, user_code, waiting
from ppl_align.jobs.plan import Asked, Plan, Target, make_plan


def load_plan(asked: Asked, engines: Sequence[str] = ()) -> Plan:
    """:func:`make_plan`, and a word to the user about what takes time and what is left out."""
    with user_code(), waiting(f"loading {asked.model}"):
        plan = make_plan(asked, engines)
    if plan.ignored:
        meant = [get_close_matches(name, plan.arguments.named, n=1) for name in plan.ignored]
        listed = [f"{n} (did you mean {m[0]!r}?)" if m else n for n, m in zip(plan.ignored, meant, strict=True)]
        note(f"{asked.model} has no argument for the columns {', '.join(listed)}: it does not see them")
    return plan


def load_one(asked: Asked, engines: Sequence[str] = ()) -> tuple[Plan, Target]:
    """:func:`load_plan` of one target: of ``--data``, the row that ``--row`` names, else the first."""
    plan = load_plan(asked if asked.data is None else replace(asked, row=asked.row or 0), engines)
    (target,) = plan.targets()
    if asked.data is not None and asked.row is None:
        note(f"{target.where}; --row N looks at another")
    return plan, target
