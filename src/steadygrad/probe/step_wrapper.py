"""Our function in the place of ``optimizer.step``, on the instance, and how it is taken away again."""

from __future__ import annotations

import functools
import inspect
import weakref
from typing import Any

import torch
from torch.optim import Optimizer

from steadygrad.probe.listening import at_step

_wrappers: weakref.WeakKeyDictionary[Optimizer, tuple[Any, Any]] = weakref.WeakKeyDictionary()


class _Outside:
    """The two halves of a step for a compiled function: dynamo breaks its graph at each and calls it plainly."""

    def __init__(self) -> None:
        self.before = torch.compiler.disable(self._before)
        self.after = torch.compiler.disable(self._after)

    @staticmethod
    def _before(optimizer: Optimizer) -> bool:
        owner = at_step(optimizer)
        if owner is None:
            return True
        owner.steps += 1
        with owner.in_compiled_frame():
            applied = owner.listener.before_step(optimizer)
            if not applied:
                owner.listener.after_step(optimizer, False)
        return applied

    @staticmethod
    def _after(optimizer: Optimizer) -> None:
        owner = at_step(optimizer)
        if owner is not None:
            with owner.in_compiled_frame():
                owner.listener.after_step(optimizer, True)


@functools.cache
def _outside() -> _Outside:
    return _Outside()  # made at the first optimizer: building that has loaded dynamo, which this would


def wrap_step(optimizer: Optimizer) -> None:
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
        owner = at_step(self)
        return call(*args, **kwargs) if owner is None else owner.step(self, call, args, kwargs)

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


def unwrap_step(optimizer: Optimizer) -> None:
    """Take our function away; under a wrapper that others put around it, it stays and only passes calls on."""
    wrapper, previous = _wrappers.pop(optimizer, (None, None))
    if wrapper is None or optimizer.__dict__.get("step") is not wrapper:
        return
    if previous is None:
        del optimizer.__dict__["step"]
    else:
        optimizer.step = previous  # type: ignore[method-assign]
