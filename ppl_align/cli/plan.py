"""Everything a command can know before an engine starts: what is wrong here costs the user no waiting."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ppl_align.cli.console import note, report, user_code, waiting
from ppl_align.cli.rows import Row, Rows, read_rows
from ppl_align.cli.settings import Arguments, configure, parse_settings
from ppl_align.core.columns import lacking
from ppl_align.core.errors import InputError
from ppl_align.loading import load_engine, load_model, source_file

DEFAULT_ENGINES = ("importance", "smc")


@dataclass(frozen=True)
class Asked:
    """The options that ``run``, ``check`` and ``inspect`` have in common, as they were typed."""

    model: str
    prompt: str | None = None
    data: Path | None = None
    row: int | None = None
    settings: Sequence[str] = ()
    seed: int = 0
    debug: bool = False


@dataclass(frozen=True)
class Job:
    """One posterior to infer, by every engine: the model's arguments, and the row of ``--data`` they came from.

    ``row``: its number, with leading zeros; ``where``, ``columns``: the file and row, what it has, for messages."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    seed: int
    row: str = ""
    prompt: Any = None
    where: str = ""
    columns: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """What will run: a model, engines by name, and one job (or one for each row of ``--data``)."""

    spec: str
    model: Callable[..., Any]
    engines: dict[str, Any]
    jobs: list[Job]
    ignored: list[str]

    def failed(self, job: Job, error: Exception, debug: bool) -> int:
        """Say what went wrong with a job; returns the exit code."""
        cause, hint = error.__cause__, ""
        key = str(cause.args[0]) if isinstance(cause, KeyError) and cause.args else ""
        if job.columns and key and key not in job.columns:  # kwargs["column"]
            hint = f"If {cause} is a column: {lacking(key, job.columns)}"
        return report(error, debug, source_file(self.model), job.where, hint)


def load_plan(asked: Asked, engines: Sequence[str] = ()) -> Plan:
    """:func:`make_plan`, and a word to the user about what takes time and what is left out."""
    with user_code(), waiting(f"loading {asked.model}"):
        plan = make_plan(asked, engines)
    if plan.ignored:
        named = Arguments(plan.model, plan.spec).named
        meant = [get_close_matches(name, named, n=1) for name in plan.ignored]
        listed = [f"{n} (did you mean {m[0]!r}?)" if m else n for n, m in zip(plan.ignored, meant, strict=True)]
        note(f"columns that {plan.spec} has no argument for are ignored: {', '.join(listed)}")
    return plan


def load_one(asked: Asked, engines: Sequence[str] = ()) -> tuple[Plan, Job]:
    """:func:`load_plan` of one target: of ``--data``, the row that ``--row`` names, else the first."""
    plan = load_plan(asked if asked.data is None else replace(asked, row=asked.row or 0), engines)
    (job,) = plan.jobs
    if asked.data is not None and asked.row is None:
        note(f"{job.where}; --row N looks at another")
    return plan, job


def make_plan(asked: Asked, engines: Sequence[str] = ()) -> Plan:
    """Load and check everything; raises ``InputError`` for whatever the user has to mend first.

    A column of ``--data`` becomes the model's argument of its name; a model with ``**columns`` takes all of them.
    Row i runs with seed ``seed + i``, so that rows do not share their luck."""
    parsed = parse_settings(asked.settings)
    if asked.prompt is not None and asked.data is not None:
        raise InputError("give --prompt or --data, not both")
    if asked.row is not None and asked.data is None:
        raise InputError("--row N goes with --data FILE")
    rows = None if asked.data is None else read_rows(asked.data)
    chosen = [] if rows is None else rows.select(asked.row)
    configured = configure([load_engine(name) for name in engines], parsed.engine)
    model = load_model(asked.model)
    arguments = Arguments(model, asked.model)
    values: dict[str, Any] = {}
    for name, text in parsed.model.items():
        arguments.require(name, f"--set {name}")
        values[name] = arguments.convert(name, text, f"--set {name}")
    if asked.prompt is not None:
        arguments.require("prompt", "--prompt")
        if "prompt" in values:
            raise InputError("give --prompt or --set prompt=, not both")
        values["prompt"] = asked.prompt
    if rows is None:
        args, kwargs = arguments.bind(values)
        return Plan(asked.model, model, configured, [Job(args, kwargs, asked.seed, prompt=values.get("prompt"))], [])
    arguments.require("prompt", "--data")
    for name in rows.columns:
        if name in values and arguments.accepts(name):
            raise InputError(f"--set {name}: {rows.path} has a column of that name too; leave one of them out")
    jobs = [_job(rows, number, row, arguments, values, asked.seed) for number, row in chosen]
    ignored = [name for name in rows.columns if not arguments.accepts(name)]
    return Plan(asked.model, model, configured, jobs, ignored)


def _job(rows: Rows, number: int, row: Row, arguments: Arguments, values: dict[str, Any], seed: int) -> Job:
    """The call that a row of the data stands for."""
    where = rows.where(number)
    others = [name for name in rows.columns if arguments.open and name not in arguments.named]
    whole = {**dict.fromkeys(others), **row}  # a column that only other rows have is None, as in a data set
    given = {name: cell for name, cell in whole.items() if arguments.accepts(name)}
    if rows.path.suffix.lower() == ".csv":
        given = {name: arguments.convert(name, cell, f"{where}: {name}") for name, cell in given.items()}
        if not isinstance(given["prompt"], (str, list)):  # a number is text to continue; a list, chat messages
            given["prompt"] = row["prompt"]
    args, kwargs = arguments.bind({**values, **given}, where, list(row))
    width = len(str(len(rows.rows) - 1))
    return Job(args, kwargs, seed + number, f"{number:0{width}d}", row["prompt"], where, tuple(row))
