"""Write docs/repair_results.md from benchmarks/repair_page.md and the saved results. A test checks that it is fresh.

python docs/generate_repair.py
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from generate_diagnosis import GROUPS, ROOT, results, share, table  # noqa: E402

COST = {
    "runs": "runs, the untouched one among them",
    "extra_steps": "steps beyond the untouched run",
    "extra_seconds": "seconds beyond it",
}


def trained_table(zoo: dict[str, Any]) -> str:
    rows = []
    for name, groups in zoo["trained"].items():
        known = groups["overall"]["of"]
        rows.append([name, *(share(groups[group]) if known else "not run" for group in GROUPS)])
    return table(["trained by", *GROUPS], rows)


def cost_table(found: dict[str, Any]) -> str:
    of = {
        "zoo, failing": found["zoo"]["cost"]["failing"],
        "zoo, healthy": found["zoo"]["cost"]["healthy"],
        "cases, failing": found["cases"]["cost"]["failing"],
        "cases, healthy or fixed": found["cases"]["cost"]["healthy"],
    }
    rows = []
    for name, cost in of.items():
        if cost["repairs"]:
            rows.append([name, str(cost["repairs"])])
            rows[-1] += [f"{cost[key]['median']:.1f} / {cost[key]['p90']:.1f}" for key in COST]
    return table(["median / 90th percentile", "repairs", *COST.values()], rows)


def scripts_table(scored: dict[str, Any]) -> str:
    rows = []
    for row in scored["rows"]:
        if row["fixed"] or "healthy" in row["family"]:
            continue
        remedy = "left alone" if row["healthy"] else " + ".join(row["remedies"]) or "nothing found"
        ends = [row[key]["verdict"] if row[key] else "-" for key in ("plain", "repaired", "patched")]
        rows.append([row["family"], str(row["seed"]), remedy, *ends])
    return table(
        ["script", "seed", "remedy", "plainly", "with the prescription", "patched, without steadygrad"], rows
    )


def missed(zoo: dict[str, Any]) -> str:
    by_cause = sorted(zoo["by_cause"].items(), key=lambda pair: pair[1]["value"])
    weak = [f"`{name}` {share(value)}" for name, value in by_cause if value["value"] < 0.8]
    return "\n".join(f"- {line}" for line in weak) or "- none below four fifths"


def text() -> str:
    """The page."""
    found = results("repair")
    zoo, environment = found["zoo"], found["environment"]
    filled = {
        "seeds": ", ".join(map(str, found["seeds"])),
        "failing": str(zoo["runs"]["failing"]),
        "measured_on": f"Measured {environment['date']} on torch {environment['torch']}, {environment['hardware']}.",
        "trained": trained_table(zoo),
        "blind_without": share(zoo["blind_without_named"]),
        "healthy": share(zoo["healthy"]["untouched"]),
        "twins": share(zoo["twins"]["untouched"]),
        "cost": cost_table(found),
        "cases": scripts_table(found["cases"]),
        "cured": share(found["cases"]["cured"]),
        "cases_healthy": share(found["cases"]["healthy_left_alone"]),
        "cases_fixed": share(found["cases"]["fixed_left_alone"]),
        "text": scripts_table(found["text"]),
        "claimed": share(found["patches"]["claimed"]),
        "patches": share(found["patches"]["trains"]),
        "same": share(found["patches"]["same_score"]),
        "missed": missed(zoo),
    }
    page = (ROOT / "benchmarks" / "repair_page.md").read_text()
    for name, value in filled.items():
        page = page.replace(f"{{{{{name}}}}}", value)
    return page


if __name__ == "__main__":
    (Path(__file__).parent / "repair_results.md").write_text(text())
