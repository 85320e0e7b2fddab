"""One page of an inspection: six small plots."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.figure import Figure

from ppl_align.report.plots import GREY, PALETTE, STYLE, _edges

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ppl_align.inspection import Inspection

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
        figure.suptitle(f"{target}: {found.num_draws} draws of the prior", x=0.01, ha="left", fontsize=11.5)
        figure.canvas.draw()  # a constrained layout is computed on drawing, with the settings of that moment
    return figure


def _rewards(found: Inspection, axes: Axes) -> None:
    """The first reward (the one that does most) before and after."""
    axes.set_ylabel("probability")
    name = next((s.name for s in found.sensitivities if s.name in found.pool.rewards), None)
    if name is None:
        _nothing(axes, "No reward")
        return
    r, log_weight = found.pool.rewards[name], found.pool.log_weight
    kept = r.isfinite()
    axes.set_xlabel(f"{name} [reward units]")
    axes.set_title(f"Before and after: {name}")
    if not bool(kept.any()):
        return
    values = r[kept].numpy()
    edges = _edges(values)
    before, _ = np.histogram(values, edges, weights=np.full(len(values), 1 / len(r)))
    axes.stairs(before, edges, color=PRIOR, fill=True, alpha=0.4, label="prior")
    if bool(log_weight.isfinite().any()):
        w = torch.softmax(log_weight, 0)[kept].numpy()
        after, _ = np.histogram(values, edges, weights=w)
        axes.stairs(after, edges, color=POSTERIOR, lw=1.8, label="posterior, as written")
    axes.legend(fontsize=8.5)


def _over_beta(found: Inspection, axes: Axes) -> np.ndarray:
    """The horizontal axis: beta where there is only one, else multiples of the betas."""
    x = np.array([s.factor for s in found.strengths]) * (found.beta or 1.0)
    if len(x) > 1:
        axes.set_xscale("log")
        axes.axvline(found.beta or 1.0, color=GREY, lw=1, ls="--", zorder=0)
    axes.set_xlabel("beta (dashes: as written)" if found.beta else "times the betas (dashes: as written)")
    return x


def _curve(axes: Axes, x: np.ndarray, y: list[float], errors: list[float], colour: str, label: str) -> None:
    """A line with a band of two standard errors; dotted where it is a bound (no error)."""
    value, error = np.array(y), np.array(errors)
    value = np.where(np.isfinite(value), value, np.nan)
    known = ~np.isnan(error)
    axes.plot(x, value, color=colour, lw=1.2, ls=":")
    axes.plot(np.where(known, x, np.nan), np.where(known, value, np.nan), color=colour, lw=2, label=label)
    band = np.where(known, 2 * error, np.nan)
    axes.fill_between(x, value - band, value + band, color=colour, alpha=0.2, lw=0)


def _divergence(found: Inspection, axes: Axes) -> None:
    x = _over_beta(found, axes)
    for i, which in enumerate(("log_evidence", "kl")):
        estimates = [getattr(s, which) for s in found.strengths]
        label = ("log Z", "KL(p*||p0)")[i]
        values, errors = ([e.value for e in estimates], [e.standard_error for e in estimates])
        _curve(axes, x, values, errors, PALETTE[i], label)
    axes.axhline(math.log(found.num_draws), color=GREY, lw=0.8, ls="-.", label="log N, the most KL it can show")
    seen = [e.value for s in found.strengths if s.enough or s.factor == 1 for e in (s.log_evidence, s.kl)]
    seen = [value for value in seen if math.isfinite(value)]
    axes.set_ylim(1.15 * min([0.0, *seen]) - 0.1, 1.15 * max([math.log(found.num_draws), *seen]))
    axes.set_ylabel("nats")
    axes.set_title("How far from the prior (dotted: at least)")
    axes.legend(fontsize=8, loc="upper right", frameon=True, framealpha=0.9, edgecolor="none")


def _means(found: Inspection, axes: Axes) -> None:
    x = _over_beta(found, axes)
    for i, reward in enumerate(found.rewards[: len(PALETTE)]):
        estimates = [s.rewards[reward.name] for s in found.strengths]
        _curve(
            axes,
            x,
            [e.value for e in estimates],
            [e.standard_error for e in estimates],
            PALETTE[i],
            f"E[{reward.name}]",
        )
    axes.set_ylabel("reward units")
    axes.set_title("What it buys")
    if found.rewards:
        axes.legend(fontsize=8.5)


def _ess(found: Inspection, axes: Axes) -> None:
    from ppl_align.inspection.weighted import ENOUGH

    x = _over_beta(found, axes)
    axes.set_yscale("log")
    axes.plot(x, [max(s.ess, 0.5) for s in found.strengths], color=PALETTE[2], lw=2)  # below 1: all are rejected
    axes.axhline(ENOUGH, color=GREY, lw=0.8, ls="-.")
    axes.annotate("enough to state errors", (x[0], ENOUGH), (2, 3), textcoords="offset points", fontsize=8, color=GREY)
    axes.set_ylim(0.9, 1.3 * found.num_draws)
    axes.set_ylabel(f"effective draws of {found.num_draws}")
    axes.set_title("What the prior's draws are worth")


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
    labels = ["start", *(f"{cut.site} {cut.tokens}" if several else str(cut.tokens) for cut in cuts)]
    axes.set_xticks(places, labels, rotation=45 if several else 0, ha="right" if several else "center")
    axes.set_xlabel("tokens written")
    axes.set_ylabel("nats paid (band: at least, at most)")
    axes.set_title("Where along the text")


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
    axes.set_xscale("log")
    axes.set_xlim(min(tokens) / 3, max(tokens) * 12)
    axes.set_yticks(range(len(lines)), [engine for engine, _, _ in lines])
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("LM tokens (orange: at least)")
    axes.set_title(f"What {found.goal} effective draws would take")


def _nothing(axes: Axes, why: str) -> None:
    axes.set_title(why)
    axes.set_axis_off()
