"""Gradients that a ``zero_grad`` takes away between the backward pass that gave them and the step they were for."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from steadygrad.probe.local import readable
from steadygrad.probe.names import flat_params
from steadygrad.repair.effects._replaced import Replaced


@dataclass
class Lost:
    """One parameter's gradient that was cleared since the last backward pass, or between several for one step."""

    param: Tensor
    zeroed: Tensor | None  # the gradient that is 0 now; None: there is none any more
    grad: Tensor | None  # the sum of what was cleared; None if nobody keeps it
    by: dict[Hashable, None] = field(default_factory=dict)  # the calls that did it
    again: bool = False  # cleared once more, with no pass between: by the next pass this was meant
    back: bool = False  # it is the parameter's gradient again

    def put_back(self) -> None:
        if self.back or self.grad is None:
            return
        if self.zeroed is None:
            self.param.grad = self.grad
        else:
            self.zeroed.copy_(self.grad)
        self.back = True

    def clear(self) -> None:
        """As the user's call did."""
        if self.back:
            if self.zeroed is None:
                self.param.grad = None
            else:
                self.zeroed.zero_()
        self.back = False

    def take_away(self) -> None:
        """No step has followed: it waits for one again."""
        if self.back and self.param.grad is not None:
            self.grad = self.param.grad if self.zeroed is None else self.param.grad.detach().clone()
        self.clear()


class Cleared:
    """Follows what every ``zero_grad`` clears, of optimizers and of modules.

    An optimizer that has taken a step with gradients which its loop has left it clears in the right place: it is not
    followed any more, and the backward pass of that step has no further use.

    Args:
        keep: hold the gradients that are cleared.
        by: tells which call of the user's clears; called where one clears something that no step has seen.
    """

    def __init__(self, *, keep: bool, by: Callable[[], Hashable | None] = lambda: None) -> None:
        self._keep, self._by = keep, by
        self._lost: dict[int, Lost] = {}
        self._sound: WeakSet[Optimizer] = WeakSet()
        self._passed = self._in_step = False
        self._replaced = Replaced()

    def install(self) -> None:
        self._replaced.put(Optimizer, "zero_grad", lambda original: self._around(original, flat_params))
        self._replaced.put(nn.Module, "zero_grad", lambda original: self._around(original, _parameters))

    def remove(self) -> None:
        self._replaced.remove()
        self._drop()

    # ------------------------------------------------------------------ what the run tells
    def passing(self) -> None:
        """A backward pass is about to begin."""
        if self._in_step:
            return
        self._passed = True
        for key, lost in list(self._lost.items()):
            if lost.again:
                lost.clear()
                del self._lost[key]
            else:
                lost.take_away()

    def stepping(self, optimizer: Optimizer) -> list[Lost]:
        """An optimizer is about to step: what was cleared of its gradients, if it has no others."""
        self._in_step = True
        params = flat_params(optimizer)
        lost = self.of(params)
        if not lost and any(p.grad is not None for p in params):
            self._sound.add(optimizer)
            self._drop()
        return lost

    def stepped(self) -> None:
        """The step is over, or has raised."""
        self._in_step = False

    def settle(self, done: Iterable[Lost]) -> None:
        """The step that these were for is over: they are cleared as the user wanted."""
        for lost in done:
            lost.clear()
            self._lost.pop(id(lost.param), None)

    def of(self, params: Sequence[Tensor]) -> list[Lost]:
        """What was cleared of these parameters' gradients; none if one of them has another gradient."""
        lost = [self._lost[id(p)] for p in params if id(p) in self._lost]
        return lost if lost and self._nothing_else(params) else []

    def put_back(self) -> list[Lost]:
        """All that are a gradient again."""
        return [lost for lost in self._lost.values() if lost.back]

    # ------------------------------------------------------------------ the calls
    def _around(self, original: Any, params: Callable[[Any], Sequence[Tensor]]) -> Any:
        def zero_grad(owner: Any, *args: Any, **kwargs: Any) -> Any:
            if self._passed and not torch.compiler.is_compiling():
                to_none = args[0] if args else kwargs.get("set_to_none", True)
                self._clearing(params(owner), to_none)
            return original(owner, *args, **kwargs)

        return zero_grad

    @torch.no_grad()
    def _clearing(self, params: Sequence[Tensor], to_none: bool) -> None:
        sound = {id(p) for optimizer in self._sound for p in flat_params(optimizer)}
        touched = []
        for p in params:
            if id(p) in sound:
                continue
            lost = self._lost.get(id(p))
            if p.grad is not None and (lost is None or lost.zeroed is not p.grad or self._holds(p.grad)):
                lost = self._lost[id(p)] = self._sum(lost, p, p.grad, to_none)
                touched.append(lost)
            elif lost is not None:
                lost.again = True
                lost.zeroed = None if to_none else lost.zeroed
                touched.append(lost)
        if touched and (by := self._by()) is not None:
            for lost in touched:
                lost.by[by] = None

    def _sum(self, before: Lost | None, param: Tensor, grad: Tensor, to_none: bool) -> Lost:
        kept = None
        if self._keep:
            kept = grad if to_none else grad.detach().clone()
            if before is not None and before.grad is not None and not before.back:
                kept = before.grad + kept
        return Lost(param, None if to_none else grad, kept, before.by if before is not None else {})

    def _nothing_else(self, params: Sequence[Tensor]) -> bool:
        doubtful = []
        for p in params:
            lost = self._lost.get(id(p))
            if p.grad is None or (lost is not None and lost.back):
                continue
            if lost is None or lost.zeroed is not p.grad:
                return False
            doubtful.append(p.grad)
        return not any(self._holds(grad) for grad in doubtful)

    @staticmethod
    def _holds(grad: Tensor) -> bool:
        """Whether a gradient that was set to 0 has got values since."""
        values = readable(grad)
        return values is None or bool(values.any())  # host sync, until the first step with gradients

    def _drop(self) -> None:
        self._passed = False
        for lost in self._lost.values():
            lost.clear()
        self._lost.clear()


def _parameters(module: nn.Module) -> Sequence[Tensor]:
    return list(module.parameters())
