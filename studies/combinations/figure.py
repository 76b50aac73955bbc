"""The figure: main effects as bars, effects of pairs as a map, one column a net."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from studies.combinations.effects import Effects

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(effects: Mapping[str, Effects], names: Sequence[str]) -> Figure:
    """Effects on survival in percentage points."""
    from matplotlib.figure import Figure

    limit = max(abs(e.size) for found in effects.values() for k, e in found.items() if len(k) == 2)
    figure = Figure(figsize=(4.2 * len(effects), 7.6), layout="constrained")
    axes = figure.subplots(2, len(effects), height_ratios=(1, 1.25))
    for column, (net, found) in enumerate(effects.items()):
        bars, grid = axes[0][column], axes[1][column]
        sizes = [found[(n,)].size for n in names]
        errors = [2 * found[(n,)].error for n in names]
        bars.barh(
            names, sizes, xerr=errors, color=["#2a7f62" if s > 0 else "#b5483a" for s in sizes], height=0.65
        )
        bars.axvline(0, color="#444", linewidth=0.8)
        bars.invert_yaxis()
        bars.set_title(net, fontweight="bold")
        bars.set_xlabel("main effect on survival, points (bars: 2 s.e.)")
        pairs = [[float("nan")] * len(names) for _ in names]
        for (a, b), effect in ((k, e) for k, e in found.items() if len(k) == 2):
            row, col = sorted((names.index(a), names.index(b)), reverse=True)
            pairs[row][col] = effect.size
            if effect.clear:
                shade = "white" if abs(effect.size) > 0.6 * limit else "black"
                grid.text(col, row, f"{effect.size:+.0f}", ha="center", va="center", fontsize=8, color=shade)
        image = grid.imshow(pairs, cmap="PRGn", vmin=-limit, vmax=limit)
        grid.set_xticks(range(len(names)), names, rotation=60, ha="right")
        grid.set_yticks(range(len(names)), names)
        grid.set_xlabel("effect of the pair: green help each other")
        grid.spines[["top", "right"]].set_visible(False)
        if column:
            bars.set_yticklabels([])
            grid.set_yticklabels([])
    figure.colorbar(image, ax=list(axes[1]), shrink=0.8, label="points of survival")
    return figure
