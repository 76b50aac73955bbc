"""One summary of a run that several processes wrote, read back from its directory."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import median

from steadygrad.records import RunSummary
from steadygrad.trace.reader import Run
from steadygrad.trace.rundir import trace_files


def _disagreements(run: Run) -> list[str]:
    """Which ranks have not decided as the first one has; of ranks that train together there are none."""
    decided: dict[int, list[tuple[int, int, object]]] = {rank: [] for rank in run.ranks}
    for event in run.events("action"):
        decided[event.rank].append((event.step, event.optimizer, event.payload.get("action")))
    first = run.ranks[0]
    return [
        f"rank {rank} did not decide as rank {first} did: {len(decided[rank])} actions, {len(decided[first])} there"
        for rank in run.ranks[1:]
        if decided[rank] != decided[first]
    ]


def summarize(run_dir: Path, seconds: float) -> RunSummary | None:
    """What the processes of a run came to together; None if none of them took a step.

    Losses are those of the lowest rank. A process that was killed counts with what it had written.

    Args:
        run_dir: the directory they shared.
        seconds: how long it took, as the launcher saw it.
    """
    if not trace_files(run_dir):
        return None
    run = Run(run_dir)
    optimizers = run.optimizers()
    taken = [
        steps for o in optimizers for r in run.ranks if len(steps := run.scalar("applied", o, rank=r)[0])
    ]
    if not taken:
        return None
    losses = [float(x) for x in run.scalar("loss", optimizers[0])[1]]
    known = [loss for loss in losses if not math.isnan(loss)]
    actions = run.actions()
    notes = list(run.notes) + [str(note) for note in run.meta.get("notes") or ()] + _disagreements(run)
    return RunSummary(
        run_dir=str(run_dir),
        steps=max(int(steps[-1]) + 1 for steps in taken),
        seconds=seconds,
        loss_first=losses[0] if losses else None,
        loss_last=median(losses[-20:]) if losses else None,
        loss_best=min(known) if known else None,
        skipped=sum(int((run.scalar("applied", o)[1] == 0).sum()) for o in optimizers),
        amp_skips=int(run.meta.get("amp_skips") or 0),
        stopped_by_guard=any(action.action == "stop" for action in actions),
        findings=tuple(run.findings()),
        actions=tuple(actions),
        causes=tuple(run.causes()),
        notes=tuple(dict.fromkeys(notes)),
    )
