"""``ppl-align check``: is this spec sound? Runs the model on a few particles and says what it saw."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.table import Table

from ppl_align.cli.console import note, plain_table, report, show, user_code, waiting
from ppl_align.cli.plan import load_one
from ppl_align.jobs.plan import Asked
from ppl_align.particles.per_particle import said
from ppl_align.posterior.naming import columns
from ppl_align.report.terminal import Printable, grids

if TYPE_CHECKING:
    from ppl_align.lints import PriorSample

PRINTED = 8
"""Draws that are shown; the lints look at more."""
_LEGIBLE = 20
"""Columns of the screen that a text needs beside its numbers."""


def check(asked: Asked, engines: Sequence[str]) -> int:
    """Print sites, draws from the prior with their rewards, and findings; returns the exit code.

    Findings are those of the program; then of the proposals of the engines that were named."""
    plan, target = load_one(asked, engines)
    from ppl_align.lints import PriorSample
    from ppl_align.lints.run import lint_draws, lint_engine

    try:
        with user_code(), waiting("drawing from the prior"):
            sample = PriorSample(plan.model, target.args, target.kwargs, target.seed)
            findings = lint_draws(sample)
            findings += [finding for engine in plan.engines.values() for finding in lint_engine(engine, sample)]
    except Exception as error:
        return report(error, asked.debug, plan.explain(target, error))
    given = plan.arguments.signature.bind(*target.args, **target.kwargs).arguments
    arguments = ", ".join(f"{name}={value!r}" for name, value in given.items())
    show(f"{asked.model}({textwrap.shorten(arguments, 200)})\n")
    show(_grid(["site", "what", "shape", "from"], sites(sample)))
    show(f"\n{PRINTED} draws from the prior (log weight: nats, what the program says of a draw)")
    show(Printable(lambda width: _wide(*draws(sample), width)))
    cost, count = sample.cost, sample.num_draws
    show(f"\n{count} draws in {cost.seconds:.1f} s: {cost.lm_tokens} LM tokens, {cost.reward_calls} reward calls")
    for finding in findings:
        show(str(finding))
    warnings = sum(finding.severity != "note" for finding in findings)
    note(f"{asked.model} runs" + (f", with {warnings} warning{'s'[: warnings != 1]}" if warnings else ""))
    return 0


def sites(sample: PriorSample) -> list[list[str]]:
    """Name, kind, shape for one particle, and distribution of every site."""
    rows, run = [], sample.particles
    for name, node in sample.nodes.items():
        fn = node["fn"]
        kind, source = type(fn).__name__, ""
        if name in run.rewards:
            kind, source = "reward", f"one unit is worth {said(run.scales[name])} nats"
        elif kind == "Unit":
            kind, source = "factor", "pyro.factor"
        elif kind == "CompletionDistribution":
            one = textwrap.shorten(repr(fn.lm.decode(fn.prompts[0])), 40, placeholder="...")
            prompt = f"{len(fn.prompts)} different prompts" if len(fn.prompts) > 1 else f"prompt {one}"
            kind, most = ("observed completion", "") if node["is_observed"] else ("completion", "at most ")
            source = f"{fn.lm.name}, {prompt}, {most}{fn.max_new_tokens} tokens"
        else:
            kind, source = "observed" if node["is_observed"] else "latent", kind
        if name in run.environment:
            kind = "world"
        plates = [f.size for f in node["cond_indep_stack"] if f.dim is not None and f.name[:9] != "ppl_align"]
        shape = [*plates, *fn.event_shape] if source != "pyro.factor" and kind != "reward" else plates
        rows.append([name, kind, str(shape), source])
    return rows


def draws(sample: PriorSample) -> tuple[list[str], list[list[str]]]:
    """Header, and one line for each draw: rewards (raw), other factors (nats), log weight, first completion."""
    run, column = sample.particles, columns((*sample.nodes, *sample.particles.answers))
    scores = {**run.rewards, **{name: f for name, f in run.factors.items() if name not in run.rewards}}
    first = next(iter(sample.completions), None)
    texts = [] if first is None else sample.texts(first)
    batch = len(texts) // sample.num_draws
    rows = []
    for i in range(PRINTED):
        numbers = [_number(float(values[i])) for values in (*scores.values(), run.log_potential)]
        rows.append([*numbers, repr(texts[i * batch])[1:-1] if texts else ""])
    return [*(column[name] for name in scores), "log weight", "" if first is None else column[first]], rows


def _wide(header: list[str], rows: list[list[str]], width: int) -> RenderableType:
    """Numbers and, in the last column, text: side by side where there is room, else one below the other."""
    numbers = list(zip(*(row[:-1] for row in rows), strict=True))
    needed = sum(max(map(cell_len, (name, *cells))) + 2 for name, cells in zip(header, numbers, strict=False))
    if needed + _LEGIBLE <= width:
        return _grid(header, rows)
    named = [(str(i), row[:-1]) for i, row in enumerate(rows, 1)]
    texts = [_grid(["draw", header[-1]], [[str(i), row[-1]] for i, row in enumerate(rows, 1)])]
    parts: list[RenderableType] = [*grids("draw", header[:-1], named, width), *(texts if header[-1] else [])]
    return Group(*(part for i, table in enumerate(parts) for part in (["", table] if i else [table])))


def _grid(header: list[str], rows: list[list[str]]) -> Table:
    table = plain_table()
    numeric = [all(_is_number(row[i]) for row in rows) for i in range(len(header))]
    for name, right in zip(header, numeric, strict=True):
        table.add_column(name, justify="right" if right else "left", no_wrap=right, overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def _number(value: float) -> str:
    return "n/a" if value != value else f"{value:.3g}"


def _is_number(text: str) -> bool:
    try:
        float(text.replace("n/a", "nan"))
    except ValueError:
        return False
    return True
