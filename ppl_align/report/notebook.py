"""Posteriors and comparisons as a notebook shows them: HTML without a script, in the colours of the page around it."""

from __future__ import annotations

from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from ppl_align.diagnostics.columns import BLOCKS, fixed, number, whole
from ppl_align.diagnostics.comparison import Comparison
from ppl_align.posterior.kind import Kind
from ppl_align.posterior.paragraph import draws_of
from ppl_align.posterior.result import Posterior
from ppl_align.posterior.run_summary import summary_of
from ppl_align.report.terminal import cell, headline, visible

SHOWN = 5  # texts


def posterior_html(posterior: Posterior) -> str:
    """What it is, its numbers, its most probable texts; cost and provenance folded away."""
    replicates, particles = posterior.log_weight.shape
    deciding = posterior.target == "decision"
    of = f" of {posterior.model}" if posterior.model else ""
    by = f" ({posterior.lm})" if posterior.lm else ""
    facts = [f"Warning: {line}." for line in posterior.warnings] + [
        f"± ?: {line}." for line in summary_of(posterior).unstated
    ]
    if posterior.optimism is not None:
        facts.append(f"It conditions the world as well: {posterior.optimism}.")
    cost = posterior.cost
    paid = (
        f"{cost.lm_tokens:,} LM tokens, {cost.lm_forwards:,} forwards, {cost.reward_calls:,} reward calls, "
        f"{cost.seconds:.1f} s"
    )
    made = [] if posterior.provenance is None else [("Provenance", str(posterior.provenance))]
    return _page(
        title=f"{'Decision' if deciding else 'Posterior'}{of} by {posterior.engine}: {replicates} x {particles} "
        f"{draws_of(posterior.kind)}{by}",
        facts=facts,
        advice=None,
        blocks=[_numbers(posterior), _texts(posterior)],
        more=[("Cost", paid), *made],
    )


def comparison_html(compared: Comparison) -> str:
    """Headline, verdict, and the tables of the comparison, block by block."""
    title, *facts = headline(compared)
    blocks = []
    for key, heading in BLOCKS.items():
        columns = [c for c in compared.columns if c.block == key]
        blocks.append(
            {
                "title": heading,
                "columns": [
                    _left("run"),
                    *({"header": c.header, "meaning": c.meaning, "left": False} for c in columns),
                ],
                "rows": [[name, *(c.text(row) for c in columns)] for name, row in compared.rows.items()],
            }
        )
    made = [(f"Provenance of {n}", str(r.provenance)) for n, r in compared.runs.items() if r.provenance is not None]
    return _page(title=title, facts=facts, advice=compared.advice, blocks=blocks, more=made)


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
    if told.distinct_completions is not None:
        cells["distinct"] = whole(told.distinct_completions)
    return {"title": "Estimates", "columns": [_right(name) for name in cells], "rows": [list(cells.values())]}


def _texts(posterior: Posterior) -> dict[str, Any]:
    table = posterior.table(by="text").head(SHOWN)
    texts = [c for c in table.columns if table[c].map(lambda value: isinstance(value, str)).any()]
    numbers = [c for c in table.columns if c not in texts]
    rows = [
        [cell(str(name), row[name]) for name in numbers] + [visible(str(row[name])) for name in texts]
        for row in table.to_dict("records")
    ]
    columns = [*(_right(str(name)) for name in numbers), *(_left(str(name)) for name in texts)]
    return {"title": "The most probable draws", "columns": columns, "rows": rows}


def _left(header: str) -> dict[str, Any]:
    return {"header": header, "meaning": "", "left": True}


def _right(header: str, meaning: str = "") -> dict[str, Any]:
    return {"header": header, "meaning": meaning, "left": False}


def _page(**parts: Any) -> str:
    """Everything is escaped; what no encoding can hold is replaced."""
    return _template().render(**parts).replace("\x00", "\N{SYMBOL FOR NULL}").encode("utf-8", "replace").decode("utf-8")


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("ppl_align.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    return environment.get_template("notebook.html.j2")
