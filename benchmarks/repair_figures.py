"""The figure of the repair benchmark: who trains what fails, which causes are mended, and what it takes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.figures import GOOD, GREY, IMAGES, LINE, _by_name, _errors, _plots, _save
from benchmarks.repair_zoo import OURS, TARGETS
from benchmarks.scores import wilson


def draw_repair(result: Mapping[str, Any], path: Path = IMAGES / "repair.png") -> None:
    """Share trained by strategy, overall and blind; share by cause; beside the bars that are to be reached."""
    plots = _plots()
    figure, (left, right) = plots.subplots(1, 2, figsize=(12, 6.2), layout="constrained")
    zoo = result["zoo"]
    rows = {name: by for name, by in zoo["trained"].items() if by["overall"].of}
    for offset, group, height in ((-0.2, "overall", 0.38), (0.2, "blind", 0.38)):
        shares = [by[group] for by in rows.values()]
        places = [y + offset for y in range(len(rows))]
        colours = [GOOD if name == OURS else GREY for name in rows]
        left.barh(
            places,
            [s.value for s in shares],
            height=height,
            color=colours,
            alpha=1.0 if group == "overall" else 0.6,
        )
        left.errorbar(
            [s.value for s in shares], places, xerr=_errors(shares), fmt="none", ecolor=LINE, elinewidth=0.8
        )
        for place, found in zip(places, shares, strict=True):
            _, high = wilson(found.hits, found.of)
            outside = found.of and high < 0.7
            left.text(
                high + 0.01 if outside else 0.01,
                place,
                f"{found.hits}/{found.of} {group}",
                va="center",
                fontsize=7,
                color="black" if outside or not found.hits else "white",
            )
    for group, bar in TARGETS.items():
        left.axvline(bar, color=LINE, linewidth=0.8, linestyle="-" if group == "overall" else ":")
    left.set_yticks(range(len(rows)), list(rows))
    left.invert_yaxis()
    left.set_xlim(0, 1.02)
    left.set_xlabel("share of failing trainings that train (bars: 95 % interval; lines: targets)")
    left.set_title("what trains", fontweight="bold")
    _by_name(right, zoo["by_cause"], "repair, by planted cause")
    _save(plots, figure, path)
