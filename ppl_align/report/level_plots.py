"""The plot of tempering: how a population was led from what is drawn to the posterior, level by level."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from matplotlib.ticker import MaxNLocator

from ppl_align.posterior.result import Posterior
from ppl_align.report.style import colours, draw_grid, literally

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_tempering(runs: Mapping[str, Posterior]) -> Figure | None:
    """By level: the exponent; ESS of the population before it was resampled, and moves that were accepted; moves."""
    tempered = {name: run for name, run in runs.items() if "exponent" in run.history}
    colour = colours(runs)

    def paint(axes: np.ndarray) -> None:
        path, shares, steps = axes[:, 0]
        for name, run in tempered.items():
            exponent = torch.as_tensor(run.history["exponent"]).numpy()
            levels = np.arange(1, len(exponent) + 1)
            path.plot(
                [0, *levels], [0, *exponent], color=colour[name], lw=1.6, marker="o", ms=3.5, label=literally(name)
            )
            share = (torch.as_tensor(run.history["ess"]).double() / sizes(run)[:, None]).numpy()
            shares.plot(levels, share, color=colour[name], lw=0.7, alpha=0.3)
            shares.plot(levels, share.mean(1), color=colour[name], lw=2, marker="D", ms=3.5)
            accepted = torch.as_tensor(run.history["move_accepted"]).numpy()
            shares.plot(levels, accepted, color=colour[name], lw=1.2, ls="--", marker="o", ms=3.5)
            steps.plot(levels, run.history["num_moves"], color=colour[name], lw=1.6, marker="o", ms=3.5)
        path.set(ylabel="exponent", title="Tempering", ylim=(0, 1.04))
        path.legend(fontsize=8.5, loc="best")
        shares.set(ylabel="ESS / N, accepted", ylim=(0, 1.04))
        steps.set(ylabel="moves", xlabel="level (lines: ESS before resampling, dashes: share of moves accepted)")
        steps.set_ylim(bottom=0)
        for ax in (path, steps):
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        steps.yaxis.set_major_locator(MaxNLocator(integer=True))

    return draw_grid(paint, 3, 1, 4.6, sharex="col") if tempered else None


def sizes(run: Posterior) -> torch.Tensor:
    """Particles of each population when it was weighed, by level: where nothing is wasted, the states of all moves of
    the level before are among them."""
    moves = torch.as_tensor(run.history["num_moves"]).double()
    kept = run.log_weight.shape[1]
    if not run.config.get("waste_free"):
        return torch.full_like(moves, kept)
    drawn = kept / (float(moves[-1]) + 1)
    return drawn * torch.cat([moves.new_ones(1), moves[:-1] + 1])


__all__ = ["plot_tempering", "sizes"]
