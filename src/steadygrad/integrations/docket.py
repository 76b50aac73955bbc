"""Steps that wait to be judged together: an ordinary step of a small model is over before a rule could be asked."""

from __future__ import annotations

import weakref
from typing import NamedTuple

from torch.optim import Optimizer

from steadygrad.probe.ended import Ended, Unread
from steadygrad.records import StepStats
from steadygrad.rules.history import History, step_loss

MOST = 16  # steps that may wait
YOUNG = 20  # steps of an optimizer that are judged at once
LARGE = 1_000_000  # elements of a model from which on judging costs nothing beside its steps


class Waiting(NamedTuple):
    """A step that is over and not judged."""

    optimizer: weakref.ref[Optimizer]
    ended: Ended
    tick: int  # of the guard; 0 without one
    skipped: bool  # by the guard

    @property
    def stats(self) -> StepStats:
        return self.ended.stats


class Docket:
    """What waits, and what may.

    Judging in a row costs a third of judging between two passes of a model, whose work has driven our code out of the
    processor's caches. A step may wait if nothing about it could call for an answer: it was applied, its loss and its
    norm are no higher than any of the last fifty, and nobody has looked at its graph or its activations. So the run's
    own bounds (``History.largest_norm``) are the same whether the steps that wait are in them or not, and the guard
    decides alike.

    Where the model lies on a device, the last of them may also wait for its own numbers, which are on their way while
    the host goes on: until the next step of any optimizer begins. One that the device has decided on is known only
    then.
    """

    def __init__(self) -> None:
        self._waiting: list[Waiting] = []
        self._bounds: dict[
            int, tuple[float, float]
        ] = {}  # optimizer -> highest loss and norm of a step that waits

    def add(self, optimizer: Optimizer, ended: Ended, tick: int, skipped: bool) -> None:
        """One more step is over."""
        self._waiting.append(Waiting(weakref.ref(optimizer), ended, tick, skipped))

    def complete(self) -> tuple[Waiting, Unread | None] | None:
        """The step that waited for its own numbers, with them; None if there is none. Waits for them if need be.

        Beside it what was sent along, if the device has decided on it.
        """
        if not self._waiting or not self._waiting[-1].ended.waits:
            return None
        step = self._waiting[-1]
        stats, unread = step.ended.complete(), step.ended.unread  # host sync
        skipped = step.skipped or (unread is not None and not stats.applied)
        self._waiting[-1] = step._replace(ended=Ended(stats), skipped=skipped)
        return self._waiting[-1], unread

    @property
    def full(self) -> bool:
        return len(self._waiting) >= MOST

    def ordinary(self, stats: StepStats) -> bool:
        """Whether nothing about this step could call for an answer."""
        loss, norm = self._bounds.get(stats.optimizer, (-1.0, -1.0))
        per_pass = step_loss(stats)
        return (
            stats.applied
            and stats.grad_norm <= norm  # nan is not
            and stats.clipped_grad_norm <= norm
            and (per_pass is None or per_pass <= loss)
            and stats.portrait is None
            and stats.embedding is None
            and not stats.activations
            and all([t.weight_finite and t.state_finite for t in stats.tensors])
        )

    def take(self) -> list[Waiting]:
        """All that wait, in their order: they are about to be judged."""
        waiting, self._waiting = self._waiting, []
        return waiting

    def learn(self, optimizer: int, history: History) -> None:
        """All of this optimizer's steps have been judged."""
        if history.num_healthy < YOUNG or not history.log_norms or history.largest_norm is None:
            self._bounds.pop(optimizer, None)
            return
        losses = history.losses
        loss = losses.ordered[-1] if losses else float("inf")
        self._bounds[optimizer] = loss, min(10.0 ** history.log_norms.ordered[-1], history.largest_norm)
