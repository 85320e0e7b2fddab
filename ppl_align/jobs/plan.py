"""Everything that can be known before an engine starts: what is wrong here costs the user no waiting."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ppl_align.core.columns import lacking
from ppl_align.core.errors import InputError
from ppl_align.core.seeds import mix
from ppl_align.jobs.rows import Header, Row, Rows, read_rows
from ppl_align.jobs.settings import Arguments, configure, parse_settings
from ppl_align.loading import error_line, load_engine, load_model, source_file
from ppl_align.program.compiled import Program
from ppl_align.program.sketch import sketch

DEFAULT_ENGINES = ("importance", "smc")


@dataclass(frozen=True)
class Asked:
    """The options that ``run``, ``check`` and ``inspect`` have in common, as they were typed.

    ``row``: the only row of ``data`` to look at; ``key``: the column of ``data`` that names its rows."""

    model: str
    prompt: str | None = None
    data: Path | None = None
    row: int | None = None
    settings: Sequence[str] = ()
    seed: int = 0
    debug: bool = False
    key: str | None = None


@dataclass(frozen=True)
class Target:
    """One posterior to infer, by every engine: the model's arguments, and the row of ``--data`` they came from.

    ``row``: its number, with leading zeros; ``key``: what its random numbers come from; ``where``, ``columns``: the
    file and row, what it has, for messages."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    seed: int
    row: str = ""
    key: str = ""
    prompt: Any = None
    where: str = ""
    columns: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """A model, engines by name, and what to call the model with: the same every time, or a row of ``--data``."""

    asked: Asked
    model: Callable[..., Any]
    engines: dict[str, Any]
    arguments: Arguments
    values: dict[str, Any]
    rows: Rows | None = None
    header: Header | None = field(default=None)

    @property
    def ignored(self) -> list[str]:
        """Columns of the data that the model has no argument for."""
        header = self.header
        return [] if header is None else [name for name in header.columns if not self.arguments.accepts(name)]

    def targets(self) -> Iterator[Target]:
        """The only target; or one for each row of the data, or for the one that was asked for.

        Raises ``InputError`` for a row that the model cannot be called with."""
        if self.rows is None:
            args, kwargs = self.arguments.bind(self.values)
            yield Target(args, kwargs, self.asked.seed, prompt=self.values.get("prompt"))
            return
        for number, row in self.rows.select(self.asked.row):
            yield self.target(number, row)

    def target(self, number: int, row: Row) -> Target:
        """The call that a row of the data stands for. Rows do not share their luck: a row's random numbers come from
        the run's seed and the row's key."""
        header = self.header
        assert header is not None
        where = header.where(number)
        others = [name for name in header.columns if self.arguments.open and name not in self.arguments.named]
        whole = {**dict.fromkeys(others), **row}  # a column that only other rows have is None, as in a data set
        given = {name: cell for name, cell in whole.items() if self.arguments.accepts(name)}
        given = {name: cell for name, cell in given.items() if not self.arguments.is_left_out(name, cell)}
        if header.is_text:
            given = {name: self.arguments.convert(name, cell, f"{where}: {name}") for name, cell in given.items()}
            if not isinstance(given["prompt"], (str, list)):  # a number is text to continue; a list, chat messages
                given["prompt"] = row["prompt"]
        args, kwargs = self.arguments.bind({**self.values, **given}, where, list(row))
        key = header.key_of(number, row)
        seed = mix(self.asked.seed, f"row {key}")
        return Target(args, kwargs, seed, header.label(number), key, row["prompt"], where, tuple(row))

    def tokens(self, target: Target) -> int:
        """That the texts of one particle hold at most, prompts included, by what the program says before anything is
        drawn; 1 for a program that cannot be looked at, which fails soon enough."""
        try:
            return max(1, sum(sketch(Program(self.model, target.args, target.kwargs)).tokens))
        except Exception:
            return 1

    def explain(self, target: Target, error: BaseException) -> str:
        """What went wrong with a target, in one line."""
        cause, hint = error.__cause__, ""
        key = str(cause.args[0]) if isinstance(cause, KeyError) and cause.args else ""
        if target.columns and key and key not in target.columns:  # kwargs["column"]
            hint = f"If {cause} is a column: {lacking(key, target.columns)}"
        return error_line(error, source_file(self.model), target.where, hint)


def make_plan(asked: Asked, engines: Sequence[str] = (), header: Header | None = None) -> Plan:
    """Load and check everything but the rows themselves; raises ``InputError`` for whatever the user has to mend first.

    A column of ``--data`` becomes the model's argument of its name; a model with ``**columns`` takes all of them.
    ``header``: of a data file that somebody else has read, who hands over the rows."""
    parsed = parse_settings(asked.settings)
    if asked.prompt is not None and asked.data is not None:
        raise InputError("give --prompt or --data, not both")
    if asked.row is not None and asked.data is None:
        raise InputError("--row N goes with --data FILE")
    rows = read_rows(asked.data, asked.key) if asked.data is not None and header is None else None
    header = header if rows is None else rows.header
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
    if header is not None:
        arguments.require("prompt", "--data")
        for name in header.columns:
            if name in values and arguments.accepts(name):
                raise InputError(f"--set {name}: {header.path} has a column of that name too; leave one of them out")
    return Plan(asked, model, configured, arguments, values, rows, header)
