"""Write docs/studies.md from the results under studies/. A test checks that it is fresh.

python docs/generate_studies.py
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from studies.combinations import run as combinations  # noqa: E402
from studies.depth.show import table as depth_table  # noqa: E402


def results(study: str) -> dict[str, Any]:
    """The saved numbers of a study."""
    return json.loads((ROOT / "studies" / study / "results.json").read_text())


def measured_on(environment: dict[str, Any]) -> str:
    """Where and when, in a line."""
    return (
        f"Measured {environment['date']} on torch {environment['torch']}, Python {environment['python']}, "
        f"{environment['hardware']}, one thread a run."
    )


def text() -> str:
    """The page."""
    depth, pairs = results("depth"), results("combinations")
    page = (ROOT / "studies" / "page.md").read_text()
    runs = pairs["runs"]
    filled = {
        "depth_measured_on": measured_on(depth["environment"]),
        "depth_table": depth_table(depth["cells"]),
        "combinations_measured_on": measured_on(pairs["environment"]),
        "combinations_table": combinations.table(runs, combinations.analysed(runs)),
        "factors": "\n".join(
            f"- **{name}**: {low} / {high}" for name, (low, high) in pairs["factors"].items()
        ),
    }
    for name, value in filled.items():
        page = page.replace(f"{{{{{name}}}}}", value)
    return page


if __name__ == "__main__":
    (Path(__file__).parent / "studies.md").write_text(text())
