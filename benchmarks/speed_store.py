"""Rows of the table of speed on disk: an interrupted benchmark goes on where it was.

A job is measured in one go and has several rows. ``benchmarks/.cache/speed.jsonl`` holds a line for each job measured
here; ``benchmarks/results/speed.json`` the table. A job that was not measured here, or only quickly, keeps the rows
that it has in the table.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, ROOT, save
from benchmarks.speed_rows import Row

CACHE = ROOT / "benchmarks" / ".cache" / "speed.jsonl"
NAME = "speed"


def keep(rows: Iterable[Row]) -> None:
    """Append the rows of one job, whole or not at all."""
    CACHE.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(list(rows), allow_nan=False) + "\n"
    with CACHE.open("a", encoding="utf-8") as file:
        if file.tell() and not CACHE.read_bytes().endswith(b"\n"):
            file.write("\n")  # an interrupt has left a line half-written
        file.write(line)


def measured() -> dict[str, list[Row]]:
    """The rows of each job that was measured here: the last ones, but quick ones only where there are no others."""
    found: dict[str, list[Row]] = {}
    if CACHE.exists():
        for line in CACHE.read_text(encoding="utf-8").splitlines():
            try:
                rows = json.loads(line)
            except json.JSONDecodeError:
                continue  # cut short
            found[rows[0]["job"]] = better(rows, found.get(rows[0]["job"], []))
    return found


def better(new: list[Row], old: list[Row]) -> list[Row]:
    """The new rows, unless they were made quickly and the old ones were not."""
    return old if old and new[0]["quick"] and not old[0]["quick"] else new


def table() -> list[Row]:
    """The rows of the saved table."""
    path: Path = RESULTS / f"{NAME}.json"
    if not path.exists():
        return []
    saved: dict[str, Any] = json.loads(path.read_text())
    return [*saved["rows"], *saved["beside"]]


def save_table(jobs: Iterable[str]) -> list[Row]:
    """Write the table anew, in the order of these jobs. Rows of jobs that are no more are dropped."""
    old: dict[str, list[Row]] = {}
    for row in table():
        old.setdefault(row["job"], []).append(row)
    new = measured()
    rows = []
    for job in jobs:
        mine, before = new.get(job, []), old.get(job, [])
        rows += better(mine, before) if mine else before
    promised = [r for r in rows if r["goal"] is not None]
    beside = [r for r in rows if r["goal"] is None]
    save(NAME, {"rows": promised, "beside": beside})
    return promised + beside
