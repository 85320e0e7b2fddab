"""How every figure looks: colours, fonts, and matplotlib without pyplot and its global state."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PALETTE = ("#3b6fb6", "#d9722e", "#2f9372", "#8a5bb5", "#c0486e", "#7a6a4f", "#4aa3b8", "#5f6b7a")
"""One colour per run, the same in every plot and in the HTML page."""
GREY = "#8d98a5"
STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#5f6b7a",
    "axes.labelcolor": "#36404a",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e9ed",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "svg.fonttype": "path",
    "svg.hashsalt": "ppl-align",
}


def colours(runs: Iterable[str]) -> dict[str, str]:
    """The colour of every run, by its name."""
    return {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(runs)}


def literally(name: str) -> str:
    """A name as matplotlib shows it letter by letter: a dollar would begin a formula."""
    return name.replace("$", r"\$")


def draw(paint: Callable[[Axes], None], height: float = 3.0) -> Figure:
    """A figure of one panel."""
    return draw_grid(lambda axes: paint(axes[0, 0]), 1, 1, height)


def draw_grid(
    paint: Callable[[np.ndarray], None], rows: int, columns: int, height: float, sharex: Literal["col", "none"] = "none"
) -> Figure:
    """A figure of ``rows`` times ``columns`` panels, which ``paint`` is given as an array."""
    with rc_context(STYLE):
        figure = Figure(figsize=(5.6, height))
        paint(figure.subplots(rows, columns, squeeze=False, sharex=sharex))
        # A constrained layout is computed on drawing, with the settings of that moment.
        figure.canvas.draw()
    return figure
