"""Steps that cannot move weights: a learning rate of 0, parameters that no gradient reaches."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor
from torch.optim import Optimizer

from steadygrad.records import Oddity, ParamInfo
from steadygrad.schedule import effective_lr

NO_RATE = 1e-12
CERTAIN = 5  # steps in a row
PATIENCE = 100  # steps, where a schedule began at 0 and may rise with the next epoch
NAMED = 3  # parameters named in a message


@dataclass
class _Idle:
    without_rate: int = 0  # steps in a row
    had_rate: bool = False
    rate_told: bool = False
    looks: int = 0
    never: set[int] = field(default_factory=set)  # positions of parameters that no gradient has reached

    @property
    def settled(self) -> bool:
        """Whether nothing is to be learnt from a step in which every rate is above 0."""
        return self.had_rate and not self.without_rate and self.looks >= CERTAIN


class IdleSteps:
    """Looks at the learning rates of every step, and at which gradients there are in the first steps.

    ``zero_lr``: five steps in a row in which every group that has gradients has a rate below 1e-12. A schedule
    that starts at 0 is given a hundred steps to rise.

    ``no_gradient``: parameters that ask for a gradient and got none, or in all of a matrix exactly 0, in each of
    the first five steps that followed a backward pass and had a rate above 0.
    """

    def __init__(self) -> None:
        self._optimizers: weakref.WeakKeyDictionary[Optimizer, _Idle] = weakref.WeakKeyDictionary()

    def before_step(
        self,
        optimizer: Optimizer,
        tensors: Sequence[Tensor],
        infos: Sequence[ParamInfo],
        norms: np.ndarray,
        passes: int,
    ) -> Sequence[Oddity]:
        """The gradients of a step are there.

        Args:
            optimizer: that is about to step.
            tensors: its parameters.
            infos: their names, in the same order.
            norms: of their gradients; nan where there is none.
            passes: backward passes since its last step.
        """
        idle = self._optimizers.get(optimizer)
        if idle is None:
            idle = self._optimizers[optimizer] = _Idle()
        rates = _rates(optimizer)
        if idle.settled and rates and all(rate >= NO_RATE for rate in rates):
            return ()
        moving = _has_rate(optimizer, rates)
        found = []
        if moving is not None:
            found.append(self._rate(optimizer, idle, moving))
        if idle.looks < CERTAIN and passes and moving is not False:
            found.append(self._reach(idle, tensors, infos, norms))
        return [odd for odd in found if odd is not None]

    def reads_norms(self, optimizer: Optimizer) -> bool:
        """Whether the norms of this optimizer's coming step may still be looked at."""
        idle = self._optimizers.get(optimizer)
        return idle is None or idle.looks < CERTAIN

    def _rate(self, optimizer: Optimizer, idle: _Idle, moving: bool) -> Oddity | None:
        idle.had_rate |= moving
        idle.without_rate = 0 if moving else idle.without_rate + 1
        rising = not idle.had_rate and any("initial_lr" in g for g in optimizer.param_groups)
        if idle.rate_told or idle.without_rate < (PATIENCE if rising else CERTAIN):
            return None
        idle.rate_told = True
        return Oddity(
            "zero_lr",
            "model",
            f"the learning rate has been 0 for {idle.without_rate} steps: no weight moves",
            {"steps": float(idle.without_rate), "after_training": float(idle.had_rate)},
        )

    def _reach(
        self, idle: _Idle, tensors: Sequence[Tensor], infos: Sequence[ParamInfo], norms: np.ndarray
    ) -> Oddity | None:
        missing = {
            i
            for i, (p, norm) in enumerate(zip(tensors, norms.tolist(), strict=True))
            if p.requires_grad and (p.grad is None or (norm == 0 and p.dim() >= 2 and p.numel()))
        }
        idle.never = missing if idle.looks == 0 else idle.never & missing
        idle.looks = idle.looks + 1 if idle.never else CERTAIN + 1
        if idle.looks != CERTAIN:
            return None
        trained = sum(p.requires_grad for p in tensors)
        share = len(idle.never) / trained
        names = [infos[i].name for i in sorted(idle.never)]
        rest = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        listed = ", ".join(names[:NAMED]) + rest
        whole = share == 1
        return Oddity(
            "no_gradient",
            "model" if whole else listed,
            "no parameter of the optimizer has had a gradient: it does not train what the loss is made of, or the "
            "gradients are cleared before the step"
            if whole
            else f"{len(names)} of {trained} parameters have never had a gradient: {listed}",
            {"share": share, "parameters": float(len(names))},
        )


def _rates(optimizer: Optimizer) -> list[float]:
    """The size of the rate of each group; empty if one has none."""
    if any(group.get("lr") is None for group in optimizer.param_groups):
        return []
    return [abs(float(rate)) for rate in effective_lr(optimizer)]


def _has_rate(optimizer: Optimizer, rates: Sequence[float]) -> bool | None:
    """Whether any group with gradients has a rate; None if rates are not given, or there is no gradient."""
    of_groups = zip(optimizer.param_groups, rates, strict=False)
    moving = [
        rate >= NO_RATE for group, rate in of_groups if any(p.grad is not None for p in group["params"])
    ]
    return any(moving) if moving else None
