"""``report.html``: a comparison as one self-contained page, no network needed to read it."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from matplotlib import rc_context

from ppl_align.diagnostics.columns import CHAIN_COLUMNS, CHAINS, is_missing
from ppl_align.diagnostics.comparison import Comparison
from ppl_align.lm.prompts import ChatIds
from ppl_align.posterior.result import Posterior
from ppl_align.report.notebook import template
from ppl_align.report.style import STYLE, colours
from ppl_align.report.terminal import blocks, cell, chain_rows, headline
from ppl_align.rewards.convention import plain_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BEST = 6
"""Completions shown per run."""
BLIND_SPOTS = (
    "Weight ESS, k-hat and the largest weight see only what was visited. A mode with prior mass 1e-4 and half of the "
    "posterior is missed by 1,000 draws nine times in ten, and all three look perfect.",
    "Every estimate of log Z is low on average, the more so the wider its spread. Agreement of several runs is "
    "evidence, not proof: they may all miss the same mode.",
    "After a late resampling the weights of SMC look even whatever happened before: look at ancestors and at the "
    "spread over replicates.",
    "R-hat and the ESS of Markov chains see only what the chains have visited: where all of them began in one mode and "
    "stayed, R-hat is 1. An engine that estimates log Z, or chains that begin elsewhere (init=), may tell.",
    "A trained guide is judged on its own draws; what it never writes does not show. The ELBO gap to another "
    "engine's log Z does see it.",
    "All runs share one target. Nothing here says whether the reward is the right one.",
)


def render(compared: Comparison) -> str:
    """The whole page as a string."""
    colour, lines = colours(compared.runs), headline(compared)
    return template("report.html.j2").render(
        title=lines[0],
        facts=lines[1:],
        created_at=compared.reference["created_at"],
        advice=compared.advice,
        blocks=[{"title": title, "columns": columns, "rows": rows} for title, columns, rows in blocks(compared)],
        chains={"title": CHAINS, "columns": CHAIN_COLUMNS, "rows": list(chain_rows(compared))},
        colour=colour,
        figures={name: _data_uri(figure) for name, figure in compared.figures().items()},
        runs=[_run(name, run, colour[name]) for name, run in compared.runs.items()],
        rewards=compared.rewards,
        chat=conversation(next(iter(compared.runs.values()))),
        blind_spots=BLIND_SPOTS,
    )


def conversation(run: Posterior) -> list[dict[str, str]]:
    """The chat messages that the first completion answers, if its prompt was some; a run from a file does not know."""
    site = next(iter(run.completions.values()), None)
    prompts = () if site is None or site.source is None else site.source.prompts
    messages = prompts[0].messages if len(prompts) == 1 and isinstance(prompts[0], ChatIds) else ()
    return [{"role": str(one.get("role", "")), "content": plain_text([one])} for one in messages]


def _data_uri(figure: Figure) -> str:
    buffer = io.BytesIO()
    # no date, salted ids: the same comparison gives the same page
    with rc_context(STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()


def _run(name: str, run: Posterior, colour: str) -> dict[str, Any]:
    table = run.table(by="text")
    column, shades = run.columns, {reward: _shades(run, reward) for reward in run.rewards}
    completions = [
        {
            "probability": cell("probability", row["probability"]),
            "width": f"{100 * row['probability'] / table['probability'].iloc[0]:.1f}",
            "log_prior": cell("log_prior", row["log_prior"]),
            "rewards": [
                {"name": reward, "shown": cell("", row[column[reward]]), "style": style(row[column[reward]])}
                for reward, style in shades.items()
            ],
            "latents": [f"{latent} = {row[column[latent]]}" for latent in run.latents],
            "texts": [str(row[column[site]]) for site in run.completions],
        }
        for row in table.head(BEST).to_dict("records")
    ]
    replicates, particles = run.log_weight.shape
    size = f"{replicates} chains of {particles} states" if run.kind.is_ordered else ""
    size = size or ("the whole support" if run.exact else f"{replicates} replicates of {particles} particles")
    config = json.dumps(
        {"engine": run.engine, **run.config, "seed": run.seed}, indent=2, default=str, ensure_ascii=False
    )
    return {
        "name": name,
        "colour": colour,
        "size": size,
        "completions": completions,
        "distinct": len(table),
        "config": config,
        "provenance": "" if run.provenance is None else str(run.provenance),
    }


def _shades(run: Posterior, name: str) -> Callable[[float], str]:
    """Background of a reward: red below, green above the middle of what this run's posterior holds."""
    values = run.rewards[name][(run.weights > 0) & run.rewards[name].isfinite()].numpy()
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    # a negative scale means that the program wants little of it
    scale = torch.as_tensor(run.scales.get(name, 1.0)).expand(run.weights.shape)
    wants_more = float((run.weights * scale).sum()) >= 0

    def style(value: float) -> str:
        if is_missing(value) or not np.isfinite(value) or high - low < 1e-12:
            return "background:#eef0f3"
        share = (value - low) / (high - low)
        share = share if wants_more else 1 - share
        hue = 8 + 132 * share  # red to green, the middle a quiet yellow
        return f"background:hsl({hue:.0f} 62% 88%)"

    return style
