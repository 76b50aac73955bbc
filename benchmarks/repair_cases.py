"""Whole scripts through the command line, untouched: `steadygrad repair`, `steadygrad run --with`, and the patch.

The real cases, and two scripts on real text in ``benchmarks/repair_scripts``. All print their own verdict as JSON on
their last line (``--json``), have ``--seed`` and, if they fail, ``--fixed`` for the publicly known fix. The verdict is
asked for behind the scenes of repair: it trains to the loss alone.

A row: the plain run, the repair with the same seed, the run under its prescription, and the patched copy, in whose
folder ``import steadygrad`` fails.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, find_cases
from benchmarks.repair_zoo import cost
from benchmarks.scores import share
from benchmarks.zoo_runs import Draw, Row

CASES, TEXT = "repair_cases", "repair_text"
SCRIPTS = ROOT / "benchmarks" / "repair_scripts"
COMMAND = (sys.executable, "-m", "steadygrad")
NOTHING: Row = {
    **dict.fromkeys(("healthy", "cured"), False),
    **dict.fromkeys(("prescription", "patch", "twin", "fixed")),
    **dict.fromkeys(("causes", "remedies", "arms"), ()),
    **{"steps_total": 0, "patch_state": "none"},
}
"""What is taken for said if repair has written nothing."""
NOT_HERE = 'raise ImportError("this run is to go without steadygrad")\n'


def case_draws(seeds: Sequence[int]) -> list[Draw]:
    return _draws(find_cases().glob("case_*.py"), seeds)


def text_draws(seeds: Sequence[int]) -> list[Draw]:
    return _draws(SCRIPTS.glob("*.py"), seeds)


def _draws(scripts: Any, seeds: Sequence[int]) -> list[Draw]:
    """Every script at every seed, failing ones also with their fix."""
    names = sorted(path.stem for path in scripts)
    return [
        Draw(name, seed, fixed)
        for seed in seeds
        for name in names
        for fixed in ((False,) if "healthy" in name else (False, True))
    ]


def case_row(draw: Draw) -> Row:
    """One script at one seed."""
    script = SCRIPTS / f"{draw.family}.py"
    if not script.exists():
        script = find_cases() / script.name
    call = [script.name, "--json", "--seed", str(draw.seed), *(["--fixed"] if draw.fixed else [])]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copy(script, folder)
        start = time.perf_counter()
        plain = _verdict([sys.executable, *call], folder)
        run_seconds = time.perf_counter() - start
        start = time.perf_counter()
        done = _run([*COMMAND, "repair", "--json", "repair.json", *call], folder)
        seconds = time.perf_counter() - start
        path = folder / "repair.json"
        told = json.loads(path.read_text()) if path.exists() else None
        said = NOTHING | (told or {})
        repaired = patched = None
        if said["prescription"] is not None:
            repaired = _verdict([*COMMAND, "run", "--quiet", "--with", said["prescription"], *call], folder)
        if said["patch"] is not None:
            patched = _patched(folder, said["patch"], call)
    return {
        **draw._asdict(),
        "exit": done.returncode,
        "healthy": said["healthy"],
        "cured": said["cured"],
        "causes": [cause["cause"] for cause in said["causes"][:3]],
        "remedies": list(said["remedies"]),
        "twin": said["twin"],
        "with_remedies": said["fixed"],
        "plain": plain,
        "repaired": repaired,
        "patched": patched,
        "claims_patch": said["patch"] is not None,
        "patch_state": said["patch_state"],
        "extra_steps": said["steps_total"],
        "run_steps": max(run["steps"] for run in (plain, repaired or plain, *said["arms"])),
        "seconds": seconds,
        "run_seconds": run_seconds,
        "error": "" if told is not None else done.stderr[-500:],
    }


def _patched(folder: Path, patch: str, call: Sequence[str]) -> Row:
    """How the patched copy ends where there is no steadygrad; ``patch`` may be relative to the folder."""
    path = (folder / patch).resolve()
    copy = folder / "patched"
    copy.mkdir()
    shutil.copy(folder / call[0], copy)
    applied = _run(["git", "apply", str(path)], copy)
    if applied.returncode:
        return _no_verdict("not applied", applied.stderr)
    (copy / "steadygrad.py").write_text(NOT_HERE)
    return _verdict([sys.executable, *call], copy)


def _run(command: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GIT_CEILING_DIRECTORIES": str(folder.parent)}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)


def _verdict(command: Sequence[str], folder: Path) -> Row:
    """What a script says of its own end, as far as it is compared; "stopped" if it did not get there."""
    done = _run(command, folder)
    if done.returncode:
        return _no_verdict("stopped", done.stderr)
    said = json.loads(done.stdout.strip().splitlines()[-1])
    score = float(said["score"])
    return {
        "verdict": said["verdict"],
        "score": score if math.isfinite(score) else str(score),
        "steps": said["steps"],
        "error": "",
    }


def _no_verdict(verdict: str, error: str) -> Row:
    return {"verdict": verdict, "score": "nan", "steps": 0, "error": error[-500:]}


# ---------------------------------------------------------------------- scores
def _trained(end: Row | None) -> bool:
    return end is not None and end["verdict"] == "trained"


def case_scores(rows: Sequence[Row]) -> dict[str, Any]:
    """A failing one is cured if it trains under its prescription; what trains plainly is to be left alone."""
    failing = [r for r in rows if not r["fixed"] and not _healthy(r) and not _trained(r["plain"])]
    named = [r for r in rows if not r["fixed"] and _healthy(r)]
    mended = [r for r in rows if r["fixed"]]
    trains = [r for r in rows if not r["fixed"] and not _healthy(r) and _trained(r["plain"])]
    return {
        "cured": share(_trained(r["repaired"]) for r in failing),
        "healthy_left_alone": share(map(_left_alone, named)),
        "fixed_left_alone": share(map(_left_alone, mended)),
        "trains_plainly": share(_left_alone(r) or _trained(r["repaired"]) for r in trains),
        "cost": {"failing": cost(failing), "healthy": cost([*named, *mended])},
        "rows": list(rows),
    }


def _healthy(row: Row) -> bool:
    return "healthy" in row["family"]


def _left_alone(row: Row) -> bool:
    return bool(row["healthy"]) and row["exit"] == 0 and row["repaired"] is None


def patch_scores(rows: Sequence[Row]) -> dict[str, Any]:
    """Of the prescriptions: how many claim a patch, and of those how many train when the patched copy is run."""
    prescribed = [r for r in rows if r["repaired"] is not None]
    claimed = [r for r in prescribed if r["claims_patch"]]
    return {
        "claimed": share(r["claims_patch"] for r in prescribed),
        "trains": share(_trained(r["patched"]) for r in claimed),
        "same_score": share(r["patched"]["score"] == r["repaired"]["score"] for r in claimed),
        "failed": [
            f"{r['family']} {r['seed']}: {r['patched']['verdict']} {r['patched']['error']}".strip()
            for r in claimed
            if not _trained(r["patched"])
        ],
    }
