"""How high a schedule will take the learning rate."""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

LOOK_AHEAD = 20_000  # steps of a schedule that is a formula: warm-ups of 10,000 are in use


def largest_lr(optimizer: Optimizer) -> float:
    """The largest learning rate of this optimizer, now or as its schedules say; nan if it has none.

    A schedule's future is read where it can be without stepping it: the ``max_lr`` of one-cycle and cyclic schedules,
    the factors of a ``LambdaLR``, the ``initial_lr`` of a warm-up or of one that only comes down. Others say nothing.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
        >>> schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2.0, total_steps=10)
        >>> largest_lr(optimizer)
        2.0
    """
    rates = [float(group["lr"]) for group in optimizer.param_groups if "lr" in group]
    rates += [float(group["max_lr"]) for group in optimizer.param_groups if "max_lr" in group]
    schedules = list(_schedules(optimizer))
    formulas = bool(schedules) and all(isinstance(s, LambdaLR) for s in schedules)
    if not formulas:  # a formula may stay far below the rate that it is a factor of (Noam's)
        rates += [float(group["initial_lr"]) for group in optimizer.param_groups if "initial_lr" in group]
    for schedule in schedules:
        rates += _peaks(schedule)
    return max(rates, default=float("nan"))


def _schedules(optimizer: Optimizer) -> Iterator[Any]:
    for thing in gc.get_referrers(optimizer):
        holder = thing if isinstance(thing, LRScheduler) else None
        if isinstance(thing, dict):  # the __dict__ of one, on older Pythons
            holder = next((o for o in gc.get_referrers(thing) if isinstance(o, LRScheduler)), None)
        if holder is not None and getattr(holder, "optimizer", None) is optimizer:
            yield holder


def _peaks(schedule: Any) -> list[float]:
    if not isinstance(schedule, LambdaLR):
        return [float(x) for x in getattr(schedule, "max_lrs", ())]
    peaks = []
    for base, factor in zip(schedule.base_lrs, schedule.lr_lambdas, strict=False):
        step = 0
        while step <= LOOK_AHEAD:
            try:
                peaks.append(float(base) * float(factor(step)))
            except Exception:  # noqa: BLE001 - the user's formula may end somewhere
                break
            step += max(1, step // 50)
    return [peak for peak in peaks if math.isfinite(peak)]
