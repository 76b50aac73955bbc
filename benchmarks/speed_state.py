"""What a snapshot in memory costs: seconds per GB of the state, and how much memory it takes."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from torch import Tensor, nn
from torch.optim import Optimizer

from benchmarks.speed_clock import interleave, typical
from benchmarks.speed_models import WORKLOADS, training
from benchmarks.speed_rows import Effort, Row, row
from steadygrad.guard.ring import SnapshotRing
from steadygrad.guard.state import TrainingState

GOAL = 0.25  # seconds per GB


def snapshot_rows(size: str, effort: Effort) -> list[Row]:
    workload = WORKLOADS[size]
    run = training(workload)
    run.step()
    own = sum(t.nbytes for t in tensors(run.model, run.optimizer))
    state = TrainingState([run.model], [run.optimizer])
    ring, before = SnapshotRing(state), resident_bytes()
    cold = [taken(ring, tick) for tick in range(ring.capacity)]
    grown = resident_bytes() - before
    copies = len(ring.ticks)
    for tick in range(20):
        ring.healthy(tick)
    newest = ring.newest_good()
    assert newest is not None

    ring.pin(newest)
    ticks = iter(range(ring.capacity, 10**9))
    t = interleave(
        {
            "take": lambda: ring.take(next(ticks)),
            "restore": lambda: newest.restore(state, rng=True),
        },
        effort.of(20),
    )
    per_gb = {name: [s / own * 1e9 for s in seconds] for name, seconds in t.items()}
    cadence = f"a state of {own / 1e9:.3f} GB, weights and AdamW; {workload.says}"
    row_of = partial(row, unit="s per GB", cadence=cadence, goal=GOAL)
    return [
        row_of(f"{size}: snapshot in memory with its finite check", typical(per_gb["take"])),
        row_of(f"{size}: rollback from memory", typical(per_gb["restore"])),
        row_of(f"{size}: each of the first {len(cold)} snapshots", typical([s / own * 1e9 for s in cold])),
        row(
            f"{size}: memory of a kept snapshot",
            ring.memory_bytes / own / copies,
            goal=1.0,
            unit="copies of the state",
            cadence=f"{copies} kept; {cadence}",
        ),
        row(
            f"{size}: resident memory of a kept snapshot",
            grown / own / copies,
            unit="copies of the state",
            cadence=f"{copies} kept; {cadence}",
        ),
    ]


def tensors(model: nn.Module, optimizer: Optimizer) -> Iterator[Tensor]:
    """What one copy of the state is: parameters, buffers and the optimizer's moments."""
    yield from model.parameters()
    yield from model.buffers()
    for state in optimizer.state.values():
        yield from (value for value in state.values() if isinstance(value, Tensor))


def taken(ring: SnapshotRing, tick: int) -> float:
    """Seconds of this thread until the ring has taken a snapshot; a ring that asks for patience is given it."""
    seconds = 0.0
    while True:
        begun = time.thread_time()
        done = ring.take(tick)
        seconds += time.thread_time() - begun
        if done:
            return seconds
        time.sleep(0.05)


def resident_bytes() -> int:
    """Memory of this process that lies in RAM. Linux only."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
