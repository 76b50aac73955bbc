"""Write docs/performance.md from benchmarks/speed_page.md and the saved results. A test checks that it is fresh.

python docs/generate_performance.py
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from generate_diagnosis import ROOT, results, table  # noqa: E402

from benchmarks.speed import not_measured  # noqa: E402
from benchmarks.speed_rows import Row  # noqa: E402
from benchmarks.speed_table import goal, interval, met, number, verdict  # noqa: E402

PARTS = {
    "clip": ("clip", "lightning", "accelerate"),
    "equality": ("equality",),
    "monitor": ("monitor",),
    "tiers": ("tiers",),
    "peers": ("wandb", "tensorboard", "anomaly"),
    "run": ("run", "steps", "million"),
    "snapshots": ("snapshots",),
}


def part(rows: Sequence[Row], jobs: Sequence[str]) -> str:
    """The rows of these jobs, one table for each cadence."""
    mine = [r for r in rows if r["job"].split("/")[0] in jobs]
    blocks = []
    for cadence in dict.fromkeys(r["cadence"] for r in mine):
        lines = [
            [
                r["name"] + (" †" if r["quick"] else ""),
                number(r["value"]),
                interval(r) or "-",
                goal(r) or "-",
                verdict(r) or "-",
                r["unit"],
            ]
            for r in mine
            if r["cadence"] == cadence
        ]
        head = ["", "value", "95 %", "promised", "", "unit"]
        blocks.append(f"{cadence[0].upper()}{cadence[1:]}:\n\n{table(head, lines)}")
    return "\n\n".join(blocks) or "Not measured yet."


def text() -> str:
    """The page."""
    found = results("speed")
    promised, rows = found["rows"], [*found["rows"], *found["beside"]]
    machines = sorted({f"torch {r['torch']}, {r['hardware']}" for r in rows})
    missing = not_measured(rows)
    dates = sorted({r["date"] for r in rows})
    filled = {
        "measured_on": f"Measured {' to '.join(dict.fromkeys((dates[0], dates[-1])))} on {'; '.join(machines)}.",
        "promised": f"{sum(map(met, promised))} of {len(promised)}",
        "quick": "Rows with a † are a first look on a busy machine, a twentieth of the rounds: no measurement."
        if any(r["quick"] for r in rows)
        else "",
        "missing": f"Promised and not measured yet: {', '.join(missing)}." if missing else "",
        **{name: part(rows, jobs) for name, jobs in PARTS.items()},
    }
    page = (ROOT / "benchmarks" / "speed_page.md").read_text()
    for name, value in filled.items():
        page = page.replace(f"{{{{{name}}}}}", value)
    return page


if __name__ == "__main__":
    (Path(__file__).parent / "performance.md").write_text(text())
