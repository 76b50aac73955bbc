"""The first step of a resumed run: has its model been given other values since its guard was?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from steadygrad.guard.guard import Guard
from steadygrad.guard.resuming import resume_guard

Mark = tuple[int, int]  # of a tensor: its address and how often it was written to


class Resumed:
    """A guard that was put back, until the run goes on.

    A loop may load the watcher first and its model afterwards. Then the guard has taken the values of a model that was
    not trained for those that it may go back to: it is put back once more, when the first step comes.

    Args:
        state: of the guard; None: it had none, or has none now.
        optimizers: of the run.
    """

    def __init__(self, state: dict[str, Any] | None, optimizers: Sequence[Optimizer]) -> None:
        self._state, self._optimizers = state, list(optimizers)
        self._marks = self._look()

    def _look(self) -> list[Mark]:
        params = [p for o in self._optimizers for group in o.param_groups for p in group["params"]]
        values = [v for o in self._optimizers for kept in o.state.values() for v in kept.values()]
        return [(id(t), t._version) for t in (*params, *values) if isinstance(t, Tensor)]

    def before_first_step(self, guard: Guard | None) -> None:
        """Nothing has been changed by a step so far."""
        if guard is not None and self._state is not None and self._look() != self._marks:
            guard.guard_state(guard.state)
            resume_guard(guard, self._state)
