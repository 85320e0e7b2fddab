"""Posteriors and comparisons as a notebook shows them: HTML without a script, in the colours of the page around it."""

from __future__ import annotations

from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from ppl_align.diagnostics.columns import CHAIN_COLUMNS, CHAINS, fixed, number, percent, whole
from ppl_align.diagnostics.comparison import Comparison
from ppl_align.posterior.kind import Kind
from ppl_align.posterior.paragraph import title
from ppl_align.posterior.result import Posterior
from ppl_align.posterior.run_summary import summary_of
from ppl_align.report.terminal import blocks, chain_rows, headline, numbers_and_texts

SHOWN = 5  # texts


def posterior_html(posterior: Posterior) -> str:
    """What it is, its numbers, its most probable texts; cost and provenance folded away."""
    facts = [f"Warning: {line}." for line in posterior.warnings]
    facts += [f"± ?: {line}." for line in summary_of(posterior).unstated]
    if posterior.optimism is not None:
        facts.append(f"It conditions the world as well: {posterior.optimism}.")
    made = [] if posterior.provenance is None else [("Provenance", str(posterior.provenance))]
    return _page(
        title=title(posterior),
        facts=facts,
        advice=None,
        blocks=[_numbers(posterior), *_of_chains(posterior), _texts(posterior)],
        more=[("Cost", str(posterior.cost)), *made],
    )


def comparison_html(compared: Comparison) -> str:
    """Headline, verdict, and the tables of the comparison, block by block."""
    first, *facts = headline(compared)
    tables = [
        {
            "title": heading,
            "columns": [_left("run"), *(_right(c.header, c.meaning) for c in columns)],
            "rows": [[name, *cells] for name, cells in rows],
        }
        for heading, columns, rows in blocks(compared)
    ]
    if compared.chains:
        tables.insert(2, _chains("run", [[f"{name} {what}", *cells] for name, what, cells in chain_rows(compared)]))
    made = [(f"Provenance of {n}", str(r.provenance)) for n, r in compared.runs.items() if r.provenance is not None]
    return _page(title=first, facts=facts, advice=compared.advice, blocks=tables, more=made)


def _chains(what: str, rows: list[list[str]]) -> dict[str, Any]:
    """The table of what Markov chains tell of each number."""
    return {
        "title": CHAINS,
        "columns": [_left(what), *(_right(c.header, c.meaning) for c in CHAIN_COLUMNS)],
        "rows": rows,
    }


def _numbers(posterior: Posterior) -> dict[str, Any]:
    told = summary_of(posterior)
    cells: dict[str, str] = {}
    if posterior.kind is Kind.POLICY:
        cells["J"] = str(told.decision_value)
    if posterior.kind.has_evidence:
        cells["log Z"] = fixed(3)(told.log_evidence)
    if told.spread is not None:
        cells["spread"] = number(2)(told.spread)
    cells |= {f"E[{name}]": str(mean) for name, mean in told.rewards.items()}
    if told.ess is not None:
        cells["ESS"] = f"{fixed(1)(told.ess)} of {whole(posterior.log_weight.shape[1])}"
        cells["max w"] = number(2)(told.largest_weight)
    if told.acceptance is not None:
        cells["accepts"] = percent(told.acceptance)
    if told.distinct_completions is not None:
        cells["distinct"] = whole(told.distinct_completions)
    return {"title": "Estimates", "columns": [_right(name) for name in cells], "rows": [list(cells.values())]}


def _of_chains(posterior: Posterior) -> list[dict[str, Any]]:
    rows = [[name, *(c.text(row) for c in CHAIN_COLUMNS)] for name, row in summary_of(posterior).chain_rows.items()]
    return [_chains("number", rows)] if rows else []


def _texts(posterior: Posterior) -> dict[str, Any]:
    numbers, texts, rows = numbers_and_texts(posterior.table(by="text").head(SHOWN))
    columns = [*map(_right, numbers), *map(_left, texts)]
    return {"title": "The most probable draws", "columns": columns, "rows": rows}


def _left(header: str) -> dict[str, Any]:
    return {"header": header, "meaning": "", "left": True}


def _right(header: str, meaning: str = "") -> dict[str, Any]:
    return {"header": header, "meaning": meaning, "left": False}


def _page(**parts: Any) -> str:
    """Everything is escaped; what no encoding can hold is replaced."""
    text = template("notebook.html.j2").render(**parts).replace("\x00", "\N{SYMBOL FOR NULL}")
    return text.encode("utf-8", "replace").decode("utf-8")


@cache
def template(name: str) -> Template:
    """One of ``report/templates``; what is put into it is escaped."""
    environment = Environment(
        loader=PackageLoader("ppl_align.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    return environment.get_template(name)
