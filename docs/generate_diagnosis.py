"""Write docs/diagnosis.md from benchmarks/page.md and the saved results. A test checks that it is fresh.

python docs/generate_diagnosis.py
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.zoo import families  # noqa: E402

GROUPS = ("overall", "non-blind", "blind")
FORECAST = {
    "precision": "precision",
    "recall": "recall",
    "recall_not_visible": "recall where the fault is not visible yet",
    "cause_top1": "cause right at first place",
    "healthy_families": "healthy families flagged",
    "twins": "twins without the fault flagged",
}
BASELINES = {
    "autotrainer": "AutoTrainer's rule at step 0",
    "norm>10": "gradient norm above 10",
    "norm>100": "gradient norm above 100",
    "norm>1000": "gradient norm above 1000",
    "dry run": "ten steps alone: not finite, or loss above 3 times the first",
}
DIAGNOSIS = {
    "told": "failing runs that are told",
    "top1_of_told": "right cause first, of those told",
    "top2_of_told": "right cause among the first two, of those told",
    "top1": "right cause first, of all",
}
PEERS = {
    "steadygrad": "steadygrad, alarms",
    "autotrainer": "AutoTrainer",
    "norm>10": "fixed norm 10",
    "norm>1000": "fixed norm 1000",
    "zclip": "ZClip",
    "autoclip": "AutoClip",
    "lightning": "Lightning SpikeDetection",
    "llm-foundry": "llm-foundry",
}


def results(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())
    return found


def share(value: dict[str, Any]) -> str:
    """``0.97 (58 of 60)``."""
    return f"{value['value']:.3f} ({value['hits']} of {value['of']})" if value["of"] else "-"


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def forecast_table(found: dict[str, Any]) -> str:
    rows = [[label, *(share(found["scores"][g][key]) for g in GROUPS)] for key, label in FORECAST.items()]
    for name, label in BASELINES.items():
        rows.append([f"{label}: precision, recall"])
        for g in GROUPS:
            pair = found["baselines"][name][g]
            rows[-1].append(" / ".join(f"{pair[key]['value'] or 0:.2f}" for key in ("precision", "recall")))
    return table(["", *GROUPS], rows)


def diagnosis_table(found: dict[str, Any]) -> str:
    groups = found["incidents"]
    rows = [[label, *(share(groups[g][key]) for g in GROUPS)] for key, label in DIAGNOSIS.items()]
    rows.append(["macro-F1 over causes", *(f"{groups[g]['macro_f1']:.2f}" for g in GROUPS)])
    rows.append(["calibration error", *(f"{groups[g]['calibration']['error']:.2f}" for g in GROUPS)])
    return table(["", *GROUPS], rows)


def alarms_table(found: dict[str, Any]) -> str:
    healthy = found["alarms"]["overall"]["healthy"]["by"]
    leads = found["lead_times"]["slow"]
    rows = []
    for name, label in PEERS.items():
        lead = leads[name]
        median = lead["lead_quartiles"][1] if lead["lead_quartiles"] else None
        rows.append(
            [
                label,
                share(healthy[name]["runs_with_alarm"]),
                f"{healthy[name]['per_1000_steps']:.2f}",
                share(lead["caught_by_onset_plus_1"]),
                "-" if median is None else f"{median:.0f}",
            ]
        )
    head = [
        "",
        "healthy runs with an alarm",
        "alarms per 1,000 steps",
        "slow failures caught by a step after the onset",
        "median lead, steps",
    ]
    return table(head, rows)


def cost(found: dict[str, Any]) -> str:
    small, large = found["cost"], found["cost_25m"]
    return (
        f"{small['seconds_median']:.1f} s for the median family of the zoo and {small['seconds_max']:.1f} s for the "
        f"costliest, whose steps take milliseconds; {large['forecast_seconds']:.0f} s, or {large['steps']:.0f} steps, "
        f"for a Transformer of {large['parameters'] / 1e6:.0f}M parameters on {large['threads']} threads."
    )


def cases_text(found: dict[str, Any]) -> str:
    scored = found["cases"]
    wrong = [r["case"] for r in scored["rows"] if not r["right"]]
    text = (
        "Sixteen trainings from public bug reports, through the command line as anybody would: right cause among the "
        f"first two of `check` or `diagnose` in {share(scored['failing_right'])} of the failing ones; silent on "
        f"{share(scored['healthy_and_fixed_silent'])} of the healthy ones and of those with the known fix."
    )
    return text + (f" Wrong: {', '.join(wrong)}." if wrong else "")


def text() -> str:
    """The page."""
    forecast, diagnosis, locate = results("forecast"), results("diagnosis"), results("locate")
    environment = diagnosis["environment"]
    total, zoo = locate["total"], families()
    filled = {
        "families": str(len(zoo)),
        "failing": str(sum(not f.healthy for f in zoo)),
        "healthy": str(sum(f.healthy for f in zoo)),
        "seeds": ", ".join(map(str, diagnosis["seeds"])),
        "measured_on": f"Measured {environment['date']} on torch {environment['torch']}, {environment['hardware']}.",
        "forecast_table": forecast_table(forecast),
        "cost": cost(forecast),
        "diagnosis_table": diagnosis_table(diagnosis),
        "alarms_table": alarms_table(diagnosis),
        "locate": (
            f"{total['trainings']} trainings with one planted producer each: module, operation and line all right in "
            f"{total['all_three']}. The cases and the locator are by the same hands: no blind test. Numbers in "
            "`benchmarks/results/locate.json`."
        ),
        "cases": cases_text(diagnosis),
        "wrong": wrong_text(forecast, diagnosis),
    }
    page = (ROOT / "benchmarks" / "page.md").read_text()
    for name, value in filled.items():
        page = page.replace(f"{{{{{name}}}}}", value)
    return page


def wrong_text(forecast: dict[str, Any], diagnosis: dict[str, Any]) -> str:
    """The weakest causes, and what was told of runs that train."""
    weak = sorted(diagnosis["f1_by_cause"].items(), key=lambda pair: pair[1])[:5]
    lines = [
        "- Weakest causes (F1): " + ", ".join(f"`{name}` {value:.2f}" for name, value in weak) + ".",
        f"- Runs that train and are told causes: {len(diagnosis['told_on_good'])}; that train and are flagged by the "
        f"forecast: {len(forecast['false_alarms'])}. Each is listed in the results.",
        "- Growth inside a fused LSTM or GRU is one operation: its time steps are not seen.",
        "- Compiled models show no layers; what is left are the loss, the gradients and the steps.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    (Path(__file__).parent / "diagnosis.md").write_text(text())
