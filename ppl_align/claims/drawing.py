"""One look for all figures of the claims: the report's colours, without pyplot and its global state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from ppl_align.report.plots import GREY, PALETTE, STYLE

__all__ = ["GREY", "PALETTE", "draw"]


def draw(paint: Callable[..., Any], columns: int = 1, size: tuple[float, float] = (5.6, 3.4)) -> Figure:
    """A figure of ``columns`` panels side by side, each ``size`` inches; ``paint(*axes)`` draws into them."""
    with rc_context(STYLE):
        figure = Figure(figsize=(size[0] * columns, size[1]))
        axes = figure.subplots(1, columns, squeeze=False)[0]
        paint(*axes)
        figure.canvas.draw()
    return figure
