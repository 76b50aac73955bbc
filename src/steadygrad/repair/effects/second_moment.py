"""Adam's second moment: how long it remembers, what stands beside it, and updates that have outrun it."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, ClassVar

from torch.optim import Adam, AdamW, Optimizer

from steadygrad.clip import clipped_updates
from steadygrad.repair.effects._gradients import unscale_
from steadygrad.repair.effects._groups import GroupEffect
from steadygrad.repair.effects._values import fraction, positive
from steadygrad.repair.effects.effect import Effect, Models, NotApplicable, Step


class Beta2(GroupEffect):
    """The second beta is ``value``, from 0 to below 1."""

    key: ClassVar[str] = "beta2"

    def __init__(self, value: Any) -> None:
        super().__init__(value)
        self._beta2 = fraction(self.key, value)

    def change(self, optimizer: Optimizer, group: dict[str, Any]) -> None:
        betas = group.get("betas")
        if isinstance(betas, (tuple, list)) and len(betas) >= 2:
            self.set(group, "betas", type(betas)((betas[0], self._beta2, *betas[2:])))


class AdamEps(GroupEffect):
    """Adam's eps is at least ``value``, above 0: in half precision 1e-8 is 0."""

    key: ClassVar[str] = "adam_eps"

    def __init__(self, value: Any) -> None:
        super().__init__(value)
        self._least = positive(self.key, value)

    def change(self, optimizer: Optimizer, group: dict[str, Any]) -> None:
        if isinstance(group.get("eps"), float) and group["eps"] < self._least:
            self.set(group, "eps", self._least)


class UpdateClip(Effect):
    """Steps of Adam and AdamW become StableAdamW's: shorter for a tensor whose gradient has outrun its second moment.

    Value: the root mean square of ``gradient / second moment ** .5`` that is allowed, above 0; 1 is usual. See
    :func:`steadygrad.clip.clipped_updates`.
    """

    key: ClassVar[str] = "update_clip"
    order: ClassVar[int] = 35  # it splits groups with the rates that the others have set

    def __init__(self, value: Any) -> None:
        self._max_rms = positive(self.key, value)
        self._step = ExitStack()

    def models(self, models: Models) -> None:
        for optimizer in models.optimizers:
            _check(optimizer)

    def before_step(self, optimizer: Optimizer) -> Step:
        _check(optimizer)
        unscale_(optimizer)
        self._step.enter_context(clipped_updates(optimizer, self._max_rms))
        return "take"

    def undo_step(self) -> None:
        self._step.close()


def _check(optimizer: Optimizer) -> None:
    if not isinstance(optimizer, (Adam, AdamW)):
        raise NotApplicable(f"update_clip is for Adam and AdamW, and this run has {type(optimizer).__name__}")
