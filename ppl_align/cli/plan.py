"""Everything ``run`` and ``check`` can know before an engine starts: what is wrong here costs the user no waiting."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ppl_align.cli.rows import columns, read_rows
from ppl_align.cli.settings import Arguments, configure, parse_settings
from ppl_align.errors import InputError
from ppl_align.loading import load_engine, load_model

DEFAULT_ENGINES = ("importance", "smc")


@dataclass(frozen=True)
class Job:
    """One posterior to infer, by every engine: the model's arguments, and the row of ``--data`` they came from."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    seed: int
    row: str = ""
    prompt: Any = None


@dataclass(frozen=True)
class Plan:
    """What will run: a model, engines by name, and one job (or one for each row of ``--data``)."""

    spec: str
    model: Callable[..., Any]
    engines: dict[str, Any]
    jobs: list[Job]
    ignored: list[str]


def make_plan(
    spec: str,
    engines: Sequence[str],
    prompt: str | None,
    data: Path | None,
    settings: Sequence[str],
    seed: int,
) -> Plan:
    """Load and check everything; raises ``InputError`` for whatever the user has to mend first.

    A column of ``--data`` becomes the model's argument of its name; a model with ``**columns`` takes all of them.
    Row i runs with seed ``seed + i``, so that rows do not share their luck."""
    parsed = parse_settings(settings)
    if prompt is not None and data is not None:
        raise InputError("give --prompt or --data, not both")
    rows = [] if data is None else read_rows(data)
    configured = configure([load_engine(name) for name in engines], parsed.engine)
    model = load_model(spec)
    arguments = Arguments(model, spec)
    values: dict[str, Any] = {}
    for name, text in parsed.model.items():
        arguments.require(name, f"--set {name}")
        values[name] = arguments.convert(name, text, f"--set {name}")
    for name in columns(rows):
        if name in values and arguments.accepts(name):
            raise InputError(f"--set {name}: {data} has a column of that name too; leave one of them out")
    if prompt is not None:
        arguments.require("prompt", "--prompt")
        if "prompt" in values:
            raise InputError("give --prompt or --set prompt=, not both")
        values["prompt"] = prompt
    if data is None:
        args, kwargs = arguments.bind(values)
        return Plan(spec, model, configured, [Job(args, kwargs, seed, prompt=values.get("prompt"))], [])
    arguments.require("prompt", "--data")
    jobs = []
    collected = [name for name in columns(rows) if arguments.open and name not in arguments.named]
    width = len(str(len(rows) - 1))
    for number, row in enumerate(rows):
        label = f"--data {data}, row {number}"
        row = {**dict.fromkeys(collected), **row}  # a column that only other rows have is None, as in a data set
        given = {name: cell for name, cell in row.items() if arguments.accepts(name)}
        if data.suffix.lower() == ".csv":
            given = {name: arguments.convert(name, cell, f"{label}: {name}") for name, cell in given.items()}
            if not isinstance(given["prompt"], (str, list)):  # a number is text to continue; a list, chat messages
                given["prompt"] = row["prompt"]
        args, kwargs = arguments.bind({**values, **given}, f"{label}: ")
        jobs.append(Job(args, kwargs, seed + number, f"{number:0{width}d}", row["prompt"]))
    ignored = [name for name in columns(rows) if not arguments.accepts(name)]
    return Plan(spec, model, configured, jobs, ignored)
