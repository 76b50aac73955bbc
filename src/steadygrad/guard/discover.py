"""Schedulers and scalers that a script made without telling anybody, found among all live objects."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn
from torch.amp import GradScaler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from steadygrad.schedule import BackOff, LRFactor


def find_schedulers(optimizers: Iterable[Optimizer]) -> list[Any]:
    """Every live learning-rate scheduler of ``optimizers``, in the order of the optimizers.

    Besides torch's own and what is derived from them, and the factors of `schedule.warmup` and its kin, objects
    of other libraries are found whose class is named as a schedule, that hold one of the optimizers, and that
    have ``state_dict`` and ``load_state_dict``. The members of a ``SequentialLR`` are found beside it.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
        >>> scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 10)
        >>> find_schedulers([optimizer]) == [scheduler]
        True
    """
    order = {id(optimizer): position for position, optimizer in enumerate(optimizers)}

    def position(found: Any) -> int | None:
        return order.get(id(getattr(found, "__dict__", {}).get("optimizer")))

    found = _live(_is_schedule, lambda x: position(x) is not None)
    return sorted(found, key=lambda x: (position(x), type(x).__name__))


def find_scalers() -> list[Any]:
    """Every live ``GradScaler`` that is enabled."""
    return _live(lambda kind: issubclass(kind, GradScaler), lambda x: x.is_enabled())


def _is_schedule(kind: type) -> bool:
    if issubclass(kind, (LRScheduler, LRFactor)):
        return not issubclass(kind, BackOff)  # a rollback must not undo the answer to an incident
    if issubclass(kind, (Optimizer, nn.Module)) or not (
        "schedul" in kind.__name__.lower() or kind.__name__.endswith("LR")
    ):
        return False
    return hasattr(kind, "state_dict") and hasattr(kind, "load_state_dict")


def _live(right_kind: Callable[[type], bool], wanted: Callable[[Any], bool]) -> list[Any]:
    """Live objects whose class is of the ``right_kind`` and that are ``wanted``.

    Asks ``type(x)`` only: ``isinstance`` would wake proxies and lazy modules. Each class is judged once: there
    are half a million objects in a script that uses torch, of some thousand classes.
    """
    found, kinds = [], {}
    for x in gc.get_objects():
        kind = type(x)
        try:
            if kind not in kinds:
                kinds[kind] = right_kind(kind)
            if kinds[kind] and wanted(x):
                found.append(x)
        except Exception:  # noqa: BLE001 - any object of the process may misbehave when it is looked at
            continue
    return found
