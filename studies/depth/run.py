"""How deep can it be? Gradient norm of the first layer over the last, and whether it trains, for each initialisation.

python -m studies.depth.run             # about an hour on two cores; writes results.json and docs/img/depth.png
python -m studies.depth.run --missing   # go on where a run was stopped, or with a net or initialisation that is new
python -m studies.depth.run --table     # table and figure again, from results.json
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from studies.common import batches, digits, in_processes, save
from studies.depth.nets import ROWS, Row
from studies.depth.show import draw, table

HERE = Path(__file__).parent
IMAGES = HERE.parents[1] / "docs" / "img"
SECONDS = 60.0  # of one core, in training
BATCH = 64
TRAINED = 0.9  # share of the test digits
HOPELESS, FEW = 0.15, 20  # of the test digits after a quarter of the time and some steps: it is given up


class Job(NamedTuple):
    net: str
    depth: int
    init: str
    seed: int = 0


def run(job: Job) -> dict[str, Any]:
    """One cell: build, initialise, measure, train."""
    row = ROWS[job.net]
    data = digits()
    torch.manual_seed(job.seed)
    model = row.build(job.depth)
    example = row.feed(data.x[:BATCH], job.depth)
    init = row.inits[job.init]
    try:
        if init is not None:
            init(model, example)
    except ValueError as error:
        return {"end": "not initialised", "why": str(error)}
    first, last = row.norms(model, example, data.y[:BATCH])
    return {"first": first, "last": last, **train(row, model, job)}


def train(row: Row, model: nn.Module, job: Job) -> dict[str, Any]:
    """AdamW without clipping, until it knows the digits, blows up, or the time is over."""
    data = digits()
    optimizer = torch.optim.AdamW(model.parameters(), lr=row.lr(job.depth), fused=True)
    best, steps, started = 0.0, 0, time.process_time()
    looked = started  # when the test digits were last asked
    for index in batches(len(data.y), BATCH, job.seed):
        loss = F.cross_entropy(model(row.feed(data.x[index], job.depth)), data.y[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        steps += 1
        now = time.process_time()
        end = (
            "non-finite"
            if not math.isfinite(loss.item())
            else "out of time"
            if now - started > SECONDS
            else ""
        )
        if end or now - looked > max(0.4, 0.05 * (now - started)):
            looked = now
            best = max(best, accuracy(row, model, job.depth))
            hopeless = best < HOPELESS and now - started > SECONDS / 4 and steps >= FEW
            end = end or ("trained" if best >= TRAINED else "given up" if hopeless else "")
        if end:
            return {
                "end": "trained" if best >= TRAINED else end,
                "accuracy": best,
                "steps": steps,
                "seconds": round(time.process_time() - started, 1),
            }
    raise AssertionError("batches never end")


@torch.no_grad()
def accuracy(row: Row, model: nn.Module, depth: int) -> float:
    """Share of the test digits that are told right."""
    data = digits()
    model.eval()
    told = model(row.feed(data.x_test, depth)).argmax(1)
    model.train()
    return (told == data.y_test).float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--table", action="store_true", help="only the table and the figure, from results.json"
    )
    parser.add_argument("--missing", action="store_true", help="run only what results.json does not have")
    parser.add_argument("--processes", type=int, help="default: one a core")
    arguments = parser.parse_args()
    path = HERE / "results.json"
    saved = json.loads(path.read_text())["cells"] if path.exists() else []
    wanted = [Job(net, d, init) for net, row in ROWS.items() for d in row.depths for init in row.inits]
    keep = arguments.missing or arguments.table
    cells = {job: c for c in saved if keep and (job := Job(c["net"], c["depth"], c["init"])) in wanted}
    jobs = [] if arguments.table else [job for job in wanted if job not in cells]
    for job, result in in_processes(run, jobs, arguments.processes):
        cells[job] = {**job._asdict(), **result}
        found = [cells[j] for j in wanted if j in cells]
        save(HERE, {"seconds": SECONDS, "batch": BATCH, "trained": TRAINED, "cells": found})
    draw(list(cells.values()), IMAGES / "depth.png")
    print(table(list(cells.values())))


if __name__ == "__main__":
    main()
