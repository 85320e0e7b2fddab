"""``ppl-align inspect``: what a target is like, before any inference is spent on it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from ppl_align.cli.console import exit_code, note, progress, report, show, user_code, waiting
from ppl_align.cli.output import OutputFolder
from ppl_align.cli.plan import make_plan
from ppl_align.errors import InputError
from ppl_align.loading import source_file


def inspect(
    model: str,
    prompt: str | None,
    settings: Sequence[str],
    events: Sequence[str],
    draws: int,
    goal: int,
    seed: int,
    out: Path | None,
    force: bool,
    as_json: bool,
    debug: bool,
) -> int:
    """Draw from the prior of a model, print what that says of its target; returns the exit code."""
    if draws < 2:
        raise InputError(f"--draws must be at least 2, got {draws}")
    named = parse_events(events)
    folder = None if out is None else OutputFolder(out, force)
    if folder is not None:
        folder.check()
    with user_code(), waiting(f"loading {model}"):
        plan = make_plan(model, [], prompt, None, settings, seed)
        from ppl_align.inspection import inspect as look
    job = plan.jobs[0]
    try:
        with user_code(), progress(model) as tell:
            found = look(
                plan.model,
                *job.args,
                num_draws=draws,
                events=named,
                goal=goal,
                seed=job.seed,
                progress=tell,
                **job.kwargs,
            )
    except Exception as error:
        report(error, debug, source_file(plan.model))
        return exit_code(error)
    if folder is not None:
        folder.open({"model": plan.spec, "seed": seed, "args": job.args, "kwargs": job.kwargs})
        folder.write_all(folder.root, found.save)
        note(f"saved in {folder.root}")
    if as_json:
        print(found.to_json())
    else:
        show(found)
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
