"""What clipping and watching cost, beside what others take: one table of ratios, and of the goals they are to meet.

    OMP_NUM_THREADS=1 python benchmarks/speed.py                      every job that was not measured here yet
    OMP_NUM_THREADS=1 python benchmarks/speed.py --only clip wandb/25M [--fresh]
    OMP_NUM_THREADS=1 python benchmarks/speed.py --quick              a twentieth of the rounds, to see that it works
    python benchmarks/speed.py --table                                what there is; nothing is measured

Jobs run one after the other, each in a process of its own, on one thread; all candidates of a job are interleaved in
that process. Peers come with ``pip install 'steadygrad[bench]'``; where one is not installed its rows stay as they are.

Saves ``benchmarks/results/speed.json``; less is better in every row. Keys:

    rows      what is promised: name, value, goal, unit, hardware; low and high of a median's 95 % interval, rounds,
              cadence, job, torch, date, commit, seconds of the whole job, and quick if it is no more than a first look
    beside    the same without a goal: peers, and what a ratio consists of
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from benchmarks.common import environment
from benchmarks.speed_clip import clip_rows
from benchmarks.speed_equal import equality_rows
from benchmarks.speed_monitor import monitor_rows, tier_rows
from benchmarks.speed_peers import CLIPS, WATCHERS, clip_peer_rows, watcher_rows
from benchmarks.speed_rows import FULL, QUICK, Effort, Missing, Row
from benchmarks.speed_run import (
    CHAR_RNN,
    LEARNING_RATE,
    TRANSFORMER,
    char_rnn,
    clipped_transformer,
    million_rows,
    process_rows,
    step_rows,
    transformer,
)
from benchmarks.speed_state import snapshot_rows
from benchmarks.speed_store import keep, measured, save_table, table
from benchmarks.speed_table import show

SIZES = ("1M", "25M", "117M")
Job = Callable[[Effort], list[Row]]
JOBS: dict[str, Job] = {
    **{f"clip/{size}": partial(clip_rows, size) for size in SIZES},
    "equality": equality_rows,
    **{f"monitor/{size}": partial(monitor_rows, size) for size in SIZES},
    **{f"tiers/{size}": partial(tier_rows, size) for size in SIZES[:2]},
    **{f"{peer}/{size}": partial(watcher_rows, peer, size) for peer in WATCHERS for size in SIZES},
    **{f"{peer}/{size}": partial(clip_peer_rows, peer, size) for peer in CLIPS for size in SIZES},
    **{f"snapshots/{size}": partial(snapshot_rows, size) for size in SIZES[1:]},
    "million": million_rows,
    "steps/char-RNN": partial(step_rows, "char-RNN", char_rnn, 500),
    "steps/Transformer": partial(step_rows, "25M Transformer", transformer, 60),
    "steps/clipped Transformer": partial(step_rows, "25M Transformer that clips", clipped_transformer, 60),
    "run/char-RNN": partial(process_rows, "char-RNN", CHAR_RNN, [f"--lr={LEARNING_RATE}"], 2500, 0.02),
    "run/Transformer": partial(process_rows, "25M Transformer", TRANSFORMER, [], 200, 0.01),
}

BESIDE = (
    "tiers",
    "tensorboard",
    "anomaly",
    "lightning",
    "accelerate",
    "steps",
)  # no promise is made of these


def not_measured(rows: Sequence[Row]) -> list[str]:
    """Jobs with a promise that have no row yet."""
    known = {r["job"] for r in rows}
    return [job for job in JOBS if job.split("/")[0] not in BESIDE and job not in known]


def chosen(only: Sequence[str]) -> list[str]:
    """The jobs of these names; the part before the slash stands for all sizes."""
    unknown = [name for name in only if not any(name in (job, job.split("/")[0]) for job in JOBS)]
    if unknown:
        raise SystemExit(f"no job is called {', '.join(unknown)}; there are {', '.join(JOBS)}")
    return [job for job in JOBS if not only or job in only or job.split("/")[0] in only]


def measure(job: str, effort: Effort) -> list[Row]:
    """The rows of a job, in this process."""
    torch.set_num_threads(1)
    begun = time.perf_counter()
    rows = JOBS[job](effort)
    here = environment()
    more = {
        "hardware": here["hardware"] + ", 1 thread",
        **{key: here[key] for key in ("torch", "date", "commit")},
        "seconds": round(time.perf_counter() - begun),
        "quick": effort != FULL,
    }
    return [{**row, "job": job, **more} for row in rows]


def measure_all(jobs: Sequence[str], effort: Effort) -> list[str]:
    """Measure and keep one job after the other; the names of those that failed."""
    os.environ["OMP_NUM_THREADS"] = "1"  # read by the children
    failed = []
    for job in jobs:
        print(f"{job} ...", end=" ", file=sys.stderr, flush=True)
        try:
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                rows = pool.submit(measure, job, effort).result()
        except Missing as peer:
            print(f"left out: {peer}", file=sys.stderr, flush=True)
        except Exception:  # noqa: BLE001 - the other jobs have nothing to do with it
            traceback.print_exc()
            failed.append(job)
        else:
            keep(rows)
            print(f"{rows[0]['seconds']} s", file=sys.stderr, flush=True)
    return failed


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", default=[], metavar="JOB", help=", ".join(JOBS))
    parser.add_argument("--quick", action="store_true", help="a twentieth of the rounds")
    parser.add_argument("--fresh", action="store_true", help="measure again what was measured here")
    parser.add_argument("--table", action="store_true", help="measure nothing")
    args = parser.parse_args()
    jobs = chosen(args.only)
    if args.table:
        show([r for r in table() if r["job"] in jobs])
        return 0
    known = measured()
    missing = [
        job for job in jobs if args.fresh or job not in known or (known[job][0]["quick"] and not args.quick)
    ]
    failed = measure_all(missing, QUICK if args.quick else FULL)
    show([r for r in save_table(JOBS) if r["job"] in jobs])
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    raise SystemExit(main())
