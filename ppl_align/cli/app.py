"""The commands and their options. What they do is imported when they run, so that ``--help`` is quick."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ppl_align.cli.console import Told, err, report
from ppl_align.core.errors import InputError

app = typer.Typer(
    name="ppl-align",
    help="Language-model alignment as Bayesian inference: one model, several inference engines, one comparison.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_ENGINES = "a gallery recipe, or file.py that says engine = ...; may be repeated [importance, smc]"

ModelName = Annotated[
    str, typer.Argument(metavar="MODEL", help="a gallery name, file.py, file.py:function or package.module:attr")
]
Prompt = Annotated[str | None, typer.Option("--prompt", metavar="TEXT", help="the model's argument named prompt")]
Data = Annotated[
    Path | None,
    typer.Option("--data", metavar="FILE", help="JSONL, CSV or Parquet with a prompt column: the model's arguments"),
]
OneRow = Annotated[
    int | None, typer.Option("--row", metavar="N", min=0, help="the row of --data to look at, counted from 0 [0]")
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="a model's argument, or engine.key=value for an engine's option"),
]
SetModel = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="a model's argument")]
Seed = Annotated[int, typer.Option("--seed", metavar="N", min=0, help="same seed, same result")]
Json = Annotated[bool, typer.Option("--json", help="print JSON on stdout, and nothing else there")]
Force = Annotated[bool, typer.Option("--force", help="replace the run that the output folder holds")]
Debug = Annotated[bool, typer.Option("--debug", help="show tracebacks")]


def _print_version(asked: bool) -> None:
    if asked:
        from ppl_align import __version__

        print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="print the version", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Options that need no command are answered while they are read: without one, click stops right after."""


@app.command()
def run(
    model: ModelName,
    engine: Annotated[
        list[str] | None,
        typer.Option("--engine", metavar="NAME", help=_ENGINES),
    ] = None,
    prompt: Prompt = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="FILE", help="JSONL, CSV or Parquet with a prompt column: one posterior a row"),
    ] = None,
    set_: Set = None,
    seed: Seed = 0,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="folder for posteriors (netCDF), comparison, report; completions"),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="replace the run that DIR holds; a job is moved to DIR.1")
    ] = False,
    json: Json = False,
    debug: Debug = False,
    draws: Annotated[
        int | None, typer.Option("--draws", metavar="K", min=1, help="completions delivered of each row [1]")
    ] = None,
    all_runs: Annotated[
        bool, typer.Option("--all-runs", help="deliver completions of every engine, not of the best only")
    ] = False,
    key: Annotated[
        str | None, typer.Option("--key", metavar="COLUMN", help="the column that names the rows [number]")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", metavar="N", min=1, help="only the first N rows")] = None,
    rows: Annotated[str | None, typer.Option("--rows", metavar="KEY,...", help="only these rows")] = None,
    retries: Annotated[
        int, typer.Option("--retries", metavar="N", min=0, help="tries again of a reward that raises")
    ] = 0,
    reward_concurrency: Annotated[
        int | None,
        typer.Option("--reward-concurrency", metavar="N", min=1, help="async rewards at a time [all]"),
    ] = None,
    fail_fast: Annotated[bool, typer.Option("--fail-fast", help="stop at the first row that fails")] = False,
    max_batch_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-batch-tokens", metavar="N", min=1, help="tokens held at a time: rows share batches [16384]"
        ),
    ] = None,
    keep: Annotated[
        str | None, typer.Option("--keep", metavar="WHAT", help="of each row: all, posteriors, reports, none [all]")
    ] = None,
    escalate: Annotated[
        int | None,
        typer.Option(
            "--escalate",
            metavar="BUDGET",
            min=1,
            help="rows that are not sound take more particles, at most BUDGET times as many",
        ),
    ] = None,
    executor: Annotated[
        str | None, typer.Option("--executor", metavar="HOW", help="serial, process or ray [serial]")
    ] = None,
    workers: Annotated[int | None, typer.Option("--workers", metavar="N", min=1, help="of the executor [1]")] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", metavar="N", min=1, help="of torch, in each worker")
    ] = None,
    shard: Annotated[
        str | None, typer.Option("--shard", metavar="I/N", help="only the I-th of N parts (see merge)")
    ] = None,
) -> int:
    """Infer the posterior of MODEL by several engines, compare them. With --data, of each row: a job, which the same
    command goes on with where it stopped; the options from --draws on are about jobs."""
    from ppl_align.jobs.plan import Asked

    asked = Asked(model, prompt, data, None, set_ or [], seed, debug, key)
    of_jobs = {
        "draws": draws,
        "all_runs": all_runs,
        "limit": limit,
        "rows": rows,
        "retries": retries,
        "reward_concurrency": reward_concurrency,
        "fail_fast": fail_fast,
        "max_batch_tokens": max_batch_tokens,
        "keep": keep,
        "escalate": escalate,
        "executor": executor,
        "workers": workers,
        "threads": threads,
        "shard": shard,
    }
    given: dict[str, Any] = {name: value for name, value in of_jobs.items() if value not in (None, 0)}
    if data is None:
        for name in ("key",) * (key is not None) + tuple(given):
            raise InputError(f"--{name.replace('_', '-')} goes with --data FILE")
        from ppl_align.cli.run import run as execute

        return execute(asked, engine or [], out, force, json)
    from ppl_align.cli.job import JobOptions, run_job

    return run_job(asked, engine or [], out, force, json, JobOptions(**given))


@app.command()
def export(
    job: Annotated[Path, typer.Argument(metavar="DIR", help="the folder of a job: run --data FILE --out DIR")],
    format_: Annotated[str, typer.Option("--format", metavar="FORM", help="sft, preference or weighted")] = "sft",
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="a .jsonl or .parquet file [DIR/FORM.jsonl]")
    ] = None,
    debug: Debug = False,
) -> int:
    """Completions of a job as a data set to train on, in TRL's formats."""
    from ppl_align.cli.job import export_job

    return export_job(job, format_, out)


@app.command()
def merge(
    shards: Annotated[list[Path], typer.Argument(metavar="DIR...", help="folders of run --data FILE --shard I/N")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="the folder of the whole job")],
    force: Force = False,
    json: Json = False,
    debug: Debug = False,
) -> int:
    """One job from its shards."""
    from ppl_align.cli.job import merge_jobs

    return merge_jobs(shards, out, force, json)


@app.command()
def compare(
    paths: Annotated[list[Path], typer.Argument(metavar="DIR_OR_FILE...", help="netCDF files, or folders of them")],
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="folder for comparison and report")] = None,
    force: Force = False,
    json: Json = False,
    debug: Debug = False,
) -> int:
    """Compare posteriors that were saved earlier."""
    from ppl_align.cli.compare import compare as execute

    return execute(paths, out, force, json)


@app.command()
def check(
    model: ModelName,
    prompt: Prompt = None,
    data: Data = None,
    row: OneRow = None,
    set_: Set = None,
    engine: Annotated[
        list[str] | None,
        typer.Option("--engine", metavar="NAME", help="an engine whose guide or proposal to look at; may be repeated"),
    ] = None,
    seed: Seed = 0,
    debug: Debug = False,
) -> int:
    """Is this spec sound? Look at a few draws of MODEL for what is legal but not meant."""
    from ppl_align.cli.check import check as execute
    from ppl_align.jobs.plan import Asked

    return execute(Asked(model, prompt, data, row, set_ or [], seed, debug), engine or [])


@app.command()
def inspect(
    model: ModelName,
    prompt: Prompt = None,
    data: Data = None,
    row: OneRow = None,
    set_: SetModel = None,
    event: Annotated[
        list[str] | None,
        typer.Option("--event", metavar="NAME=REGEX", help="an event: the pattern occurs in the text; may be repeated"),
    ] = None,
    draws: Annotated[int, typer.Option("--draws", metavar="N", help="draws of the prior to look at")] = 512,
    goal: Annotated[int, typer.Option("--goal", metavar="N", min=1, help="effective draws to predict costs for")] = 100,
    seed: Seed = 0,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="folder for tables, JSON and figure")] = None,
    force: Force = False,
    json: Json = False,
    debug: Debug = False,
) -> int:
    """Choose beta by looking: what MODEL wants, before any inference."""
    from ppl_align.cli.inspection import inspect as execute
    from ppl_align.jobs.plan import Asked

    asked = Asked(model, prompt, data, row, set_ or [], seed, debug)
    return execute(asked, event or [], draws, goal, out, force, json)


@app.command()
def claims(
    names: Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="claims to study [all of them]")] = None,
    lm: Annotated[bool, typer.Option("--lm", help="also on SmolLM2-135M, where a claim has such a part")] = False,
    figures: Annotated[
        Path | None, typer.Option("--figures", metavar="DIR", help="one figure per claim, DIR/<id>.png")
    ] = None,
    book: Annotated[
        Path | None, typer.Option("--book", metavar="FILE", help="write all of it as one Markdown document")
    ] = None,
    seed: Seed = 0,
    list_: Annotated[bool, typer.Option("--list", help="name the claims, study none")] = False,
    json: Json = False,
    debug: Debug = False,
) -> int:
    """The theory, as studies that could refute it; exit code 1 if one does."""
    from ppl_align.cli.claims import claims as execute

    return execute(names or [], lm, figures, book, seed, list_, json)


@app.command()
def models() -> int:
    """List the gallery of models."""
    from ppl_align.cli.listing import listing

    return listing("models")


@app.command()
def engines() -> int:
    """List the gallery of engine recipes."""
    from ppl_align.cli.listing import listing

    return listing("inference")


@app.command()
def rewards() -> int:
    """List the rewards that come with the library."""
    from ppl_align.cli.rewards import listing

    return listing()


@app.command()
def fetch(
    what: Annotated[str, typer.Argument(metavar="WHAT", help="smollm2-135m (weights), prompts, reviews, minilm")],
    debug: Debug = False,
) -> int:
    """Download what the examples need, once."""
    from ppl_align.cli.fetch import fetch as execute

    return execute(what)


@app.command()
def new(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="a folder that does not exist yet, or is empty")],
    debug: Debug = False,
) -> int:
    """Start a project: models/ and inference/ with an example of each."""
    from ppl_align.cli.new import new as execute

    return execute(folder)


def main(argv: Sequence[str] | None = None) -> int:
    """The entry point: run one command, return its exit code (0 done, 1 failed, 2 rejected, 130 interrupted)."""
    arguments = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    command = typer.main.get_command(app)
    try:
        result = command.main(args=arguments, prog_name="ppl-align", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        err.print("interrupted", style="red")
        return 130
    except Exception as error:
        rejected = _usage_error(error)
        return report(error if rejected is None else rejected, debug="--debug" in arguments)
    if result == 130 and not isinstance(result, Told):  # typer turns Ctrl-C into this exit code
        err.print("interrupted", style="red")
    return result if isinstance(result, int) else 0


def _usage_error(error: Exception) -> InputError | None:
    """What typer says of options it cannot use, as an error of ours; None for anything else."""
    if not isinstance(error, typer.BadParameter.__mro__[1]):  # UsageError; typer carries its own click since 0.26
        return None
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "ppl-align"
    return InputError(f"{error.format_message().rstrip('.')}; see {command} --help")  # type: ignore[attr-defined]
