"""``ppl-align inspect``: what a target is like, before any inference is spent on it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ppl_align.cli.console import note, progress, report, show, user_code
from ppl_align.cli.output import output_folder
from ppl_align.cli.plan import load_one
from ppl_align.core.errors import InputError
from ppl_align.jobs.plan import Asked


def inspect(
    asked: Asked, events: Sequence[str], draws: int, goal: int, out: Path | None, force: bool, as_json: bool
) -> int:
    """Draw from the prior of a model, print what that says of its target; returns the exit code."""
    if draws < 2:
        raise InputError(f"--draws must be at least 2, got {draws}")
    named = parse_events(events)
    folder = output_folder(out, force)
    plan, target = load_one(asked)
    from ppl_align.inspection import inspect as look

    options: Any = {"num_draws": draws, "events": named, "goal": goal, "seed": target.seed}
    try:
        with user_code(), progress(asked.model) as tell:
            found = look(plan.model, *target.args, progress=tell, **options, **target.kwargs)
    except Exception as error:
        return report(error, asked.debug, plan.explain(target, error))
    show(found, as_json)  # before it is saved: what goes wrong there must not cost the user the tables
    if folder is not None:
        folder.open(
            {"model": asked.model, "seed": asked.seed, "args": target.args, "kwargs": target.kwargs, "row": target.row}
        )
        folder.write_all(folder.root, found.save)
        note(f"saved in {folder.root}")
    return 0


def parse_events(items: Sequence[str]) -> dict[str, Callable[[str], bool]]:
    """``["food=eat|cook"]`` -> functions of a text, by name: does the regular expression occur in it?

    >>> parse_events(["food=eat|cook"])["food"]("they cook")
    True
    """
    named: dict[str, Callable[[str], bool]] = {}
    for item in items:
        name, equals, pattern = item.partition("=")
        if not equals or not name.strip() or not pattern:
            raise InputError(f"--event wants NAME=REGEX, got {item!r}")
        if name.strip() in named:
            raise InputError(f"--event {name.strip()} is given twice")
        try:
            named[name.strip()] = _occurs(re.compile(pattern))
        except re.error as error:
            raise InputError(f"--event {name.strip()}: {pattern!r} is no regular expression: {error}") from None
    return named


def _occurs(pattern: re.Pattern[str]) -> Callable[[str], bool]:
    return lambda text: pattern.search(text) is not None
