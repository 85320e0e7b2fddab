"""The plots of Markov chains: whole chains in their order, how long they remember, whether they agree, what moves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.ticker import MaxNLocator

from ppl_align.core.arviz_adapter import autocorrelation
from ppl_align.diagnostics.acceptance import acceptance_by_cut
from ppl_align.posterior.chains import ChainNumber, acceptance
from ppl_align.posterior.result import Posterior
from ppl_align.posterior.run_summary import summary_of
from ppl_align.report.style import GREY, PALETTE, colours, draw, draw_grid, literally

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NUMBERS = 4
"""Panels of a figure: rewards and latents first, in the order of the program."""
CHAINS = 16
"""Lines of a panel."""
LAGS = 40
BINS = 10


def plot_traces(name: str, run: Posterior, colour: str) -> Figure | None:
    """Each number along the chains, state by state; a chain that has converged comes by everywhere, again and again."""
    numbers = _numbers(run)

    def paint(axes: np.ndarray) -> None:
        for (what, number), ax in zip(numbers.items(), axes[:, 0], strict=True):
            shown = number.values[:CHAINS].numpy()
            for i, values in enumerate(shown):
                ax.plot(np.arange(1, len(values) + 1), values, lw=0.8, alpha=0.7, color=_shade(colour, i, len(shown)))
            ax.set_ylabel(literally(what))
            ax.margins(x=0.01)
        axes[0, 0].set_title(literally(f"Traces: {name}{_some(run)}"))
        axes[-1, 0].xaxis.set_major_locator(MaxNLocator(integer=True))
        axes[-1, 0].set_xlabel("state, in the order of the chain")

    return draw_grid(paint, len(numbers), 1, 1.0 + 1.3 * len(numbers), sharex="col") if numbers else None


def plot_mixing(name: str, run: Posterior, colour: str) -> Figure | None:
    """Left: autocorrelation along each chain (thick: their mean). Right: where the states of each chain rank among
    those of all (ties in random order); of chains that agree, every line is near the dashes but for noise."""
    numbers = {what: number for what, number in _numbers(run).items() if number.values.shape[1] >= BINS}

    def paint(axes: np.ndarray) -> None:
        for (what, number), (left, right) in zip(numbers.items(), axes, strict=True):
            values = number.values.numpy()
            _autocorrelation(left, values, colour)
            _ranks(right, values, colour)
            left.set_ylabel(literally(what))
        axes[0, 0].set_title(literally(f"Mixing: {name}{_some(run)}"))
        axes[-1, 0].set_xlabel("autocorrelation by lag")
        axes[-1, 1].set_xlabel("share by rank among all")

    return draw_grid(paint, len(numbers), 2, 1.0 + 1.3 * len(numbers), sharex="col") if numbers else None


def _autocorrelation(axes: Axes, values: np.ndarray, colour: str) -> None:
    found = autocorrelation(values)[:, : LAGS + 1]
    lags, known = np.arange(found.shape[1]), found[~np.isnan(found).any(1)]
    for row in known[:CHAINS]:
        axes.plot(lags, row, color=colour, lw=0.6, alpha=0.3)
    if len(known):
        axes.plot(lags, known.mean(0), color=colour, lw=2)
    axes.axhline(0, color=GREY, lw=1, ls="--", zorder=0)
    axes.set_ylim(-0.5, 1.05)


def _ranks(axes: Axes, values: np.ndarray, colour: str) -> None:
    flat = values.reshape(-1)
    order = np.lexsort((np.random.default_rng(0).random(len(flat)), flat))  # by value, ties at random
    ranks = np.empty(len(flat))
    ranks[order] = (np.arange(len(flat)) + 0.5) / len(flat)
    edges = np.linspace(0, 1, BINS + 1)
    shown = ranks.reshape(values.shape)[:CHAINS]
    for i, row in enumerate(shown):
        share = np.histogram(row, edges)[0] / len(row)
        axes.stairs(share, edges, baseline=None, lw=0.9, alpha=0.8, color=_shade(colour, i, len(shown)))
    axes.axhline(1 / BINS, color=GREY, lw=1.2, ls="--")
    axes.set_ylim(bottom=0)


def plot_acceptance(runs: Mapping[str, Posterior]) -> Figure | None:
    """Share of moves that were accepted after the warm-up, by the first token that they drew anew, site by site."""
    tables = {name: acceptance_by_cut(run) for name, run in runs.items() if "cut" in run.history}
    tables = {name: table for name, table in tables.items() if len(table)}
    colour = colours(runs)

    def paint(axes: Axes) -> None:
        for name, table in tables.items():
            sites = list(dict.fromkeys(table.index.get_level_values("site")))
            for i, site in enumerate(sites):
                part = table.loc[site]
                where = f" at {site}" if len(sites) > 1 else ""
                label = f"{name}{where} ({part['accepted'].sum() / part['moves'].sum():.0%} of {part['moves'].sum():,})"
                error = np.sqrt(part["rate"] * (1 - part["rate"]) / part["moves"])
                style = "-" if i == 0 else "--" if i == 1 else ":"
                axes.errorbar(
                    part.index,
                    part["rate"],
                    error,
                    color=colour[name],
                    ls=style,
                    lw=1.6,
                    elinewidth=0.8,
                    marker="o",
                    ms=3.5,
                    label=literally(label),
                )
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel="position of the cut (token; bars: ± 1 se if moves were independent)", ylabel="share accepted")
        axes.set_ylim(bottom=0)
        axes.set_title("Acceptance by position of the cut")
        axes.legend(fontsize=8.5, loc="best")

    return draw(paint) if tables else None


def _numbers(run: Posterior) -> dict[str, ChainNumber]:
    found = {name: n for name, n in summary_of(run).chains.items() if bool(n.values.isfinite().all())}
    return dict(list(found.items())[:NUMBERS]) if run.log_weight.shape[1] > 1 else {}


def _some(run: Posterior) -> str:
    chains, share = len(run.log_weight), acceptance(run)
    many = f"{CHAINS} of {chains} chains" if chains > CHAINS else f"{chains} chain{'s' if chains > 1 else ''}"
    return f", {many}" + ("" if share is None else f", {share:.0%} of moves accepted")


def _shade(colour: str, i: int, count: int) -> str:
    """One colour for each chain where they can be told apart, else all of them in that of the run."""
    return PALETTE[i] if count <= len(PALETTE) else colour


__all__ = ["plot_acceptance", "plot_mixing", "plot_traces"]
