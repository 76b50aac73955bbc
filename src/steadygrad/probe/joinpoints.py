"""The only place that patches torch: optimizer steps, ``backward``, clip calls, the GradScaler.

Every patch passes the call on unchanged and tells a listener. The user's exceptions pass through; the listener
is expected never to raise one of its own (the session sees to that). Patches are shared by all listeners and are
gone when the last one is removed, in whatever order they came and go.
"""

from __future__ import annotations

import functools
import gc
import inspect
import os
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
import torch.nn.utils.clip_grad as clip_grad
from torch import Tensor
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


class Listener(Protocol):
    """What the join points tell. Tensors are detached; none may be changed except by the two step calls."""

    def optimizer_built(self, optimizer: Optimizer) -> None: ...
    def scheduler_built(self, scheduler: Any) -> None: ...
    def scaler_seen(self, scaler: GradScaler) -> None: ...
    def backward(self, roots: Sequence[Tensor]) -> None:
        """A backward pass begins. ``roots``: 0-D values that are differentiated, without the scaler's factor."""

    def graph(self, roots: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        """After :meth:`backward` was told, and before it runs: the same roots with their graph, scaled by a scaler."""

    def clipped(self, params: Sequence[Tensor], max_norm: float) -> None:
        """The user is about to clip these parameters' gradients, which are still raw."""

    def before_step(self, optimizer: Optimizer) -> bool:
        """The user calls ``step``; gradients are there. False: the step is not to be taken."""

    def after_step(self, optimizer: Optimizer, applied: bool) -> None: ...
    def step_raised(self, optimizer: Optimizer) -> None:
        """The user's step raised: undo what was changed for it. The exception goes on to the user."""

    def amp_skipped(self, optimizer: Optimizer, scaler: GradScaler | None) -> None:
        """The GradScaler found an overflow and took no step (``scaler`` None: a fused optimizer did it)."""


class JoinPoints:
    """One listener's connection to the run.

    Args:
        listener: is told. Only in the process that made this object; in a forked child nothing happens.
    """

    def __init__(self, listener: Listener) -> None:
        self.listener = listener
        self.everything = False
        self._attached: weakref.WeakKeyDictionary[Any, None] = weakref.WeakKeyDictionary()  # in order
        self._steps: weakref.WeakKeyDictionary[Optimizer, int] = weakref.WeakKeyDictionary()
        self._thread: int | None = None
        self._inside = False  # a step within a step (Lookahead) belongs to the outer one
        self._muted = False

    @property
    def here(self) -> bool:
        """Whether this is the process that installed us, and no other thread trains."""
        if _in_forked_child or self._muted:
            return False
        return self._thread is None or self._thread == threading.get_ident()

    def install(self, *, all_optimizers: bool) -> None:
        """Begin to listen.

        Args:
            all_optimizers: attach to every optimizer of the process, those that exist and those still to come.
        """
        self.everything = all_optimizers
        _listening.append(self)
        if len(_listening) == 1:
            _patch_torch()
        if all_optimizers:
            for optimizer in _existing(Optimizer):
                _built(optimizer)

    def attach(self, optimizer: Optimizer) -> None:
        """Listen to the steps of this optimizer. One that a listener to everything has is taken over from it.

        Raises:
            ValueError: another listener has attached to just this optimizer.
        """
        owner = _owners.get(optimizer)
        if owner is self:
            return
        if owner is not None and not owner.everything:
            raise ValueError(
                f"this {type(optimizer).__name__} is watched already: close the first watcher before opening another"
            )
        _owners[optimizer] = self
        self._attached[optimizer] = None
        if owner is not None:
            owner._attached.pop(optimizer, None)
        else:
            _wrap_step(optimizer)

    def detach(self, optimizer: Optimizer) -> None:
        """Listen to this optimizer no longer."""
        if _owners.get(optimizer) is self:
            del _owners[optimizer]
            self._attached.pop(optimizer, None)
            _unwrap_step(optimizer)

    def optimizers(self) -> list[Optimizer]:
        """The optimizers that are listened to and still alive."""
        return list(self._attached)

    def remove(self) -> None:
        """Stop listening; every patch that nobody else needs is taken away. Can be called again."""
        for optimizer in list(self._attached):
            self.detach(optimizer)
        if self in _listening:
            _listening.remove(self)
            if not _listening:
                _unpatch_torch()

    @contextmanager
    def alone(self, optimizer: Optimizer) -> Iterator[None]:
        """Inside the block the steps are no part of anybody else's run: they are told nothing.

        At its end, with us removed, a listener to everything has the optimizer back.
        """
        owner = _owners.get(optimizer)
        others = [j for j in _listening if j is not self and not j._muted]
        for other in others:
            other._muted = True
        try:
            yield
        finally:
            for other in others:
                other._muted = False
            if owner is not None and owner in others and optimizer not in _owners:
                owner.attach(optimizer)

    # ------------------------------------------------------------------ the step
    def _step(
        self, optimizer: Optimizer, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        self._thread = threading.get_ident()
        self._steps[optimizer] = self._steps.get(optimizer, 0) + 1
        if _overflowed(optimizer):
            # A fused optimizer under a GradScaler: it is called on overflow too, and skips by itself.
            self.listener.amp_skipped(optimizer, None)
            return call(*args, **kwargs)
        closure = kwargs.get("closure", args[0] if args else None)
        value = None
        self._inside = True
        try:
            if callable(closure):
                # The gradients are made inside the closure: it has to run before anything can be said.
                with torch.enable_grad():
                    value = closure()
                args, kwargs = _give_closure(closure, value, args, kwargs)
            applied = self.listener.before_step(optimizer)
            if applied:
                try:
                    value = call(*args, **kwargs)
                except BaseException:
                    self.listener.step_raised(optimizer)
                    raise
            else:
                optimizer._opt_called = True  # type: ignore[attr-defined]  # or LRScheduler warns of a missing step
        finally:
            self._inside = False
        self.listener.after_step(optimizer, applied)
        return value


class _Outside:
    """The two halves of a step for a compiled function: dynamo breaks its graph at each and calls it plainly."""

    def __init__(self) -> None:
        self.before = torch.compiler.disable(self._before)
        self.after = torch.compiler.disable(self._after)

    @staticmethod
    def _before(optimizer: Optimizer) -> bool:
        owner = _owners.get(optimizer)
        if owner is None or owner._inside or not owner.here:
            return True
        owner._steps[optimizer] = owner._steps.get(optimizer, 0) + 1
        applied = owner.listener.before_step(optimizer)
        if not applied:
            owner.listener.after_step(optimizer, False)
        return applied

    @staticmethod
    def _after(optimizer: Optimizer) -> None:
        owner = _owners.get(optimizer)
        if owner is not None and not owner._inside and owner.here:
            owner.listener.after_step(optimizer, True)


_in_forked_child = False


def _forked() -> None:
    global _in_forked_child
    _in_forked_child = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)

_listening: list[JoinPoints] = []
_owners: weakref.WeakKeyDictionary[Optimizer, JoinPoints] = weakref.WeakKeyDictionary()
_wrappers: weakref.WeakKeyDictionary[Optimizer, tuple[Any, Any]] = weakref.WeakKeyDictionary()
_originals: dict[tuple[Any, str], Any] = {}


def _active() -> list[JoinPoints]:
    return [j for j in _listening if j.here]


@functools.cache
def _outside() -> _Outside:
    return _Outside()  # made at the first optimizer: building that has loaded dynamo, which this would


# ---------------------------------------------------------------------- optimizer steps
def _wrap_step(optimizer: Optimizer) -> None:
    """Put our function in the place of ``optimizer.step``, on the instance.

    It must look like a method: LRScheduler takes ``step.__func__``, GradScaler its signature. It holds the
    optimizer weakly, so that a discarded model is freed at once.
    """
    outside = _outside()
    previous = optimizer.__dict__.get("step")  # an LRScheduler may have wrapped it already
    ref = weakref.ref(optimizer)
    target = previous if previous is not None else type(optimizer).step

    @functools.wraps(target)
    def unbound(self: Optimizer, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_dynamo_compiling():
            # A compiled training step: ours runs between the graphs, the user's step stays compiled.
            if not outside.before(self):
                return None
            out = type(self).step(self, *args, **kwargs) if previous is None else previous(*args, **kwargs)
            outside.after(self)
            return out
        call = previous if previous is not None else functools.partial(type(self).step, self)
        owner = _owners.get(self)
        if owner is None or owner._inside or not owner.here:
            return call(*args, **kwargs)
        return owner._step(self, call, args, kwargs)

    @functools.wraps(target)
    def step(*args: Any, **kwargs: Any) -> Any:
        self = ref()
        assert self is not None
        return unbound(self, *args, **kwargs)

    if previous is None:
        bound = inspect.signature(target)
        step.__signature__ = bound.replace(parameters=list(bound.parameters.values())[1:])  # type: ignore[attr-defined]
    step.__func__ = unbound  # type: ignore[attr-defined]
    _wrappers[optimizer] = (step, previous)
    optimizer.step = step  # type: ignore[method-assign]


def _unwrap_step(optimizer: Optimizer) -> None:
    """Take our function away; under a wrapper that others put around it, it stays and only passes calls on."""
    wrapper, previous = _wrappers.pop(optimizer, (None, None))
    if wrapper is None or optimizer.__dict__.get("step") is not wrapper:
        return
    if previous is None:
        del optimizer.__dict__["step"]
    else:
        optimizer.step = previous  # type: ignore[method-assign]


def _give_closure(
    closure: Callable[[], Any], value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The same arguments with a closure that answers the first call from what was computed already."""
    first = [value]

    def replayed() -> Any:
        return first.pop() if first else closure()

    if "closure" in kwargs:
        return args, {**kwargs, "closure": replayed}
    return (replayed, *args[1:]), kwargs


def _overflowed(optimizer: Optimizer) -> bool:
    found_inf = getattr(optimizer, "found_inf", None)
    return found_inf is not None and float(found_inf) > 0  # host sync


def _existing(kind: type) -> list[Any]:
    """Living objects of a class. ``isinstance`` would wake lazy proxies of others."""
    return [o for o in gc.get_objects() if issubclass(type(o), kind)]


def _built(optimizer: Optimizer) -> None:
    for joinpoints in _active():
        if joinpoints.everything and optimizer not in _owners:
            joinpoints.attach(optimizer)
            joinpoints.listener.optimizer_built(optimizer)


# ---------------------------------------------------------------------- the patches
def _replace(owner: Any, name: str, make: Callable[[Any], Any]) -> None:
    original = getattr(owner, name)
    _originals[owner, name] = original
    setattr(owner, name, functools.wraps(original)(make(original)))


def _patch_torch() -> None:
    _replace(Optimizer, "__init__", _after(lambda self: _built(self)))
    _replace(Optimizer, "__setstate__", _after(lambda self: _built(self)))
    _replace(LRScheduler, "__init__", _after(_scheduler_built))
    _replace(torch.autograd, "backward", _seen_backward)
    if hasattr(clip_grad, "_clip_grads_with_norm_"):
        # Called by clip_grad_norm_ through its module: also caught where the name was imported before us.
        _replace(clip_grad, "_clip_grads_with_norm_", _seen_clip)
    else:
        for owner in (clip_grad, torch.nn.utils):
            _replace(owner, "clip_grad_norm_", _seen_clip)
    for owner in (clip_grad, torch.nn.utils):
        _replace(owner, "clip_grad_value_", _seen_clip)
    _replace(GradScaler, "scale", _seen_scale)
    _replace(GradScaler, "step", _seen_scaler_step)


def _unpatch_torch() -> None:
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
    for joinpoints in _active():
        if getattr(scheduler, "optimizer", None) in joinpoints._attached:
            joinpoints.listener.scheduler_built(scheduler)


def _seen_backward(original: Any) -> Any:
    def backward(tensors: Any, grad_tensors: Any = None, *args: Any, **kwargs: Any) -> None:
        listening = _active()
        if listening:
            if not isinstance(tensors, Tensor):
                tensors = tuple(tensors)
            differentiated = (
                [tensors] if isinstance(tensors, Tensor) else [t for t in tensors if isinstance(t, Tensor)]
            )
            roots = _root_values(tensors, grad_tensors)
            for joinpoints in listening:
                joinpoints.listener.backward(roots)
                joinpoints.listener.graph(differentiated, roots)
        original(tensors, grad_tensors, *args, **kwargs)

    return backward


@torch.no_grad()
def _root_values(tensors: Any, grad_tensors: Any) -> list[Tensor]:
    """What is differentiated, as 0-D values: the root itself, or its product with the given gradient, summed."""
    roots = [tensors] if isinstance(tensors, Tensor) else list(tensors)
    weights = (
        [grad_tensors] if grad_tensors is None or isinstance(grad_tensors, Tensor) else list(grad_tensors)
    )
    weights += [None] * (len(roots) - len(weights))
    values = []
    for root, weight in zip(roots, weights, strict=False):
        if not isinstance(root, Tensor) or not root.is_floating_point():
            continue
        root = getattr(root, "_steadygrad_unscaled", root.detach())
        if root.numel() == 1:
            values.append(root.reshape(()))
        elif isinstance(weight, Tensor) and weight.shape == root.shape:
            values.append((root * weight.detach()).sum())
    return values


def _seen_clip(original: Any) -> Any:
    def clip(parameters: Any, max_norm: Any, *args: Any, **kwargs: Any) -> Any:
        listening = _active()
        if listening:
            parameters = [parameters] if isinstance(parameters, Tensor) else list(parameters)
            for joinpoints in listening:
                joinpoints.listener.clipped(parameters, float(max_norm))
        return original(parameters, max_norm, *args, **kwargs)

    return clip


def _seen_scale(original: Any) -> Any:
    def scale(self: GradScaler, outputs: Any) -> Any:
        scaled = original(self, outputs)
        listening = _active()
        if listening and scaled is not outputs and isinstance(scaled, Tensor):
            scaled._steadygrad_unscaled = outputs.detach()  # type: ignore[attr-defined]
        for joinpoints in listening:
            joinpoints.listener.scaler_seen(self)
        return scaled

    return scale


def _seen_scaler_step(original: Any) -> Any:
    def step(self: GradScaler, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
        inner = getattr(
            optimizer, "optimizer", optimizer
        )  # Accelerate hands its own wrapper of the optimizer
        owner = _owners.get(inner) if isinstance(inner, Optimizer) else None
        if owner is None or not owner.here:
            return original(self, optimizer, *args, **kwargs)
        before = owner._steps.get(inner, 0)
        out = original(self, optimizer, *args, **kwargs)
        if owner._steps.get(inner, 0) == before:
            owner.listener.amp_skipped(inner, self)
        return out

    return step
