"""One page of an inspection: six small plots."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.figure import Figure

from ppl_align.core.estimate import Estimate
from ppl_align.inspection import Inspection
from ppl_align.inspection.weighted import ENOUGH
from ppl_align.report.inspection import _name
from ppl_align.report.plots import _edges
from ppl_align.report.style import GREY, PALETTE, STYLE, literally

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PRIOR, POSTERIOR, BOUND = GREY, PALETTE[0], PALETTE[1]


def page(found: Inspection) -> Figure:
    """Rewards, log Z and KL, E[r], ESS over beta; the KL along the text; what engines would take."""
    with rc_context(STYLE):
        figure = Figure(figsize=(12.0, 7.0))
        axes = figure.subplots(2, 3).ravel()
        painters: list[Callable[[Inspection, Axes], None]] = [_rewards, _divergence, _means, _ess, _profile, _costs]
        for paint, one in zip(painters, axes, strict=True):
            paint(found, one)
        target = found.model + (f" with {found.lm}" if found.lm else "")
        whose = "from within the constraints" if found.pool.confined else "of the prior"
        figure.suptitle(f"{target}: {found.num_draws} draws {whose}", x=0.01, ha="left", fontsize=11.5)
        figure.canvas.draw()  # a constrained layout is computed on drawing, with the settings of that moment
    return figure


def _rewards(found: Inspection, axes: Axes) -> None:
    """The first reward (the one that does most) before and after."""
    axes.set_ylabel("probability")
    name = next((s.name for s in found.sensitivities if s.name in found.pool.particles.rewards), None)
    if name is None:
        _nothing(axes, "No reward")
        return
    r, log_weight = found.pool.particles.rewards[name], found.pool.log_weight
    kept = r.isfinite()
    said = literally(_name(name))
    axes.set(xlabel=f"{said} [reward units]", title=f"Before and after: {said}")
    if not bool(kept.any()):
        return
    values = r[kept].numpy()
    edges = _edges(values)
    before, _ = np.histogram(values, edges, weights=found.pool.base.relative[kept].numpy() / len(r))
    label = "prior, given the constraints" if found.pool.confined else "prior"
    axes.stairs(before, edges, color=PRIOR, fill=True, alpha=0.4, label=label)
    if bool(log_weight.isfinite().any()):
        w = torch.softmax(log_weight, 0)[kept].numpy()
        after, _ = np.histogram(values, edges, weights=w)
        axes.stairs(after, edges, color=POSTERIOR, lw=1.8, label="posterior, as written")
    axes.legend(fontsize=8.5)


def _over_beta(found: Inspection, axes: Axes) -> np.ndarray:
    """The horizontal axis: beta where there is only one, else multiples of the betas."""
    x = np.array([s.factor for s in found.strengths]) * (found.beta or 1.0)
    if len(x) == 1:
        axes.set_xticks(x, ["as written"])
        return x
    axes.set_xscale("log")
    axes.axvline(found.beta or 1.0, color=GREY, lw=1, ls="--", zorder=0)
    axes.set_xlabel("beta (dashes: as written)" if found.beta else "times the betas (dashes: as written)")
    return x


def _curve(axes: Axes, x: np.ndarray, estimates: list[Estimate], colour: str, label: str) -> None:
    """A line with a band of two standard errors; dotted where no error is known. A single point is a point."""
    value, error = np.array(estimates).T
    value = np.where(np.isfinite(value), value, np.nan)
    known = ~np.isnan(error)
    band = np.where(known, 2 * error, np.nan)
    if len(x) == 1:
        axes.errorbar(x, value, np.nan_to_num(band), color=colour, marker="o", capsize=3, ls="", label=label)
        return
    axes.plot(x, value, color=colour, lw=1.2, ls=":", label=None if known.any() else label)
    axes.plot(np.where(known, x, np.nan), np.where(known, value, np.nan), color=colour, lw=2, label=label)
    axes.fill_between(x, value - band, value + band, color=colour, alpha=0.2, lw=0)


def _divergence(found: Inspection, axes: Axes) -> None:
    x = _over_beta(found, axes)
    _curve(axes, x, [s.log_evidence for s in found.strengths], PALETTE[0], "log Z")
    _curve(axes, x, [s.kl for s in found.strengths], PALETTE[1], "KL(p*||p0)")
    seen = [e.value for s in found.strengths if s.enough or s.factor == 1 for e in (s.log_evidence, s.kl)]
    seen = [value for value in seen if math.isfinite(value)]
    if not found.pool.confined:
        most = math.log(found.num_draws)
        axes.axhline(most, color=GREY, lw=0.8, ls="-.", label="log N, the most KL it can show")
        seen.append(most)
    low, high = min([0.0, *seen]), max([0.5, *seen])
    axes.set_ylim(low - 0.08 * (high - low), high + 0.15 * (high - low))
    axes.set(ylabel="nats", title="How far from the prior (dotted: or more)")
    axes.legend(fontsize=8, loc="best", frameon=True, framealpha=0.7, edgecolor="none")


def _means(found: Inspection, axes: Axes) -> None:
    if not found.rewards:
        _nothing(axes, "No reward to buy")
        return
    x = _over_beta(found, axes)
    for i, reward in enumerate(found.rewards[: len(PALETTE)]):
        estimates = [s.rewards[reward.name] for s in found.strengths]
        _curve(axes, x, estimates, PALETTE[i], f"E[{literally(_name(reward.name))}]")
    axes.set(ylabel="reward units", title="What it buys")
    axes.legend(fontsize=8.5)


def _ess(found: Inspection, axes: Axes) -> None:
    x = _over_beta(found, axes)
    axes.set_yscale("log")
    worth = [max(s.ess, 0.5) for s in found.strengths]  # below 1: all are rejected
    axes.plot(x, worth, color=PALETTE[2], lw=2, marker="o" if len(x) == 1 else None)
    axes.axhline(ENOUGH, color=GREY, lw=0.8, ls="-.")
    axes.annotate("enough to state errors", (x[0], ENOUGH), (2, 3), textcoords="offset points", fontsize=8, color=GREY)
    axes.set_ylim(0.9, 1.3 * found.num_draws)
    axes.set(ylabel=f"effective draws of {found.num_draws}", title="What the draws are worth")


def _profile(found: Inspection, axes: Axes) -> None:
    if found.profile is None:
        _nothing(axes, "No profile")
        return
    cuts = found.profile.cuts
    places = np.arange(len(cuts) + 1)
    lower = np.array([0.0, *(cut.lower.value for cut in cuts)])
    upper = np.array([0.0, *(cut.upper.value for cut in cuts)])
    axes.fill_between(places, lower, upper, color=POSTERIOR, alpha=0.2, lw=0)
    errors = [0.0, *(np.nan_to_num(cut.upper.standard_error) for cut in cuts)]
    axes.errorbar(places, (lower + upper) / 2, errors, color=POSTERIOR, lw=2, marker="o", ms=4, capsize=2)
    several = len({cut.site for cut in cuts}) > 1
    written = ["" if cut.tokens is None else str(cut.tokens) for cut in cuts]
    names = [f"{literally(_name(cut.site, 10))} {t}" if several else t for cut, t in zip(cuts, written, strict=True)]
    axes.set_xticks(places, ["start", *names], rotation=45 if several else 0, ha="right" if several else "center")
    axes.set(xlabel="tokens written", ylabel="nats paid (band: at least, at most)", title="Where along the text")


def _costs(found: Inspection, axes: Axes) -> None:
    lines = [(p.engine, p.lm_tokens, p.at_least) for p in found.predictions if p.lm_tokens]
    if not lines:
        _nothing(axes, "No engine's cost is known")
        return
    for i, (_, needed, at_least) in enumerate(lines):
        axes.barh(i, needed, color=BOUND if at_least else POSTERIOR, alpha=0.8, height=0.6)
        shown = f"{'≥ ' if at_least else ''}{needed:,.0f}"
        axes.annotate(shown, (needed, i), (4, 0), textcoords="offset points", va="center", fontsize=8.5)
    tokens = [needed for _, needed, _ in lines]
    axes.set(xscale="log", xlim=(min(tokens) / 3, max(tokens) * 12))
    axes.set_yticks(range(len(lines)), [engine for engine, _, _ in lines])
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set(xlabel="LM tokens (orange: at least)", title=f"What {found.goal} effective draws would take")


def _nothing(axes: Axes, why: str) -> None:
    axes.set_title(why)
    axes.set_axis_off()
