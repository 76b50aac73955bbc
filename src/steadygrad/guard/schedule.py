"""A skipped step does not move the learning-rate schedule either."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch.optim import Optimizer

MANY = 1000  # numbers of one list in a scheduler's state


@dataclass
class _Held:
    scheduler: Any
    last_epoch: int
    state: dict[str, Any]
    groups: list[dict[str, Any]]  # hyperparameters of each group, without the parameters


class ScheduleKeeper:
    """Takes back the scheduler call that follows a skipped step.

    The user's loop calls ``scheduler.step()`` whether or not the optimizer's step was skipped. For a schedule
    that moves once per optimizer step that call is taken back just before the next step; a schedule that moves
    once per epoch is left alone (told apart by counting: has it moved as often as the optimizer?).
    """

    def __init__(self) -> None:
        # id of a scheduler -> (steps of its optimizer, its last_epoch) at first sight
        self._first: dict[int, tuple[int, int]] = {}
        self._held: list[_Held] = []
        self._light: dict[int, bool] = {}  # id of a scheduler -> whether its state is a few numbers

    def before_step(self, optimizer: Optimizer, schedulers: Iterable[Any], steps: int) -> None:
        """Take back what moved since a skipped step. ``steps``: those that this optimizer has taken so far."""
        for held in [h for h in self._held if h.scheduler.optimizer is optimizer]:
            self._held.remove(held)
            if held.scheduler.last_epoch == held.last_epoch + 1:
                held.scheduler.load_state_dict(held.state)
                for group, saved in zip(optimizer.param_groups, held.groups, strict=False):
                    group.update(saved)
        for scheduler in _counting(schedulers, optimizer):
            self._first.setdefault(id(scheduler), (steps, scheduler.last_epoch))

    def skipped(self, optimizer: Optimizer, schedulers: Iterable[Any], steps: int) -> None:
        """Remember the schedules of ``optimizer`` as they are at a skipped step."""
        for scheduler in _counting(schedulers, optimizer):
            first_steps, first_epoch = self._first.get(id(scheduler), (steps, scheduler.last_epoch))
            if scheduler.last_epoch - first_epoch == steps - first_steps:
                groups = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
                state = copy.deepcopy(scheduler.state_dict())
                self._held.append(_Held(scheduler, scheduler.last_epoch, state, copy.deepcopy(groups)))

    def light(self, optimizer: Optimizer, schedulers: Iterable[Any]) -> bool:
        """Whether :meth:`skipped` is cheap enough for every step: the state of a ``LambdaLR`` may hold a model."""
        counting = _counting(schedulers, optimizer)
        for scheduler in counting:
            if id(scheduler) not in self._light:
                self._light[id(scheduler)] = _few_numbers(scheduler.state_dict())
        return all(self._light[id(scheduler)] for scheduler in counting)

    def taken(self, optimizer: Optimizer) -> None:
        """The step of which :meth:`skipped` was told has been taken after all."""
        self._held = [held for held in self._held if held.scheduler.optimizer is not optimizer]

    def state_dict(self, schedulers: Sequence[Any]) -> dict[str, Any]:
        """What is held and counted, by the position of each scheduler."""
        position = {id(s): i for i, s in enumerate(schedulers)}
        return {
            "first": [[position[k], *seen] for k, seen in self._first.items() if k in position],
            "held": [
                [position[id(h.scheduler)], h.last_epoch, h.state, h.groups]
                for h in self._held
                if id(h.scheduler) in position
            ],
        }

    def load_state_dict(self, state: dict[str, Any], schedulers: Sequence[Any]) -> None:
        """Put it back, for as many schedulers as there are."""
        known = dict(enumerate(schedulers))
        self._first = {id(known[i]): (steps, epoch) for i, steps, epoch in state["first"] if i in known}
        held = [_Held(known[i], *more) for i, *more in state["held"] if i in known]
        self._held = copy.deepcopy(held, {id(h.scheduler): h.scheduler for h in held})

    def forget(self) -> None:
        """After a rollback the schedules are where the snapshot had them: nothing is held, counting starts anew."""
        self._held.clear()
        self._first.clear()


def _few_numbers(state: Any) -> bool:
    if isinstance(state, dict):
        return all(map(_few_numbers, state.values()))
    if isinstance(state, list | tuple):
        return len(state) <= MANY and all(map(_few_numbers, state))
    return state is None or isinstance(state, bool | int | float | str)


def _counting(schedulers: Iterable[Any], optimizer: Optimizer) -> list[Any]:
    """The schedulers of an optimizer that count how often they were called; others count taken steps or nothing."""
    return [
        s
        for s in schedulers
        if getattr(s, "optimizer", None) is optimizer and isinstance(getattr(s, "last_epoch", None), int)
    ]
