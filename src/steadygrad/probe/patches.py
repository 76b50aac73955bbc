"""The calls of torch that are seen: backward, clips, the GradScaler, optimizers and schedulers that are built.

Every patch passes the call on, with the same result bit for bit, and tells whoever listens.
"""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Sequence
from itertools import chain, repeat
from typing import Any

import torch
import torch.nn.utils.clip_grad as clip_grad
from torch import Tensor
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from steadygrad.clip._told import skip_listeners
from steadygrad.probe.clip_calls import seen_clip, seen_factor, seen_norm
from steadygrad.probe.listening import at_step, listening, owners
from steadygrad.probe.skips import scaler_used

_originals: dict[tuple[Any, str], Any] = {}


def _replace(owner: Any, name: str, make: Callable[[Any], Any]) -> None:
    original = getattr(owner, name)
    _originals[owner, name] = original
    setattr(owner, name, functools.wraps(original)(make(original)))


def patch_torch() -> None:
    """Put our functions in the place of torch's."""
    skip_listeners.append(_clip_skips)
    _replace(Optimizer, "__init__", _after(lambda self: built(self)))
    _replace(Optimizer, "__setstate__", _after(lambda self: built(self)))
    _replace(LRScheduler, "__init__", _after(_scheduler_built))
    _replace(torch.autograd, "backward", _seen_backward)
    if hasattr(clip_grad, "_clip_grads_with_norm_"):
        # Called by clip_grad_norm_ through its module: also caught where the name was imported before us.
        _replace(clip_grad, "_get_total_norm", seen_norm)
        _replace(clip_grad, "_clip_grads_with_norm_", seen_factor)
    else:
        for owner in (clip_grad, torch.nn.utils):
            _replace(owner, "clip_grad_norm_", seen_clip)
    for owner in (clip_grad, torch.nn.utils):
        _replace(owner, "clip_grad_value_", seen_clip)
    _replace(GradScaler, "scale", _seen_scale)
    _replace(GradScaler, "step", _seen_scaler_step)


def unpatch_torch() -> None:
    """Put torch's own functions back."""
    skip_listeners.remove(_clip_skips)
    for (owner, name), original in _originals.items():
        setattr(owner, name, original)
    _originals.clear()


def _after(tell: Callable[[Any], None]) -> Callable[[Any], Any]:
    def make(original: Any) -> Any:
        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            out = original(self, *args, **kwargs)
            tell(self)
            return out

        return method

    return make


def _scheduler_built(scheduler: Any) -> None:
    for joinpoints in listening():
        if getattr(scheduler, "optimizer", None) in joinpoints.attached:
            joinpoints.listener.scheduler_built(scheduler)


def _seen_backward(original: Any) -> Any:
    def backward(tensors: Any, grad_tensors: Any = None, *args: Any, **kwargs: Any) -> None:
        told = listening()
        if told:
            if not isinstance(tensors, Tensor):
                tensors = tuple(tensors)
            if grad_tensors is not None and not isinstance(grad_tensors, Tensor):
                grad_tensors = tuple(grad_tensors)
            given = (tensors,) if isinstance(tensors, Tensor) else tensors
            roots = [root for root in given if isinstance(root, Tensor)]
            values = _root_values(given, grad_tensors)
            for joinpoints in told:
                joinpoints.listener.backward(values)
                joinpoints.listener.graph(roots, values)
        original(tensors, grad_tensors, *args, **kwargs)

    return backward


def _root_values(roots: Sequence[Any], grad_tensors: Any) -> list[Tensor]:
    """What is differentiated, as 0-D values: the root itself, or its product with the given gradient, summed."""
    one = grad_tensors is None or isinstance(grad_tensors, Tensor)
    weights = (grad_tensors,) if one else grad_tensors
    values = []
    for root, weight in zip(roots, chain(weights, repeat(None)), strict=False):
        if not isinstance(root, Tensor) or not root.is_floating_point():
            continue
        root = getattr(root, "_steadygrad_unscaled", root).detach()
        if root.numel() == 1:
            values.append(root.reshape(()) if root.dim() else root)
        elif isinstance(weight, Tensor) and weight.shape == root.shape:
            values.append((root * weight.detach()).sum())
    return values


def _seen_scale(original: Any) -> Any:
    def scale(self: GradScaler, outputs: Any) -> Any:
        scaled = original(self, outputs)
        told = listening()
        if told and scaled is not outputs and isinstance(scaled, Tensor):
            scaled._steadygrad_unscaled = outputs.detach()  # type: ignore[attr-defined]
        if told:
            scaler_used(self)
        for joinpoints in told:
            joinpoints.listener.scaler_seen(self)
        return scaled

    return scale


def _seen_scaler_step(original: Any) -> Any:
    def step(self: GradScaler, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
        inner = getattr(
            optimizer, "optimizer", optimizer
        )  # Accelerate hands its own wrapper of the optimizer
        owner = owners.get(inner) if isinstance(inner, Optimizer) else None
        if owner is None or not owner.here:
            return original(self, optimizer, *args, **kwargs)
        before = owner.steps
        out = original(self, optimizer, *args, **kwargs)
        if owner.steps == before:
            owner.listener.amp_skipped(inner, self)
        return out

    return step


def _clip_skips(optimizer: Optimizer) -> None:
    owner = at_step(optimizer)
    if owner is not None:
        owner.no_step(optimizer)


def existing(kind: type) -> list[Any]:
    """Living objects of a class. ``isinstance`` would wake lazy proxies of others."""
    return [o for o in gc.get_objects() if issubclass(type(o), kind)]


def built(optimizer: Optimizer) -> None:
    """A new optimizer: whoever listens to everything attaches to it."""
    for joinpoints in listening():
        if joinpoints.everything and optimizer not in owners:
            joinpoints.attach(optimizer)
            joinpoints.listener.optimizer_built(optimizer)
