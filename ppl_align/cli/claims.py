"""``ppl-align claims``: run the studies, print what they found."""

from __future__ import annotations

import json as json_module
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ppl_align.claims import CHAPTERS, CLAIMS, load, statement
from ppl_align.claims.running import Result, run
from ppl_align.cli.console import interrupted, note, show, user_code, waiting
from ppl_align.core.errors import InputError

FEW = 4  # checks shown of each claim when all claims are run


def claims(
    names: Sequence[str],
    lm: bool,
    figures: Path | None,
    book: Path | None,
    seed: int,
    listing: bool,
    json: bool,
) -> int:
    """Returns 0 if every claim that was studied holds, else 1."""
    if listing:
        return _list(json)
    chosen = list(dict.fromkeys(names)) or list(CLAIMS)
    for name in chosen:
        load(name)
    if book is not None and len(chosen) < len(CLAIMS):
        raise InputError("--book writes the whole book: name no claims with it")
    if book is not None and not lm:
        raise InputError("--book writes what was found on the language model too: add --lm")
    folder = book.with_suffix("") if book is not None and figures is None else figures
    if folder is not None:
        _writable(folder, "figures")
    if book is not None:
        _writable(book.parent, "the book")
        if book.is_dir():
            raise InputError(f"--book {book} is a folder: give a file name, such as {book / 'claims.md'}")
    model = _language_model() if lm else None
    results: list[Result] = []
    studies = run(chosen, seed, model)
    stopped = False
    try:
        for count, name in enumerate(chosen, 1):
            with user_code(), waiting(f"{name} ({count}/{len(chosen)})"):
                result = next(studies)
                if folder is not None and not result.failure:
                    load(name).figure(result.found).savefig(folder / f"{name}.png", dpi=110)
            results.append(result)
            if not json:
                _print(result, brief=not names)
    except KeyboardInterrupt:
        stopped = True
    if json:
        show(json_module.dumps([_plain(result) for result in results], indent=2, ensure_ascii=False))
    if stopped:
        return interrupted(f"{len(results)} of {len(chosen)} claims were studied")
    if book is not None and folder is not None:
        from ppl_align.claims.book import write

        write(book, folder, results)
        note(f"wrote {book}")
    failed = [result.name for result in results if not result.passed]
    checks = sum(len(result.found.lines) for result in results)
    seconds = sum(result.seconds for result in results)
    verdict = f"FAILED: {', '.join(failed)}" if failed else "all hold"
    note(f"{len(results)} claim{'s'[: len(results) != 1]}, {checks} checks, {seconds:.0f} s: {verdict}")
    return 1 if failed else 0


def _writable(folder: Path, what: str) -> None:
    """Find out before the work, not after it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"cannot write {what} to {folder}: {error.strerror}") from None


def _language_model() -> Any:
    from ppl_align import CausalLM

    with user_code(), waiting("loading smollm2-135m"):
        return CausalLM("smollm2-135m")


def _list(json: bool) -> int:
    if json:
        show(json_module.dumps({name: statement(load(name)) for name in CLAIMS}, indent=2, ensure_ascii=False))
        return 0
    for title, (_, names) in CHAPTERS.items():
        show(title)
        for name in names:
            show(f"  {name:22}{statement(load(name))}")
    return 0


def _print(result: Result, brief: bool) -> None:
    """One claim: statement and checks; if ``brief``, the first few of them and whatever failed."""
    out = Console(markup=False, highlight=False, emoji=False)
    head = Text(result.name, style="bold")
    head.append(f"  {statement(load(result.name))}", style="not bold")
    head.append(f"  ({result.seconds:.1f} s)", style="dim")
    out.print(head)
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim", expand=False)
    table.add_column("check", max_width=36)
    for header in ("expected", "measured", "error"):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column(no_wrap=True)
    lines = result.found.lines
    shown = [line for i, line in enumerate(lines) if not brief or i < FEW or not line.passed]
    for line in shown:
        style = "" if line.passed else "red"
        table.add_row(
            line.what, line.expected, line.measured, line.error, "ok" if line.passed else "FAILED", style=style
        )
    out.print(Padding(table, (0, 0, 0, 2), expand=False))
    if len(shown) < len(lines):
        out.print(f"  and {len(lines) - len(shown)} more checks hold: ppl-align claims {result.name}", style="dim")
    if result.failure:
        out.print(f"  stopped: {result.failure}", style="red")


def _plain(result: Result) -> dict[str, Any]:
    return {
        "claim": result.name,
        "statement": statement(load(result.name)),
        "passed": result.passed,
        "seconds": result.seconds,
        "failure": result.failure,
        "checks": [vars(line) for line in result.found.lines],
    }
