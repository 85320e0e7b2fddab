"""The plots of a comparison: matplotlib Figures, made without pyplot and its global state."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from ppl_align.diagnostics.comparison import Comparison
from ppl_align.posterior.prior import best_view_of_prior, prior_log_weight
from ppl_align.posterior.result import Posterior
from ppl_align.posterior.run_summary import summary_of
from ppl_align.report import chain_plots, level_plots
from ppl_align.report.style import GREY, colours, draw, literally

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def figures(compared: Comparison) -> dict[str, Figure]:
    """Every plot that has something to show, by name."""
    colour = colours(compared.runs)
    found: dict[str, Figure | None] = {
        "evidence": plot_evidence(compared),
        "cost": plot_cost(compared),
        "weights": plot_weights(compared),
        **{f"reward_{name}": plot_reward(compared, name) for name in compared.rewards},
        "smc": plot_smc(compared),
        "tempering": level_plots.plot_tempering(compared.runs),
        **{f"traces_{name}": chain_plots.plot_traces(name, run, colour[name]) for name, run in compared.runs.items()},
        **{f"mixing_{name}": chain_plots.plot_mixing(name, run, colour[name]) for name, run in compared.runs.items()},
        "acceptance": chain_plots.plot_acceptance(compared.runs),
        "svi": plot_svi(compared),
    }
    named: dict[str, Figure] = {}
    for name, figure in found.items():
        if figure is not None:
            named[_file_name(name, named)] = figure
    return named


def _file_name(name: str, taken: Collection[str]) -> str:
    """A name that every file system takes and that no other figure has."""
    plain, number = "".join(c if c.isalnum() or c in "-_." else "_" for c in name), 2
    unique, others = plain, {other.casefold() for other in taken}
    while unique.casefold() in others:
        unique, number = f"{plain}_{number}", number + 1
    return unique


def plot_evidence(compared: Comparison) -> Figure | None:
    """log Zhat of every replicate, the pooled estimate, and its mean ± spread; of runs that estimate a Z."""
    runs, colour = {name: run for name, run in compared.runs.items() if run.kind.has_evidence}, colours(compared.runs)

    def paint(axes: Axes) -> None:
        rng = np.random.default_rng(0)
        for i, (name, run) in enumerate(runs.items()):
            each = run.log_evidence[run.log_evidence.isfinite()].numpy()
            spread, pooled = summary_of(run).spread, summary_of(run).log_evidence
            if spread is not None:
                axes.plot([each.mean() - spread, each.mean() + spread], [i, i], color=colour[name], lw=6, alpha=0.22)
            if not run.exact:
                axes.scatter(each, i + rng.uniform(-0.16, 0.16, len(each)), s=16, color=colour[name], alpha=0.65, lw=0)
            axes.scatter([pooled], [i], marker="D", s=46, color=colour[name], edgecolor="white", zorder=3)
            elbo = summary_of(run).elbo
            if elbo is not None:
                axes.scatter([elbo], [i], marker="|", s=160, color=colour[name], zorder=3)
                axes.annotate(
                    "ELBO", (elbo, i), (0, 9), textcoords="offset points", ha="center", fontsize=7.5, color=colour[name]
                )
        best = compared.reference["best_log_evidence"]
        axes.axvline(best, color=GREY, lw=1, ls="--", zorder=0)
        axes.set_yticks(range(len(runs)), list(runs))
        axes.set_ylim(len(runs) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
        below = "log Zhat [nats] (dots: replicates, diamond: pooled, band: ± 1 sd)"
        axes.set(xlabel=below, title="Evidence (dashes: the best estimate)")

    return draw(paint, 1.4 + 0.5 * len(runs)) if runs else None


def plot_weights(compared: Comparison) -> Figure | None:
    """Share of the weight held by the heaviest particles. A diagonal would be equal weights."""
    runs = {name: run for name, run in compared.runs.items() if not run.exact and run.kind.has_evidence}
    colour = colours(compared.runs)

    def paint(axes: Axes) -> None:
        for name, run in runs.items():
            sorted_weights = run.importance_weights.normalised.sort(-1, descending=True).values
            held = torch.cat([torch.zeros(len(sorted_weights), 1), sorted_weights.cumsum(-1)], -1)
            share = np.linspace(0, 1, held.shape[1])
            for row in held[:40]:
                axes.plot(share, row, color=colour[name], lw=0.8, alpha=0.3)
            largest = summary_of(run).largest_weight
            axes.plot(share, held.mean(0), color=colour[name], lw=2, label=f"{name} (largest weight {largest:.2g})")
        axes.plot([0, 1], [0, 1], color=GREY, lw=1, ls="--")
        axes.set(xlim=(0, 1), ylim=(0, 1.02), title="Weights (thin: each replicate)")
        axes.set(xlabel="share of the particles, heaviest first", ylabel="share of the weight")
        axes.legend(loc="lower right", fontsize=8.5)

    return draw(paint) if runs else None


def plot_smc(compared: Comparison) -> Figure | None:
    """ESS of every SMC run over its steps, with a mark where a replicate resampled; dots: moves that were accepted
    where it moved its unfinished texts."""
    looked = {name: run.ess_by_step for name, run in compared.runs.items() if "exponent" not in run.history}
    runs = {name: np.asarray(ess, dtype=float) for name, ess in looked.items() if ess is not None and len(ess)}
    colour = colours(compared.runs)

    def paint(axes: Axes) -> None:
        for name, ess in runs.items():
            run = compared.runs[name]
            steps = np.asarray(run.history.get("step", np.arange(1, len(ess) + 1)))
            particles = run.log_weight.shape[1]
            axes.plot(steps, ess / particles, color=colour[name], lw=0.7, alpha=0.3)
            axes.plot(steps, ess.mean(1) / particles, color=colour[name], lw=2, label=name)
            if run.resampled is not None:
                at, replicate = np.nonzero(run.resampled.numpy())
                axes.scatter(
                    steps[at], ess[at, replicate] / particles, marker="v", s=16, color=colour[name], alpha=0.6, lw=0
                )
            if "moved" in run.history:
                moved = torch.as_tensor(run.history["moved"]).double().nanmean(1).numpy()
                axes.plot(
                    steps, moved, color=colour[name], ls="none", marker="o", ms=4, label=f"{name}: moves accepted"
                )
        axes.set_ylim(0, 1.04)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel="step (triangles: a replicate resampled)", ylabel="ESS / N before resampling")
        axes.set_title("Sequential Monte Carlo")
        axes.legend(loc="lower right", fontsize=8.5)

    return draw(paint) if runs else None


def plot_svi(compared: Comparison) -> Figure | None:
    """Loss of every trained guide beside the best log Z, which its negative can only approach from below."""
    trained = {name: run.losses for name, run in compared.runs.items()}
    losses = {name: np.asarray(loss, dtype=float) for name, loss in trained.items() if loss is not None and len(loss)}
    colour = colours(compared.runs)

    def paint(axes: Axes) -> None:
        for name, loss in losses.items():
            steps = np.arange(1, len(loss) + 1)
            width = max(1, len(loss) // 15)
            smooth = np.convolve(-loss, np.ones(width) / width, mode="valid")
            axes.plot(steps, -loss, color=colour[name], lw=0.8, alpha=0.4)
            axes.plot(steps[width - 1 :], smooth, color=colour[name], lw=2, label=f"{name}: ELBO while training")
        best = compared.reference["best_log_evidence"]
        if np.isfinite(best):
            axes.axhline(best, color=GREY, lw=1.2, ls="--", label=f"best log Z ({best:.2f})")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel="gradient step", ylabel="nats", title="Variational inference")
        axes.legend(loc="lower right", fontsize=8.5)

    return draw(paint) if losses else None


def plot_cost(compared: Comparison) -> Figure | None:
    """Precision of Zhat against LM tokens, per replicate; along a dashed line a run is as good per token."""
    points: dict[str, tuple[float, float]] = {}
    for name, run in compared.runs.items():
        per_1000 = summary_of(run).precision
        if per_1000 is not None:
            tokens = (run.cost.lm_tokens + run.cost.scored_tokens) / len(run.log_weight)
            points[name] = tokens, per_1000 * tokens / 1000
    colour = colours(compared.runs)

    def paint(axes: Axes) -> None:
        axes.set(xscale="log", yscale="log")
        tokens, precision = (np.array(v) for v in zip(*points.values(), strict=True))
        left, right = tokens.min() / 3, tokens.max() * 3
        for rate in sorted({round(float(np.log10(p / t)), 1) for t, p in points.values()}):
            axes.plot([left, right], [left * 10**rate, right * 10**rate], color="#d4d9df", lw=1, ls="--", zorder=0)
        for name, (x, y) in points.items():
            axes.scatter([x], [y], s=60, color=colour[name], edgecolor="white", zorder=3)
            axes.annotate(name, (x, y), (8, 0), textcoords="offset points", va="center", fontsize=9, color=colour[name])
        axes.set(xlim=(left, right * 1.6), ylim=(precision.min() / 4, precision.max() * 4))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
            axis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:.1g}")
            axis.set_minor_formatter(NullFormatter())
        axes.set(xlabel="LM tokens of one replicate, training included", ylabel="1 / relative variance of Zhat")
        axes.set_title("Cost and precision (up and left is better)")

    return draw(paint) if points else None


def plot_reward(compared: Comparison, name: str) -> Figure | None:
    """Distribution of one reward under every posterior, and under the prior as the best-placed run saw it."""
    sources: list[tuple[str, np.ndarray, np.ndarray, str]] = []
    prior = best_view_of_prior(compared.runs.values())
    if prior is not None:
        sources.append(
            ("prior", *_weighted_values(prior, name, torch.softmax(prior_log_weight(prior).reshape(-1), 0)), GREY)
        )
    for run_name, run in compared.runs.items():
        sources.append(
            (run_name, *_weighted_values(run, name, run.weights.reshape(-1)), colours(compared.runs)[run_name])
        )
    sources = [source for source in sources if len(source[1])]
    if not sources:
        return None
    edges = _edges(np.concatenate([values for _, values, _, _ in sources]))

    def paint(axes: Axes) -> None:
        for label, points, mass, colour in sources:
            height, _ = np.histogram(points, edges, weights=mass)
            is_prior = label == "prior"
            axes.stairs(
                height,
                edges,
                color=colour,
                lw=1.8,
                fill=is_prior,
                alpha=0.35 if is_prior else 1.0,
                label=f"{label} (mean {float((points * mass).sum() / mass.sum()):.3g})",
            )
        said = literally(name)
        axes.set(xlabel=f"{said} [reward units]", ylabel="probability", title=f"Reward: {said}")
        axes.legend(fontsize=8.5, loc="best")

    return draw(paint)


def _edges(values: np.ndarray) -> np.ndarray:
    """Bins of a histogram: one per level for a reward with few evenly spaced levels (a yes/no, a count), else 24."""
    levels = np.unique(values)
    if len(levels) == 1:
        return levels[0] + np.array([-0.5, 0.5])
    width = float(np.diff(levels).min())
    steps = np.diff(levels) / width
    if (levels[-1] - levels[0]) / width <= 30 and np.allclose(steps, steps.round()):
        return np.arange(levels[0] - width / 2, levels[-1] + width, width)
    return np.linspace(levels[0], levels[-1], 25)


def _weighted_values(run: Posterior, name: str, w: Any) -> tuple[np.ndarray, np.ndarray]:
    values = run.rewards[name].reshape(-1).double()
    keep = values.isfinite() & (w > 0)
    return values[keep].numpy(), w[keep].numpy()
