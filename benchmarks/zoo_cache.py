"""Rows of the zoo from a pool of processes, kept on disk: an interrupted benchmark goes on where it was.

One file per kind of row in ``benchmarks/.cache/``, a JSON object per line. A row is known by its draw alone, whatever
commit made it: what depends on the code is made anew only with ``--fresh``. Each row names its commit, and the results
name all of them.
"""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, environment
from benchmarks.zoo import families
from benchmarks.zoo_runs import Draw

CACHE = ROOT / "benchmarks" / ".cache"
Row = dict[str, Any]


def draws(seeds: Iterable[int], only: Sequence[str] = (), blind: bool | None = None) -> list[Draw]:
    """Every family of the choice at every seed, with its twin."""
    known = families()
    unknown = sorted(set(only) - {f.name for f in known})
    if unknown:
        raise SystemExit(f"no family is called {', '.join(unknown)}; python -m benchmarks.zoo lists them")
    chosen = [f for f in known if (not only or f.name in only) and blind in (None, f.blind)]
    return [
        Draw(f.name, seed, fixed)
        for seed in seeds
        for f in chosen
        for fixed in ((False, True) if f.twin else (False,))
    ]


def rows(
    kind: str, make: Callable[[Draw], Row], wanted: Sequence[Draw], *, jobs: int, fresh: bool = False
) -> list[Row]:
    """The row of each draw, in order: from the file of this kind where it has one, else made now.

    Args:
        kind: name of the file.
        make: a function of a module that a process can import.
        jobs: processes, one thread each.
        fresh: make them all anew. Rows of other draws stay in the file.
    """
    path = CACHE / f"{kind}.jsonl"
    known = {} if fresh else _read(path)
    if fresh and path.exists():
        _write(path, [r for k, r in _read(path).items() if k not in set(wanted)])
    missing = [d for d in wanted if d not in known]
    if missing:
        CACHE.mkdir(parents=True, exist_ok=True)
        _mend(path)
        start, commit = time.monotonic(), environment()["commit"]
        with path.open("a", encoding="utf-8") as file:
            for n, row in enumerate(_made(make, missing, jobs), 1):
                row |= {"commit": commit}
                file.write(json.dumps(row, allow_nan=False) + "\n")
                file.flush()
                known[_draw(row)] = row
                _progress(kind, n, len(missing), time.monotonic() - start)
    return [known[d] for d in wanted]


def _made(make: Callable[[Draw], Row], missing: Sequence[Draw], jobs: int) -> Iterable[Row]:
    make = functools.partial(_named, make)
    if jobs == 1:
        yield from map(make, missing)
        return
    os.environ["OMP_NUM_THREADS"] = "1"  # read by the children
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap_unordered(make, missing)


def _named(make: Callable[[Draw], Row], draw: Draw) -> Row:
    """The row; an error says whose it is."""
    try:
        return make(draw)
    except Exception as error:
        raise RuntimeError(f"no row of {draw}: {type(error).__name__}: {error}") from error


def _progress(kind: str, done: int, of: int, seconds: float) -> None:
    if done % 20 == 0 or done == of:
        left = seconds / done * (of - done)
        print(
            f"{kind}: {done} of {of}, {seconds:.0f} s, about {left:.0f} s left", file=sys.stderr, flush=True
        )


def _read(path: Path) -> dict[Draw, Row]:
    if not path.exists():
        return {}
    whole = [
        line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")
    ]
    return {_draw(row): row for row in map(json.loads, whole)}


def _mend(path: Path) -> None:
    """Cut off a last line that an interrupt has left half-written."""
    if path.exists() and not path.read_bytes().endswith(b"\n"):
        _write(path, _read(path).values())


def _write(path: Path, kept: Iterable[Row]) -> None:
    part = path.with_suffix(".part")
    part.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
    os.replace(part, path)


def _draw(row: Row) -> Draw:
    return Draw(row["family"], row["seed"], row["fixed"])


def cached(kind: str) -> dict[Draw, Row]:
    """What the file of this kind holds."""
    return _read(CACHE / f"{kind}.jsonl")
