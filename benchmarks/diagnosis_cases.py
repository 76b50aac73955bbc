"""The real cases through the command line, untouched: `steadygrad check`, then `steadygrad run` and `diagnose`.

A failing case is right if its cause is among the first two that check or diagnose name; a healthy one and a ``--fixed``
one if check exits with 0 and diagnose names nothing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.common import find_cases
from benchmarks.scores import share

# By the number in the name; from each case's own meta: its category and the cause in the report it is from.
CAUSES: dict[str, tuple[str, ...]] = {
    "03": ("unscaled_inputs",),
    "08": ("unsafe_op",),
    "11": ("vanishing", "saturation"),
    "12": ("lr_too_large", "momentum_too_large"),
    "19": ("loss_reduction",),
    "25": ("unsafe_op", "bad_batch"),
    "27": ("unsafe_op", "bad_batch"),
    "33": ("unscaled_inputs", "unsafe_op"),
    "36": ("bootstrapped_target",),
    "37": ("unscaled_targets",),
    "43": ("residual_accumulation",),
    "46": ("unsafe_op",),
}
COMMAND = [sys.executable, "-m", "steadygrad"]


def run_cases(jobs: int) -> list[dict[str, Any]]:
    """A row per case and per ``--fixed`` case, in order."""
    cases = sorted(find_cases().glob("case_*.py"))
    tasks = [(case, fixed) for case in cases for fixed in ((False,) if _healthy(case) else (False, True))]
    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(lambda task: one(*task), tasks))


def one(case: Path, fixed: bool) -> dict[str, Any]:
    """One case: what check and diagnose say of it."""
    number = case.stem.split("_")[1]
    if not _healthy(case) and number not in CAUSES:
        raise SystemExit(
            f"the cause of {case.name} is not in the table CAUSES of {Path(__file__).name}: add it"
        )
    script = [str(case), *(["--fixed"] if fixed else [])]
    expected = () if fixed or _healthy(case) else CAUSES[number]
    with tempfile.TemporaryDirectory() as folder:
        checked, forecast = _call(
            ["check", "--json", f"{folder}/forecast.json", *script], folder, "forecast.json"
        )
        flags = ["--quiet", "--json", f"{folder}/run.json", "--runs", f"{folder}/runs"]
        ran, run = _call(["run", *flags, *script], folder, "run.json")
        diagnosis: dict[str, Any] = {}
        if run.get("run_dir"):
            _, diagnosis = _call(
                ["diagnose", "--json", f"{folder}/why.json", str(run["run_dir"])], folder, "why.json"
            )
    seen = [c["cause"] for c in forecast.get("causes", [])]
    told = [c["cause"] for c in diagnosis.get("causes", [])]
    silent = checked == 0 and bool(diagnosis) and not told
    return {
        "case": case.stem + (" --fixed" if fixed else ""),
        "expected": list(expected),
        "check_exit": checked,
        "confidence": forecast.get("confidence"),
        "check_causes": seen[:3],
        "run_exit": ran,
        "steps": run.get("steps"),
        "actions": len(run.get("actions", [])),
        "verdict": diagnosis.get("verdict"),
        "diagnose_causes": told[:3],
        "right": bool({*seen[:2], *told[:2]} & set(expected)) if expected else silent,
    }


def _call(arguments: list[str], folder: str, output: str) -> tuple[int, dict[str, Any]]:
    """Exit code and JSON of a command; no JSON is {}: the command says why in its exit code."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    code = subprocess.run([*COMMAND, *arguments], cwd=folder, capture_output=True, env=environment).returncode
    path = Path(folder) / output
    return code, json.loads(path.read_text()) if path.exists() else {}


def _healthy(case: Path) -> bool:
    return "healthy" in case.stem


def case_scores(rows: Iterable[dict[str, Any]]) -> dict[str, Any]:
    rows = list(rows)
    failing = [r for r in rows if r["expected"]]
    return {
        "failing_right": share(r["right"] for r in failing),
        "failing_flagged_by_check": share(r["check_exit"] == 1 for r in failing),
        "failing_told_by_diagnose": share(bool(r["diagnose_causes"]) for r in failing),
        "healthy_and_fixed_silent": share(r["right"] for r in rows if not r["expected"]),
        "rows": rows,
    }


def show_cases(scored: dict[str, Any]) -> None:
    print("\nreal cases")
    for r in scored["rows"]:
        said = f"check {r['check_exit']} {', '.join(r['check_causes'][:2]) or '-'}; "
        said += f"diagnose {', '.join(r['diagnose_causes'][:2]) or '-'}"
        expected = "/".join(r["expected"]) or "silent"
        print(f"  {'right' if r['right'] else 'WRONG'} {r['case']:52} {expected:32} {said}")
    for key in list(scored)[:-1]:
        print(f"  {key:28} {scored[key]}")
