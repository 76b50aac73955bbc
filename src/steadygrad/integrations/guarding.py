"""The guard of a session, and the one who tries remedies on its run."""

from __future__ import annotations

from collections.abc import Callable

import torch

from steadygrad.guard.durable import DurableWriter
from steadygrad.guard.guard import Guard
from steadygrad.guard.policy import Policy
from steadygrad.guard.state import TrainingState
from steadygrad.integrations.in_force import InForce
from steadygrad.integrations.live_repair import LiveRepair
from steadygrad.integrations.run_record import RunRecord
from steadygrad.probe.probe import Probe
from steadygrad.repair.live import trial_length
from steadygrad.rules.engine import RuleSet


def new_guard(state: TrainingState, probe: Probe, rules: RuleSet, record: RunRecord) -> Guard:
    """A guard of this state, with snapshots in the run directory where one process can answer for the whole run."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    policy = Policy(distributed=distributed and torch.distributed.get_world_size() > 1)
    folder = record.run_dir / "snapshots"
    return Guard(
        state,
        policy,
        find_poison=probe.nonfinite_state,
        remember=rules.state_dict,
        recall=rules.load_state_dict,
        durable=None
        if policy.distributed
        else DurableWriter(folder, on_failure=record.cannot_write, max_share=0.01),
    )


def new_live_repair(
    guard: Guard, in_force: InForce, rules: RuleSet, record: RunRecord, replayed: Callable[[int], int] | None
) -> LiveRepair:
    """Who tries remedies on a live run.

    Args:
        guard: of the run.
        in_force: where remedies are put.
        rules: whose memory goes back with the run.
        record: is told.
        replayed: steps of a trial, from the steps that the guard went back, where batches are given again; None:
            trials take the batches to come.
    """
    if guard.policy.distributed:
        record.note("no remedies are tried on this run: its ranks would have to agree on each of them")
    return LiveRepair(
        guard,
        in_force,
        rules,
        note=record.note,
        act=record.action,
        length=replayed or trial_length,
        paired=replayed is not None,
    )
