"""Hugging Face's TrainerControl, which asks before a checkpoint is saved."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def careful(control: Any, may_save: Callable[[], bool]) -> Any:
    """The same switches, of which ``should_save`` turns itself off where ``may_save`` says no.

    Whoever sets it (the trainer's flow, another callback, a new best metric): it is asked when it is read, once for
    each time that it was set, so that all ranks ask at the same place.
    """
    kind = type(control)

    class TrainerControl(kind):  # type: ignore[misc, valid-type]
        """Of the same name, under which the trainer saves its state."""

        _wanted = False
        _allowed: bool | None = None

        @property
        def should_save(self) -> bool:
            if self._wanted and self._allowed is None:
                self._allowed = may_save()
            return bool(self._wanted and self._allowed)

        @should_save.setter
        def should_save(self, wanted: bool) -> None:
            self._wanted, self._allowed = wanted, None

    made = TrainerControl.__new__(TrainerControl)
    wanted = control.should_save
    made.__dict__.update({name: value for name, value in vars(control).items() if name != "should_save"})
    made.should_save = wanted
    return made
