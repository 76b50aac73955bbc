"""The depth table and its figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from studies.depth.nets import ROWS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Cell = dict[str, Any]


def verdict(cell: Cell) -> str:
    """How the training ended, in a few letters."""
    if cell["end"] == "trained":
        return f"**{cell['seconds']:.0f} s**"
    if cell["end"] == "not initialised":
        return "-"
    return f"no, {math.floor(100 * cell['accuracy'])} %" + (" nan" if cell["end"] == "non-finite" else "")


def ratio(cell: Cell) -> str:
    """First over last as a power of ten, or what stands in its way."""
    if cell["end"] == "not initialised":
        return "cannot"
    first, last = cell["first"], cell["last"]
    if not (math.isfinite(first) and math.isfinite(last)):
        return "overflow"
    if last == 0:
        return "no gradient" if first == 0 else "last is 0"
    if first == 0:
        return "underflow"
    value = first / last
    return f"{value:.2g}" if 1e-3 <= value <= 1e3 else f"1e{math.log10(value):+.0f}"


def table(cells: Sequence[Cell]) -> str:
    """Markdown: one table a kind of net, one line an initialisation."""
    found = {(c["net"], c["depth"], c["init"]): c for c in cells}
    lines: list[str] = []
    for net, row in ROWS.items():
        unit = "length" if row.depths[0] == 100 else "depth"
        lines += [f"### {net}", ""]
        lines += ["| init | " + " | ".join(f"{unit} {d}: ratio | trains" for d in row.depths) + " |"]
        lines += ["|---" * (1 + 2 * len(row.depths)) + "|"]
        for init in row.inits:
            shown = []
            for depth in row.depths:
                cell = found.get((net, depth, init))
                shown += ["", ""] if cell is None else [ratio(cell), verdict(cell)]
            lines.append(f"| {init} | " + " | ".join(shown) + " |")
        lines.append("")
    return "\n".join(lines).rstrip()


def draw(cells: Sequence[Cell]) -> Figure:
    """Ratio against depth, one panel a kind of net; a full dot trained, an open one did not."""
    from matplotlib.figure import Figure

    columns = 3
    rows = math.ceil(len(ROWS) / columns)
    figure = Figure(figsize=(4.4 * columns, 3.2 * rows), layout="constrained")
    axes = figure.subplots(rows, columns)
    for axis in axes.flat[len(ROWS) :]:
        axis.axis("off")
    for axis, (net, row) in zip(axes.flat, ROWS.items(), strict=False):
        for init in row.inits:
            mine = sorted(
                (c for c in cells if (c["net"], c["init"]) == (net, init)), key=lambda c: c["depth"]
            )
            mine = [c for c in mine if c["end"] != "not initialised" and (c["first"] or c["last"])]
            shown = [(c["depth"], _drawn(c), c["end"] == "trained") for c in mine]
            (line,) = axis.plot([d for d, _, _ in shown], [v for _, v, _ in shown], linewidth=1.2, label=init)
            for depth, value, trained in shown:
                fill = line.get_color() if trained else "white"
                axis.plot(depth, value, "o", color=line.get_color(), markerfacecolor=fill, markersize=6)
        axis.axhline(0, color="#888", linewidth=0.6)
        axis.set_xscale("log")
        axis.set_xticks(row.depths, [str(d) for d in row.depths])
        axis.minorticks_off()
        axis.set_yscale("symlog", linthresh=1)
        axis.set_yticks([-40, -10, -1, 0, 1, 10, 40], ["-40", "-10", "-1", "0", "1", "10", "40"])
        axis.set_ylim(-60, 400)  # room for the legend
        axis.set_title(net, fontsize=10, fontweight="bold")
        axis.legend(fontsize=7, loc="upper left", ncols=2, frameon=False)
    figure.supylabel(
        "log10 of the gradient norm, first over last, at the start (40: overflow or underflow)", fontsize=9
    )
    figure.supxlabel("depth (LSTM: length); a full dot trained on the digits within a minute", fontsize=9)
    return figure


def _drawn(cell: Cell) -> float:
    first, last = cell["first"], cell["last"]
    if not (math.isfinite(first) and math.isfinite(last)):
        return 40.0
    if first == 0 or last == 0:
        return -40.0 if first == 0 else 40.0
    return max(-40.0, min(40.0, math.log10(first / last)))
