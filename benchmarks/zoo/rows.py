"""How a family and its twin ended, as rows of the table. Worker processes cannot import ``__main__``, so it is here."""

from __future__ import annotations

import dataclasses
import math
import time
from typing import Any, NamedTuple

import torch

from benchmarks.zoo.family import families
from benchmarks.zoo.training import outcome


class Task(NamedTuple):
    """One family at one seed; ``twin`` if its twin is run as well."""

    name: str
    seed: int
    twin: bool


def run(task: Task) -> list[dict[str, Any]]:
    """A row for the training as planted and one for its twin."""
    torch.set_num_threads(1)
    (family,) = (f for f in families() if f.name == task.name)
    rows = []
    for fixed in (False, True) if task.twin else (False,):
        start = time.perf_counter()
        training = family.build(task.seed, fixed)
        end = outcome(training)
        rows.append(
            {
                "family": family.name,
                "causes": list(family.causes),
                "blind": family.blind,
                "visible": family.visible,
                "seed": task.seed,
                "fixed": fixed,
                **{k: _number(v) for k, v in dataclasses.asdict(end).items()},
                "target": training.target,
                "at": training.at,
                "where": training.where,
                "facts": training.facts,
                "seconds": round(time.perf_counter() - start, 2),
            }
        )
    return rows


def _number(value: Any) -> Any:
    """JSON has no NaN and no infinity: their names instead."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
