"""One look for all figures of the claims: the report's colours, without pyplot and its global state."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from ppl_align.claims.findings import Findings
from ppl_align.report.style import GREY, PALETTE, STYLE

Axes = Any  # of matplotlib, whose annotations refuse scatter(*points, s=9)
__all__ = ["GREY", "PALETTE", "Axes", "caption", "note", "panels"]


def panels(
    columns: int = 2, size: tuple[float, float] = (5.6, 3.4)
) -> Callable[[Callable[..., None]], Callable[[Findings], Figure]]:
    """Decorates ``paint(found, *axes)``: it draws into ``columns`` panels side by side, each ``size`` inches."""

    def figure_of(paint: Callable[..., None]) -> Callable[[Findings], Figure]:
        @wraps(paint)
        def figure(found: Findings) -> Figure:
            with rc_context(STYLE):
                drawn = Figure(figsize=(size[0] * columns, size[1]))
                paint(found, *drawn.subplots(1, columns, squeeze=False)[0])
                drawn.canvas.draw()
            return drawn

        return figure

    return figure_of


def caption(axes: Axes, title: str, x: str = "", y: str = "") -> None:
    """The title of a panel, and what its axes show."""
    axes.set(title=title, xlabel=x, ylabel=y)


def note(axes: Axes, text: str, at: Any, shift: tuple[float, float], colour: str, **how: Any) -> None:
    """A text beside the point ``at`` of a curve, ``shift`` in points."""
    axes.annotate(text, at, shift, textcoords="offset points", color=colour, **how)
