"""Whether gradients are cleared between the backward pass and the step, and where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor
from torch.optim import Optimizer

from steadygrad.repair.effects._cleared import Cleared
from steadygrad.repair.effects.effect import Step
from steadygrad.repair.survey.sites import Key, Place, note
from steadygrad.repair.survey.surveyor import Surveyor


class Clearing(Surveyor):
    """Steps that had no gradient, all None or exactly 0, because a ``zero_grad`` came after the backward pass.

    ``found()``, empty if there was none: ``steps`` (their number, until the optimizer's first step with gradients) and
    ``clears``: each ``place`` of a ``zero_grad``, with the places of the ``steps`` that it has left without gradients.
    """

    key: ClassVar[str] = "clearing"

    def __init__(self, value: Any = None) -> None:
        self._cleared = Cleared(keep=False, by=self._here)
        self._places: dict[Key, Place] = {}
        self._steps_of: dict[Key, dict[Key, Place]] = {}
        self._steps = 0

    def _here(self) -> Key | None:
        return note(self._places)

    def install(self) -> None:
        self._cleared.install()

    def remove(self) -> None:
        self._cleared.remove()

    def backward(self, roots: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        self._cleared.passing()

    def before_step(self, optimizer: Optimizer) -> Step:
        lost = self._cleared.stepping(optimizer)
        self._steps += bool(lost)
        for by in {by: None for each in lost for by in each.by}:
            note(self._steps_of.setdefault(by, {}))  # type: ignore[arg-type]
        self._cleared.settle(lost)
        return "take"

    def undo_step(self) -> None:
        self._cleared.stepped()

    def found(self) -> Mapping[str, Any]:
        if not self._steps:
            return {}
        clears = [
            {"place": self._places[by], "steps": list(steps.values())} for by, steps in self._steps_of.items()
        ]
        return {"steps": self._steps, "clears": clears}
