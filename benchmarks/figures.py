"""The figures of the forecast and the diagnosis, from the results of their benchmarks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT
from benchmarks.peers import PEERS
from benchmarks.scores import Share, wilson

IMAGES = ROOT / "docs" / "img"
GOOD, BAD, GREY, LINE = "#2a7f62", "#b5483a", "#b9b9b9", "#444"


def _plots() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _errors(shares: list[Share]) -> list[list[float]]:
    """Lengths of the Wilson intervals below and above each share."""
    ends = [(s.value, *wilson(s.hits, s.of)) for s in shares]
    return [[max(0.0, v - low) for v, low, _ in ends], [max(0.0, high - v) for v, _, high in ends]]


def draw_forecast(result: Mapping[str, Any], path: Path = IMAGES / "forecast.png") -> None:
    """Precision and recall beside the baselines, and recall by cause."""
    plots = _plots()
    figure, (left, right) = plots.subplots(1, 2, figsize=(11, 6.2), layout="constrained")
    overall = result["scores"]["overall"]
    rows = {"steadygrad": (overall["precision"], overall["recall"])}
    blind = result["scores"]["blind"]
    rows["steadygrad, blind"] = (blind["precision"], blind["recall"])
    rows |= {
        f"{name}": (r["overall"]["precision"], r["overall"]["recall"])
        for name, r in result["baselines"].items()
    }
    rows = {name: pair for name, pair in rows.items() if all(s.of for s in pair)}
    for offset, label, colour, i in ((-0.2, "precision", GREY, 0), (0.2, "recall", GOOD, 1)):
        shares = [pair[i] for pair in rows.values()]
        places = [y + offset for y in range(len(rows))]
        left.barh(places, [s.value for s in shares], height=0.38, color=colour, label=label)
        left.errorbar(
            [s.value for s in shares], places, xerr=_errors(shares), fmt="none", ecolor=LINE, elinewidth=0.8
        )
        for place, found in zip(places, shares, strict=True):
            shade = "white" if colour == GOOD and found.value > 0.1 else "black"
            left.text(0.01, place, f"{found.hits}/{found.of}", va="center", fontsize=7, color=shade)
    left.set_yticks(range(len(rows)), list(rows))
    left.invert_yaxis()
    left.set_xlim(0, 1.02)
    left.set_xlabel("share (bars: 95 % interval)")
    left.set_title("which trainings will fail, from ten steps", fontweight="bold")
    left.legend(loc="lower right", fontsize=8)
    _by_name(right, result["by_cause"], "recall by planted cause")
    _save(plots, figure, path)


def _by_name(axes: Any, shares: Mapping[str, Share], title: str) -> None:
    ordered = sorted(shares.items(), key=lambda pair: (pair[1].value, pair[1].of))
    names, values = [k for k, _ in ordered], [s for _, s in ordered]
    axes.barh(
        names, [s.value for s in values], height=0.65, color=[GOOD if s.value >= 0.5 else BAD for s in values]
    )
    axes.errorbar(
        [s.value for s in values],
        range(len(values)),
        xerr=_errors(values),
        fmt="none",
        ecolor=LINE,
        elinewidth=0.8,
    )
    axes.set_yticks(range(len(values)), [f"{n} ({s.hits}/{s.of})" for n, s in ordered], fontsize=8)
    axes.set_xlim(0, 1.02)
    axes.set_title(title, fontweight="bold")


def draw_diagnosis(result: Mapping[str, Any], path: Path = IMAGES / "diagnosis.png") -> None:
    """Calibration of the first cause, F1 by cause, and alarms of ours and the peers: early against false."""
    plots = _plots()
    figure, (left, middle, right) = plots.subplots(1, 3, figsize=(15, 5.6), layout="constrained")
    left.plot([0, 1], [0, 1], color=LINE, linewidth=0.8, linestyle=":")
    for group, colour in (("non-blind", GOOD), ("blind", BAD)):
        found = result["incidents"][group]["calibration"]
        bins = [b for b in found["bins"] if b.count]
        if bins:
            error = _errors([Share(round(b.was * b.count), b.count) for b in bins])
            label = f"{group}, error {found['error']:.3f}"
            said, was = [b.said for b in bins], [b.was for b in bins]
            left.errorbar(
                said, was, yerr=error, color=colour, marker="o", linewidth=1, elinewidth=0.6, label=label
            )
            for b in bins:
                left.annotate(
                    str(b.count), (b.said, b.was), xytext=(4, -10), textcoords="offset points", fontsize=7
                )
    left.set_xlim(0, 1.02)
    left.set_ylim(0, 1.02)
    left.set_xlabel("probability of the first cause")
    left.set_ylabel("share that was right (small: runs)")
    left.set_title("calibration", fontweight="bold")
    left.legend(loc="upper left", fontsize=8)

    ordered = sorted(result["f1_by_cause"].items(), key=lambda pair: pair[1])
    values = [v for _, v in ordered]
    middle.barh(
        [k for k, _ in ordered], values, height=0.65, color=[GOOD if v >= 0.5 else BAD for v in values]
    )
    middle.tick_params(axis="y", labelsize=8)
    middle.set_xlim(0, 1.02)
    macro = result["incidents"]["overall"]["macro_f1"]
    middle.axvline(macro, color=LINE, linewidth=0.8, linestyle=":")
    middle.set_title(f"F1 by cause, mean {macro:.2f}", fontweight="bold")

    alarms, leads = result["alarms"]["overall"]["healthy"]["by"], result["lead_times"]["all"]
    taken: dict[tuple[float, float], int] = {}  # names at one place go below each other
    for name in ("steadygrad", *PEERS):
        x, y = alarms[name]["runs_with_alarm"], leads[name].by_next
        if x.of and y.of:
            colour = GOOD if name == "steadygrad" else GREY
            right.scatter([x.value], [y.value], color=colour, s=50, edgecolor=LINE, linewidth=0.5)
            place = (round(x.value, 2), round(y.value, 1))
            below = taken[place] = taken.get(place, -1) + 1
            right.annotate(
                name, (x.value, y.value), xytext=(6, 4 - 10 * below), textcoords="offset points", fontsize=8
            )
    right.set_xlim(-0.03, 1.15)
    right.set_ylim(-0.08, 1.05)
    right.set_xlabel("share of healthy runs with an alarm")
    right.set_ylabel("blow-ups caught by one step after the onset")
    right.set_title("alarms", fontweight="bold")
    _save(plots, figure, path)


def _save(plots: Any, figure: Any, path: Path) -> None:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plots.close(figure)
