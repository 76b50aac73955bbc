"""One listener's connection to the run: what it is told of, which optimizers are its own, the course of a step.

The calls of torch that are seen are in `patches`, the wrapper around an optimizer's step in `step_wrapper`. Both pass
the call on and tell a listener. The user's exceptions pass through; the listener is expected never to raise one of
its own (the session sees to that). Patches are shared by all listeners and are gone when the last one is removed, in
whatever order they came and go.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from steadygrad.probe.listening import connected, in_forked_child, owners
from steadygrad.probe.patches import built, existing, patch_torch, unpatch_torch
from steadygrad.probe.skips import overflowed, scaler_at_fault, skipped_inside
from steadygrad.probe.step_wrapper import unwrap_step, wrap_step


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
        name: of the listener, for people.
    """

    def __init__(self, listener: Listener, name: str = "another watcher") -> None:
        self.listener = listener
        self.name = name
        self.taken_by: list[str] = []  # names of those who have taken an optimizer over from us
        self.everything = False
        self.attached: weakref.WeakKeyDictionary[Any, None] = weakref.WeakKeyDictionary()  # in order
        self.steps = 0  # that have begun, of all its optimizers
        self._thread: int | None = None
        self.inside = False  # a step within a step (Lookahead) belongs to the outer one
        self.compiled = False  # what is told now is told from within a compiled function of the user's
        self._muted = False

    @property
    def here(self) -> bool:
        """Whether this is the process that installed us, and no other thread trains."""
        mine = self._thread is None or self._thread == threading.get_ident()
        return mine and not self._muted and not in_forked_child()

    def install(self, *, all_optimizers: bool) -> None:
        """Begin to listen.

        Args:
            all_optimizers: attach to every optimizer of the process, those that exist and those still to come.
        """
        self.everything = all_optimizers
        connected.append(self)
        if len(connected) == 1:
            patch_torch()
        if all_optimizers:
            for optimizer in existing(Optimizer):
                built(optimizer)

    def attach(self, optimizer: Optimizer) -> None:
        """Listen to the steps of this optimizer. One that a listener to everything has is taken over from it.

        Raises:
            ValueError: another listener has attached to just this optimizer. It is named, and so are we.
        """
        owner = owners.get(optimizer)
        if owner is self:
            return
        if owner is not None and not owner.everything:
            raise ValueError(
                f"this {type(optimizer).__name__} is watched already by {owner.name}, and {self.name} cannot watch it "
                f"too: leave out one of the two, or close the first before opening the other"
            )
        owners[optimizer] = self
        self.attached[optimizer] = None
        if owner is not None:
            owner.attached.pop(optimizer, None)
            owner.taken_by.append(self.name)
        else:
            wrap_step(optimizer)

    def detach(self, optimizer: Optimizer) -> None:
        """Listen to this optimizer no longer."""
        if owners.get(optimizer) is self:
            del owners[optimizer]
            self.attached.pop(optimizer, None)
            unwrap_step(optimizer)

    def optimizers(self) -> list[Optimizer]:
        """The optimizers that are listened to and still alive."""
        return list(self.attached)

    def remove(self) -> None:
        """Stop listening; every patch that nobody else needs is taken away. Can be called again."""
        for optimizer in list(self.attached):
            self.detach(optimizer)
        if self in connected:
            connected.remove(self)
            if not connected:
                unpatch_torch()

    @contextmanager
    def alone(self, optimizer: Optimizer) -> Iterator[None]:
        """Inside the block the steps are no part of anybody else's run: they are told nothing.

        At its end, with us removed, a listener to everything has the optimizer back.
        """
        owner = owners.get(optimizer)
        others = [j for j in connected if j is not self and not j._muted]
        for other in others:
            other._muted = True
        try:
            yield
        finally:
            for other in others:
                other._muted = False
            if owner is not None and owner in others and optimizer not in owners:
                owner.attach(optimizer)

    @contextmanager
    def in_compiled_frame(self) -> Iterator[None]:
        """Inside the block a compiled function is on the stack: a mode that is entered there would not be left."""
        self.compiled = True
        try:
            yield
        finally:
            self.compiled = False

    # ------------------------------------------------------------------ the step
    def step(
        self, optimizer: Optimizer, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """The user calls ``step``: tell of it, and ``call`` the original with the arguments unless it is refused."""
        self._thread = threading.get_ident()
        self.steps += 1
        if overflowed(optimizer):
            # A fused optimizer under a GradScaler: it is called on overflow too, and skips by itself.
            self.listener.amp_skipped(optimizer, None)
            return call(*args, **kwargs)
        closure = kwargs.get("closure", args[0] if args else None)
        value = None
        self.inside = True
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
                applied = not skipped_inside(optimizer)
            else:
                optimizer._opt_called = True  # type: ignore[attr-defined]  # or LRScheduler warns of a missing step
        finally:
            self.inside = False
        self.listener.after_step(optimizer, applied)
        return value

    def no_step(self, optimizer: Optimizer) -> None:
        """A folded clip leaves out the step of a gradient that is not finite: told as one that was not taken.

        Unless it was a GradScaler that has made it so: then this is its own skip, as in ``scaler.step``.
        """
        self._thread = threading.get_ident()
        self.steps += 1
        scaler = scaler_at_fault(optimizer)
        if scaler is not None or overflowed(optimizer):
            self.listener.amp_skipped(optimizer, scaler)
            return
        self.inside = True
        try:
            self.listener.before_step(optimizer)
        finally:
            self.inside = False
        self.listener.after_step(optimizer, False)


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
