"""The guard of a session, and the one who tries remedies on its run."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from steadygrad import __version__
from steadygrad.guard.durable import DurableWriter
from steadygrad.guard.guard import Guard
from steadygrad.guard.policy import Policy
from steadygrad.guard.shards import rank_folder
from steadygrad.guard.state import TrainingState
from steadygrad.integrations.in_force import InForce
from steadygrad.integrations.live_repair import LiveRepair
from steadygrad.integrations.options import Options
from steadygrad.integrations.ranks.group import group_of
from steadygrad.integrations.run_record import RunRecord
from steadygrad.probe.probe import Probe
from steadygrad.repair.live import trial_length
from steadygrad.rules.engine import RuleSet

if TYPE_CHECKING:
    from steadygrad.integrations.ranks.together import Together


def new_guard(
    state: TrainingState, probe: Probe, rules: RuleSet, record: RunRecord, together: Together | None
) -> Guard:
    """A guard of this state, with snapshots in the run directory: of several ranks each has a folder of its own."""
    folder = record.run_dir / "snapshots"
    if together is not None:
        folder = rank_folder(folder, together.group.rank)
    guard = Guard(
        state,
        Policy(),
        find_poison=probe.nonfinite_state,
        remember=rules.state_dict if together is None else together.remember,
        recall=rules.load_state_dict if together is None else together.recall,
        durable=DurableWriter(folder, on_failure=record.cannot_write, max_share=0.01),
        ranks=together is not None,
    )
    if together is not None:
        together.guard = guard
    return guard


def new_together(
    process_group: Any, options: Options, probe: Probe, rules: RuleSet, record: RunRecord
) -> Together | None:
    """Who decides with the other ranks of this training; None where there are none."""
    group = group_of(process_group)
    if group is None:
        return None
    from steadygrad.integrations.ranks.together import Together  # a process alone has no need of it

    plan = None if options.prescription is None else str(options.prescription["plan"])
    settings = {
        "steadygrad": __version__,
        "guard": options.guard,
        "tier": options.tier,
        "repair": options.repair,
        "the prescription": plan,
    }
    return Together(group, settings, probe, rules, record.action)


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
    if guard.common is not None:
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
