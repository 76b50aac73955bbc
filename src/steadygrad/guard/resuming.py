"""What of a guard goes into a checkpoint, and back: a resumed run decides as the one that was not interrupted."""

from __future__ import annotations

from typing import Any

from steadygrad.guard.guard import Guard
from steadygrad.guard.ring import SnapshotRing, _Entry
from steadygrad.guard.saved import packed, unpacked
from steadygrad.guard.snapshot import Snapshot


def guard_to_dict(guard: Guard, *, snapshots: bool) -> dict[str, Any]:
    """The guard as plain data and, with ``snapshots``, tensors.

    Args:
        guard: between two steps.
        snapshots: the states that it may go back to as well; without them a resumed run can go back to the state that
            it was resumed from, and not further.
    """
    ring = guard.ring
    return {
        "tick": guard.tick,
        "steps": {str(i): n for i, n in guard._steps.items()},
        "policy": guard.policy.state_dict(),
        "schedules": guard.schedules.state_dict(guard.state.schedulers),
        "ring": {"first": ring._first, "last": ring._last, "now": ring._now, "tight": ring._tight_until},
        "snapshots": [_entry(guard, e) for e in ring._entries] if snapshots else None,
    }


def _entry(guard: Guard, entry: _Entry) -> dict[str, Any]:
    return {
        "healthy": entry.healthy,
        "initial": entry.initial,
        "suspect": entry.suspect,
        "memory": guard._memories.get(entry.step),
        "contents": packed(entry.snapshot.freeze()),
    }


def resume_guard(guard: Guard, state: dict[str, Any]) -> None:
    """Put it back.

    Args:
        guard: of the resumed run, new, made when model and optimizers had their state back.
        state: from :func:`guard_to_dict`.

    Raises:
        DamagedSnapshot: one of the snapshots makes no sense; nothing was changed.
    """
    entries: list[_Entry] = []
    memories: dict[int, Any] = {}
    for kept in state["snapshots"] or ():
        saved = unpacked(kept["contents"])
        snapshot = Snapshot()
        snapshot.hold(saved.step, saved.image, saved.places, saved.rng)
        entries.append(_Entry(snapshot, saved.step, kept["initial"], kept["healthy"], kept["suspect"]))
        if kept["memory"] is not None:
            memories[saved.step] = kept["memory"]
    guard.tick = state["tick"]
    guard._steps = {int(i): n for i, n in state["steps"].items()}
    guard.policy.load_state_dict(state["policy"])
    guard.schedules.load_state_dict(state["schedules"], guard.state.schedulers)
    _set_clock(guard.ring, state["ring"])
    if state["snapshots"] is not None:
        guard.ring._entries, guard._memories = entries, memories
        return
    guard.policy.forget_before(guard.tick)
    guard._memories = {guard.tick: guard.remember()}
    for entry in guard.ring._entries:  # the one of this very state
        entry.step = entry.snapshot.step = guard.tick
        entry.healthy = guard.ring.confirm


def _set_clock(ring: SnapshotRing, clock: dict[str, Any]) -> None:
    ring._first, ring._last = clock["first"], clock["last"]
    ring._now, ring._tight_until = clock["now"], clock["tight"]
