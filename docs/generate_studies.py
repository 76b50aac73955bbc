"""Write docs/studies.md from the results under studies/. A test checks that it is fresh.

python docs/generate_studies.py
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from studies.claim import Judged, read, table  # noqa: E402
from studies.combinations import run as combinations  # noqa: E402
from studies.depth.show import table as depth_table  # noqa: E402

CLAIMS = (
    "glorot_gradients",
    "he_depth",
    "order_to_chaos",
    "layer_norm_placement",
    "edge_of_stability",
    "recurrent_clipping",
    "batch_norm_rate",
    "degradation",
    "selu_fixed_point",
    "dynamical_isometry",
    "stale_second_moment",
    "silent_corruption",
    "init_by_activation",
    "skips_and_depth",
    "activations_without_norm",
    "dropout_variance_shift",
    "adamw_clipping_xavier",
    "recurrent_layer_norm",
    "clipping_limits",
    "length_warmup",
    "steady_optimizer",
    "precision_headroom",
    "collapse",
    "homeostasis",
    "adaptive_norm",
    "barren_plateaus",
)


def results(study: str) -> dict[str, Any]:
    """The saved numbers of a study."""
    return read(ROOT / "studies" / study / "results.json")


def measured_on(environment: dict[str, Any]) -> str:
    """Where and when, in a line."""
    return (
        f"Measured {environment['date']} on torch {environment['torch']}, Python {environment['python']}, "
        f"{environment['hardware']}, one thread a run."
    )


def readme(study: str) -> dict[str, str]:
    """The title of a study and the paragraphs of its README by their first words."""
    title, *parts = (ROOT / "studies" / study / "README.md").read_text().strip().split("\n\n")
    return {"Title": title.removeprefix("# ")} | {
        name: said.strip() for name, said in (part.removeprefix("**").split(".**", 1) for part in parts)
    }


def claim(study: str) -> str:
    """A published claim: what it says, how it was measured, the picture, the numbers."""
    said, saved = readme(study), results(study)
    values = [Judged(**value) for value in saved["values"]]
    verdict = "Reproduced" if saved["passed"] else "Not reproduced in every value"
    seeds = f"{len(saved['seeds'])} seeds, {saved['seconds']:.0f} seconds of one core."
    return "\n\n".join(
        [
            f"## {said['Title']}",
            f"{said['Claim']} ({said['Source']})",
            f"**{verdict}.** `steadygrad study {study}`: {seeds} {measured_on(saved['environment'])}",
            f"![{said['Claim']}](img/study_{study}.png)".replace("\n", " "),
            table(values),
            said["Set-up"],
        ]
    )


def text() -> str:
    """The page."""
    depth, pairs = results("depth"), results("combinations")
    page = (ROOT / "studies" / "page.md").read_text()
    runs = pairs["runs"]
    filled = {
        "claims": "\n\n".join(map(claim, CLAIMS)),
        "depth_measured_on": measured_on(depth["environment"]),
        "depth_table": depth_table(depth["runs"]),
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
