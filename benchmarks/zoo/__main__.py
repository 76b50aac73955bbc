"""Run every family and its twin, print how each ended, save ``benchmarks/results/zoo.json``.

python -m benchmarks.zoo [--seeds 0 1 2] [--only NAME ...] [--jobs 1]
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
from collections.abc import Iterable, Iterator
from typing import Any

from benchmarks.common import save
from benchmarks.zoo import Family, families
from benchmarks.zoo.rows import Task, run


def results(tasks: list[Task], jobs: int) -> Iterator[list[dict[str, Any]]]:
    """The rows of each task in order, from ``jobs`` processes with one thread each."""
    if jobs == 1:
        yield from map(run, tasks)
        return
    os.environ["OMP_NUM_THREADS"] = "1"  # read by the children
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap(run, tasks)


def line(rows: list[dict[str, Any]]) -> str:
    def end(row: dict[str, Any]) -> str:
        score = float(row["score"])
        return f"{row['kind']} {score:.3g}"

    first = rows[0]
    cause = first["causes"][0] if first["causes"] else "healthy"
    twin = end(rows[1]) if len(rows) > 1 else "-"
    seconds = sum(row["seconds"] for row in rows)
    return (
        f"{first['family']:32} {cause:22} {first['seed']:4}  {end(first):20} {twin:20} "
        f"target {first['target']:<8.3g} {seconds:5.1f} s{' blind' if first['blind'] else ''}"
    )


def summary(rows: Iterable[dict[str, Any]]) -> dict[str, int]:
    """How many runs ended as they should."""
    rows = list(rows)
    faulty = [r for r in rows if r["causes"] and not r["fixed"]]
    twins = [r for r in rows if r["fixed"]]
    healthy = [r for r in rows if not r["causes"]]
    return {
        "families": len({r["family"] for r in rows}),
        "faulty": len(faulty),
        "faulty_failed": sum(r["kind"] != "trained" for r in faulty),
        "twins": len(twins),
        "twins_trained": sum(r["kind"] == "trained" for r in twins),
        "healthy": len(healthy),
        "healthy_trained": sum(r["kind"] == "trained" for r in healthy),
    }


def chosen(names: list[str]) -> list[Family]:
    """The families of these names, or all."""
    known = families()
    unknown = sorted(set(names) - {f.name for f in known})
    if unknown:
        raise SystemExit(
            f"no family is called {', '.join(unknown)}; there are {', '.join(f.name for f in known)}"
        )
    return [f for f in known if not names or f.name in names]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.zoo", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="run these; nothing is saved")
    parser.add_argument("--jobs", type=int, default=1, help="processes, one thread each")
    args = parser.parse_args()
    tasks = [Task(f.name, seed, f.twin) for f in chosen(args.only) for seed in args.seeds]
    rows: list[dict[str, Any]] = []
    for new in results(tasks, args.jobs):
        rows += new
        print(line(new), flush=True)
    print(summary(rows))
    if not args.only:
        save("zoo", {"seeds": args.seeds, "summary": summary(rows), "rows": rows})


if __name__ == "__main__":
    main()
