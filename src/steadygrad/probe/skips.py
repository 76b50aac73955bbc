"""Whose skip it is when a step is not taken: the GradScaler's, or that of a folded clip."""

from __future__ import annotations

from weakref import WeakSet

import torch
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from steadygrad.clip._told import fold_of
from steadygrad.probe.host import post

_scalers: WeakSet[GradScaler] = WeakSet()


def scaler_used(scaler: GradScaler) -> None:
    """This scaler has scaled a loss."""
    if scaler.is_enabled():
        _scalers.add(scaler)


def overflowed(optimizer: Optimizer) -> bool:
    """Whether the coming call of a fused step does nothing, because of an overflow of a GradScaler.

    The flag of a folded clip is no such overflow, unless a scaler has found one when it unscaled the gradients.
    """
    return _flagged(optimizer) and (not _is_the_clips(optimizer) or scaler_at_fault(optimizer) is not None)


def skipped_inside(optimizer: Optimizer) -> bool:
    """Whether the fused step that was just called has done nothing, because of a folded clip's flag."""
    return _is_the_clips(optimizer) and _flagged(optimizer)


def scaler_at_fault(optimizer: Optimizer) -> GradScaler | None:
    """The scaler that has found an overflow in these gradients since its last ``update``, if there is one."""
    for scaler in _scalers:
        state = scaler._per_optimizer_states.get(id(optimizer))
        if state is not None and any(map(_is_set, state["found_inf_per_device"].values())):
            return scaler
    return None


def share_overflow(optimizer: Optimizer) -> None:
    """Another rank's scaler has found an overflow: this one's backs off as well, so that both keep one scale."""
    for scaler in _scalers:
        for flag in (
            scaler._per_optimizer_states.get(id(optimizer), {}).get("found_inf_per_device", {}).values()
        ):
            flag.fill_(1.0)


def _is_the_clips(optimizer: Optimizer) -> bool:
    fold = fold_of(optimizer)
    return fold is not None and fold.folded


def _flagged(optimizer: Optimizer) -> bool:
    return _is_set(getattr(optimizer, "found_inf", None))


def _is_set(flag: torch.Tensor | None) -> bool:
    return flag is not None and post([flag.reshape(())]).numbers()[0] > 0  # host sync
