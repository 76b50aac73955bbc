"""A run that owns its step: after an incident the last batches are replayed from a snapshot, remedy by remedy."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any, TypeVar

from steadygrad.guard.rng import rng_state, set_rng_state
from steadygrad.integrations.live_repair import LiveRepair
from steadygrad.integrations.session import Session
from steadygrad.repair.live import PAST, SHORTEST

T = TypeVar("T")
KEPT = 64  # batches
PATIENCE = 20  # calls for each step of a trial, after which a function that takes no step is given up


@dataclass(frozen=True)
class _Kept:
    tick: int  # of the guard when the batch came
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class InStep:
    """Calls the user's step function, keeps its last batches, and replays them where a repair is due.

    Args:
        session: of the run.
        kept: how many batches are held.
    """

    def __init__(self, session: Session, kept: int = KEPT) -> None:
        self._session = session
        self._batches: deque[_Kept] = deque(maxlen=kept)
        session.replay(lambda back: max(min(back, kept) + PAST, SHORTEST))

    def __call__(self, fn: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any]) -> T:
        self._batches.append(_Kept(self._session.tick, args, kwargs))
        value = fn(*args, **kwargs)
        live = self._session.live
        if live is not None and live.running:
            value = self._repair(live, fn, value)
        return value

    def _repair(self, live: LiveRepair, fn: Callable[..., T], value: T) -> T:
        """Replay until the trials are over. What ``fn`` raises ends them, undone, and goes on to the user."""
        since = [b for b in self._batches if b.tick >= live.back_to] or list(self._batches)
        values: dict[int, Any] = {}
        generators = rng_state()
        try:
            while live.running:
                trial = live.trial
                set_rng_state(generators)  # the same dropout in each of them
                values[trial] = self._replay(live, fn, since)
        except BaseException:
            live.abandon()
            raise
        finally:
            set_rng_state(generators)
        return value if live.winner is None else values[live.winner]

    def _replay(self, live: LiveRepair, fn: Callable[..., T], batches: list[_Kept]) -> T | None:
        """One trial: all batches since the snapshot, and on with the first of them again, past the one that failed.

        Returns:
            What ``fn`` gave for the newest batch.
        """
        trial = live.trial
        newest: T | None = None
        for i, batch in enumerate(islice(cycle(batches), PATIENCE * live.steps)):
            out = fn(*batch.args, **batch.kwargs)
            if i < len(batches):
                newest = out
            if not live.running or live.trial != trial:
                return newest
        live.abandon()
        return newest
