"""The whole state of a watched run, for the checkpoints of its loop, and back."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from steadygrad import __version__
from steadygrad.guard.guard import Guard
from steadygrad.guard.plain_rng import plain_rng_state, set_plain_rng_state
from steadygrad.guard.resuming import guard_to_dict, resume_guard
from steadygrad.guard.ring import SMALL
from steadygrad.integrations.resumed import Resumed

if TYPE_CHECKING:
    from steadygrad.integrations.session import Session

FORMAT = 1


def take_state(session: Session, data: Any = None, snapshots: bool | None = None) -> dict[str, Any]:
    """See :meth:`steadygrad.Watcher.state_dict`."""
    if data is not None and not callable(getattr(data, "state_dict", None)):
        raise TypeError(
            f"data needs state_dict() and load_state_dict(), and a {type(data).__name__} has none"
        )
    if session._summary is not None:
        raise ValueError("the run is over: take its state before it is closed")
    session.settle(trials=True)
    live, guard = session.live, session._guard
    return {
        "format": FORMAT,
        "steadygrad": __version__,
        "origin": {"run_dir": str(session.run_dir), "step": session._steps},
        "optimizers": [type(o).__name__ for o in session._joinpoints.optimizers()],
        "probe": session._probe.state_dict(),
        "rules": _plain(session._rules.state_dict()),
        "guard": _plain(guard_to_dict(guard, snapshots=_few(guard, snapshots)))
        if guard is not None
        else None,
        "put_back": session._put_back,
        "repair": _plain(live.state_dict()) if live is not None else None,
        "reasons": _plain(session._reasons.state_dict()),
        "record": _plain(session.record.state_dict()),
        "rng": plain_rng_state(),
        "data": data.state_dict() if data is not None else None,
    }


def _few(guard: Guard, asked: bool | None) -> bool:
    """Whether the guard's own snapshots go into a checkpoint: where they are small, if nobody says."""
    return asked if asked is not None else guard.ring.memory_bytes <= SMALL and guard.common is None


def put_state(
    session: Session,
    state: Mapping[str, Any],
    data: Any = None,
    rng: bool = True,
    place: str | None = None,
) -> tuple[str, ...]:
    """See :meth:`steadygrad.Watcher.load_state_dict`.

    ``place``: of a trainer that knows its data: why it does not go on with the sample that was next, in a sentence,
    "" if it does. None: nobody knows.
    """
    _check(session, state, data)
    optimizers = session._joinpoints.optimizers()
    session._meet_optimizers()
    session._rules.load_state_dict(state["rules"])
    session._probe.load_state_dict(state["probe"])
    session._reasons.load_state_dict(state["reasons"])
    session.record.load_state_dict(state["record"], state["origin"])
    session._steps, session._put_back = state["origin"]["step"], state["put_back"]
    guard, kept = session._guard, state["guard"]
    if guard is not None and kept is not None:
        resume_guard(guard, kept)
    if state["repair"] is not None:
        session.resume_repair(state["repair"])
    session.resumed = Resumed(kept, optimizers)
    if data is not None and state["data"] is not None:
        data.load_state_dict(state["data"])
    if rng:
        set_plain_rng_state(state["rng"])
    if place is None:
        place = _place(state, data)
    short = ((place,) if place else ()) + _what_is_missing(session, state)
    for text in short:
        session.record.note(text)
    return short


def _check(session: Session, state: Any, data: Any) -> None:
    """Before anything is changed."""
    if not isinstance(state, Mapping) or "format" not in state or "probe" not in state:
        raise ValueError("this is no state of a watcher: give it what its state_dict() gave")
    if state["format"] != FORMAT:
        raise ValueError(
            f"this state was saved by steadygrad {state.get('steadygrad')} in format {state['format']}, and "
            f"steadygrad {__version__} reads format {FORMAT}: resume with the version that saved it"
        )
    if session.record.steps:
        raise ValueError(
            f"the state must be loaded before the first step, and {session.record.steps} are over: "
            f"watch anew, then load it"
        )
    optimizers = session._joinpoints.optimizers()
    names = [type(o).__name__ for o in optimizers]
    if names != state["optimizers"]:
        raise ValueError(
            f"the state is of {', '.join(state['optimizers']) or 'no optimizer'}, "
            f"and this run watches {', '.join(names)}: watch the same optimizers in the same order"
        )
    for optimizer, name, kept in zip(optimizers, names, state["probe"], strict=False):
        n = sum(len(group["params"]) for group in optimizer.param_groups)
        if n != len(kept["params"]):
            raise ValueError(
                f"the state is of {len(kept['params'])} parameters of {name}, and this run has {n}"
            )
    if (
        data is not None
        and state["data"] is not None
        and not callable(getattr(data, "load_state_dict", None))
    ):
        raise TypeError(f"data needs load_state_dict(), and a {type(data).__name__} has none")


def _place(state: Mapping[str, Any], data: Any) -> str:
    """Why the position in the data is not that of the checkpoint; "" if it is."""
    if data is not None and state["data"] is not None:
        return ""
    return (
        f"the position in the data was not restored: the run is bit-equal to one that was not interrupted only if the "
        f"loop itself goes on with the batch of step {state['origin']['step']:,}"
    )


def _what_is_missing(session: Session, state: Mapping[str, Any]) -> tuple[str, ...]:
    """What else keeps the resumed run from being bit-equal to one that was not interrupted, in sentences."""
    found = []
    step = state["origin"]["step"]
    kept = state["guard"]
    if session._guard is not None and kept is None:
        found.append("the run was not guarded when it was saved: the guard begins anew")
    if session._guard is not None and kept is not None and kept["snapshots"] is None:
        found.append(
            f"the states before step {step:,} were not in the checkpoint: the guard can go back to this one at most"
        )
    if state["repair"] is not None and state["repair"]["in_force"]:
        names = ", ".join(remedy["name"] for remedy in state["repair"]["in_force"])
        found.append(f"{names}: in force again; what the remedy itself had learned begins anew")
    return tuple(found)


def _plain(value: Any) -> Any:
    """The same of what ``torch.load`` takes with ``weights_only``."""
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, deque)):
        return [_plain(v) for v in value]
    if isinstance(value, tuple):
        return tuple(_plain(v) for v in value)
    if isinstance(value, str):
        return str(value)  # torch's version is of a class of its own
    if isinstance(value, np.generic):
        return value.item()
    return value.copy() if isinstance(value, np.ndarray) else value
