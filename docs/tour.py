"""Writes docs/models.md from docs/tour/*.md: prose, code of the gallery, and what commands really print.

    make tour                    run every command again, then write the page
    make tour ONLY="topic smc"   run these outputs again; ONLY=stale: those whose command or model has changed
    python docs/tour.py --render  write the page from the outputs that are there

The stops are Jinja templates in the order of their file names. They say

    {{ source("models/topic.py") }}             a file, as it is; source("models/topic.py", "topic"): one function of it
    {{ output("topic", "ppl-align run topic") }}  a command and what it printed, kept in docs/tour/outputs/topic.txt;
                                                `python docs/script.py` is a command as well
    {{ output("topic", "ppl-align ...", ["Estimates"]) }}   only paragraphs that begin like this
    {{ figure("topic", "evidence", "alt text") }}  a plot of that run's report

An output remembers its command and the code it ran (docstrings and comments aside): a page never shows the numbers of
another program. Commands run in one process, so that the language model is loaded once.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import functools
import hashlib
import io
import os
import runpy
import shlex
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

ROOT = Path(__file__).resolve().parents[1]
WIDTH = 80
CUT = "[...]"
NOTICE = "*Written by `make tour`, which runs every command below (docs/tour/ holds the prose); do not edit.*\n"


class TourError(Exception):
    """Something in the tour does not fit together; the message says what to run or mend."""


@dataclass
class Run:
    """A command whose output is shown, and the plots of it that are."""

    name: str
    command: str
    plots: dict[str, None] = field(default_factory=dict)


@dataclass
class Tour:
    """The stops in ``folder``; paths in ``source(...)`` and links are relative to ``root``."""

    folder: Path = ROOT / "docs" / "tour"
    root: Path = ROOT
    runs: dict[str, Run] = field(default_factory=dict)
    sources: list[str] = field(default_factory=list)

    # -- the page -----------------------------------------------------------------------------------------------

    def render(self) -> str:
        """The page, from the outputs that are there. Raises ``TourError`` for one that is missing or stale."""
        parts = self._each(self.output, self.figure)
        title, *rest = parts[0].split("\n", 1)
        return "\n\n".join([f"{title}\n\n{NOTICE}{''.join(rest)}".strip(), *parts[1:]]) + "\n"

    def plan(self) -> dict[str, Run]:
        """The commands of the tour, by output."""
        self._each(lambda name, *_: "", lambda name, *_: "")
        return self.runs

    def _each(self, output: Callable[..., str], figure: Callable[..., str]) -> list[str]:
        self.runs.clear()
        self.sources.clear()
        jinja = Environment(undefined=StrictUndefined, keep_trailing_newline=False, autoescape=False)

        def known_output(name: str, command: str, show: Sequence[str] = ()) -> str:
            if name in self.runs and self.runs[name].command != command:
                raise TourError(f"output {name!r} is declared twice, with different commands")
            self.runs.setdefault(name, Run(name, command))
            return output(name, command, show)

        def known_figure(name: str, plot: str, alt: str) -> str:
            if name not in self.runs:
                raise TourError(f"figure of {name!r}: no output of that name comes before it")
            self.runs[name].plots[plot] = None
            return figure(name, plot, alt)

        names: dict[str, Any] = {"source": self.source, "output": known_output, "figure": known_figure}
        stops = sorted(self.folder.glob("*.md"))
        if not stops:
            raise TourError(f"no stops in {self.folder}")
        return [jinja.from_string(stop.read_text(encoding="utf-8")).render(names).strip() for stop in stops]

    def source(self, path: str, function: str | None = None) -> str:
        """A file of the gallery, or one function of it, as a code block under its name."""
        text = (self.root / path).read_text(encoding="utf-8")
        self.sources.append(path)
        if function is not None:
            found = [n for n in ast.parse(text).body if isinstance(n, ast.FunctionDef) and n.name == function]
            if not found:
                raise TourError(f"{path} has no function {function!r}")
            text = ast.get_source_segment(text, found[0]) or ""
        link = os.path.relpath(self.root / path, self.folder.parent)
        return f"[{path}]({link}):\n\n```python\n{text.strip()}\n```"

    def output(self, name: str, command: str, show: Sequence[str] = ()) -> str:
        """What a command printed, or the paragraphs of it that begin as said."""
        head, digest, text = self._stored(name)
        if head != command or digest != self.digest(command):
            raise TourError(f"outputs/{name}.txt is of another {'command' if head != command else 'program'}: "
                            f"make tour ONLY={name}")  # fmt: skip
        return f"```\n$ {command}\n{cut(name, text, show)}\n```"

    def figure(self, name: str, plot: str, alt: str) -> str:
        """A plot of a run."""
        path = self.folder / "figures" / f"{name}-{plot}.png"
        if not path.is_file():
            raise TourError(f"there is no figures/{path.name}: make tour ONLY={name}")
        return f"![{alt}]({path.relative_to(self.folder.parent).as_posix()})"

    # -- outputs ------------------------------------------------------------------------------------------------

    def _stored(self, name: str) -> tuple[str, str, str]:
        path = self.folder / "outputs" / f"{name}.txt"
        if not path.is_file():
            raise TourError(f"there is no outputs/{name}.txt: make tour ONLY={name}")
        command, program, text = path.read_text(encoding="utf-8").split("\n", 2)
        return command.removeprefix("$ "), program.removeprefix("# "), text.strip("\n")

    def stale(self) -> list[str]:
        """Outputs that are missing, or whose command or model has changed."""
        found = []
        for name, run in self.plan().items():
            try:
                self.output(name, run.command)
                for plot in run.plots:
                    self.figure(name, plot, "")
            except TourError:
                found.append(name)
        return found

    def digest(self, command: str) -> str:
        """Which code a command runs: the files of the galleries that it names, docstrings and comments aside."""
        words = [word for word in shlex.split(command) if not word.startswith("-")]
        paths = [self.root / folder / f"{word}.py" for word in words for folder in ("models", "inference")]
        paths += [self.root / word for word in words if word.endswith(".py")]
        code = "\n".join(bare(path.read_text(encoding="utf-8")) for path in paths if path.is_file())
        return hashlib.sha256(code.encode()).hexdigest()[:12]

    def execute(self, run: Run) -> None:
        """Run a command of the tour and keep what it prints. Raises ``TourError`` if it fails."""
        from ppl_align import compare

        program, *arguments = shlex.split(run.command)
        if program not in PROGRAMS:
            raise TourError(f"output {run.name!r}: a command begins with {' or '.join(PROGRAMS)}, not {program!r}")
        printed = io.StringIO()
        with tempfile.TemporaryDirectory() as folder:
            if run.plots:
                arguments += ["--out", folder, "--force"]
            with contextlib.chdir(self.root), contextlib.redirect_stdout(printed):
                code = PROGRAMS[program](arguments)
            if code != 0:
                raise TourError(f"output {run.name!r}: {run.command} ended with exit code {code}")
            if run.plots:
                figures = compare(sorted(Path(folder).glob("*.nc"))).figures()
                (self.folder / "figures").mkdir(exist_ok=True)
                for plot in run.plots:
                    if plot not in figures:
                        raise TourError(f"figure of {run.name!r}: no plot {plot!r}; there are {', '.join(figures)}")
                    figures[plot].savefig(self.folder / "figures" / f"{run.name}-{plot}.png", dpi=100)
        text = "\n".join(line.rstrip() for line in printed.getvalue().strip("\n").splitlines())
        (self.folder / "outputs").mkdir(exist_ok=True)
        target = self.folder / "outputs" / f"{run.name}.txt"
        target.write_text(f"$ {run.command}\n# {self.digest(run.command)}\n{text}\n", encoding="utf-8")


def command_line(arguments: Sequence[str]) -> int:
    """``ppl-align ...``; returns the exit code."""
    from ppl_align.cli import main

    return main(list(arguments))


def script(arguments: Sequence[str]) -> int:
    """``python file.py``: a script of this repository, which says what it has to say by printing."""
    (path,) = arguments
    runpy.run_path(path, run_name="__main__")
    return 0


PROGRAMS: dict[str, Callable[[Sequence[str]], int]] = {"ppl-align": command_line, "python": script}


def cut(name: str, text: str, show: Sequence[str]) -> str:
    """The paragraphs that begin with one of ``show``; signs where others were left out."""
    if not show:
        return text
    paragraphs = text.split("\n\n")
    missing = [title for title in show if not any(p.lstrip("\n").startswith(title) for p in paragraphs)]
    if missing:
        raise TourError(f"outputs/{name}.txt has no paragraph that begins with {missing[0]!r}")
    kept: list[str] = []
    for paragraph in paragraphs:
        if paragraph.lstrip("\n").startswith(tuple(show)):
            kept.append(paragraph.strip("\n"))
        elif not kept or kept[-1] != CUT:
            kept.append(CUT)
    return "\n\n".join(kept)


def bare(code: str) -> str:
    """Python code without docstrings and comments."""
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for, write the page; returns the exit code."""
    parser = argparse.ArgumentParser(description="Write docs/models.md.")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="run these outputs, or `stale`; the others are kept")
    parser.add_argument("--render", action="store_true", help="run nothing")
    options = parser.parse_args(arguments)
    tour = Tour()
    try:
        runs = dict(tour.plan())
        wanted = [] if options.render else list(runs) if options.only is None else list(options.only)
        if wanted == ["stale"]:
            wanted = tour.stale()
        unknown = sorted(set(wanted) - set(runs))
        if unknown:
            raise TourError(f"no output is called {unknown[0]!r}; there are {', '.join(runs)}")
        if wanted:
            _prepare()
        for count, name in enumerate(wanted, 1):
            print(f"[{count}/{len(wanted)}] {runs[name].command}", file=sys.stderr)
            tour.execute(runs[name])
        (ROOT / "docs" / "models.md").write_text(tour.render(), encoding="utf-8")
    except TourError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _prepare() -> None:
    """80 columns, and one copy of each language model for all gallery files."""
    os.environ["COLUMNS"] = str(WIDTH)
    import ppl_align

    ppl_align.CausalLM = functools.cache(ppl_align.CausalLM)  # type: ignore[assignment, misc]


if __name__ == "__main__":
    sys.exit(main())
