"""What the pictures share: colours that colour-blind readers can tell apart, and labelled axes."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, RED, PURPLE, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#777777"
"""Okabe and Ito's colours."""


def panels(title: str, columns: int = 1, height: float = 3.6) -> tuple[Figure, list[Axes]]:
    """A figure with its message as title, and axes side by side."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4 if columns == 1 else 4.6 * columns, height), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=11, fontweight="bold")
    axes = [figure.add_subplot(1, columns, i + 1) for i in range(columns)]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def spread(
    axis: Axes,
    xs: Sequence[float],
    rows: Sequence[Sequence[float]],
    colour: str,
    label: str,
    style: str = "o-",
) -> None:
    """The median over seeds as a line, and the range between the smallest and the largest as a band."""
    columns = list(zip(*rows, strict=True))
    axis.plot(xs, [median(c) for c in columns], style, color=colour, label=label, markersize=4, linewidth=1.6)
    axis.fill_between(
        xs, [min(c) for c in columns], [max(c) for c in columns], color=colour, alpha=0.2, linewidth=0
    )
