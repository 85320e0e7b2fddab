"""``ppl-align inspect``: what a target is like, before any inference is spent on it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ppl_align.cli.console import note, progress, show, user_code
from ppl_align.cli.output import output_folder
from ppl_align.cli.plan import Asked, load_one
from ppl_align.core.errors import InputError


def inspect(
    asked: Asked, events: Sequence[str], draws: int, goal: int, out: Path | None, force: bool, as_json: bool
) -> int:
    """Draw from the prior of a model, print what that says of its target; returns the exit code."""
    if draws < 2:
        raise InputError(f"--draws must be at least 2, got {draws}")
    named = parse_events(events)
    folder = output_folder(out, force)
    plan, job = load_one(asked)
    from ppl_align.inspection import inspect as look

    options: Any = {"num_draws": draws, "events": named, "goal": goal, "seed": job.seed}
    try:
        with user_code(), progress(asked.model) as tell:
            found = look(plan.model, *job.args, progress=tell, **options, **job.kwargs)
    except Exception as error:
        return plan.failed(job, error, asked.debug)
    show(found, as_json)  # before it is saved: what goes wrong there must not cost the user the tables
    if folder is not None:
        folder.open({"model": plan.spec, "seed": asked.seed, "args": job.args, "kwargs": job.kwargs, "row": job.row})
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
