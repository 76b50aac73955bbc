"""Gradients that a step has consumed and nobody has cleared: a missing ``zero_grad``."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor
from torch.optim import Optimizer
from torch.utils.weak import TensorWeakRef

from steadygrad.probe.local import readable
from steadygrad.probe.names import flat_params
from steadygrad.records import Oddity, ParamInfo

WITNESSES = 8  # gradients that are followed from one step to the next
CERTAIN = 2  # rounds in a row
CLEARED = 3  # rounds after which a loop that clears is left alone
MOST = 6  # rounds after which any loop is


@dataclass
class _Witness:
    name: str
    param: TensorWeakRef
    grad: TensorWeakRef

    def kept(self) -> Tensor | None:
        """The consumed gradient, if it is still the parameter's."""
        param, grad = self.param(), self.grad()
        return grad if param is not None and grad is not None and param.grad is grad else None


@dataclass
class _Round:
    """What lies between two steps of one optimizer."""

    witnesses: list[_Witness] = field(default_factory=list)
    followed: int = 0
    passes: int = 0  # backward passes since
    rounds: int = 0
    in_a_row: int = 0


class KeptGradients:
    """Follows a few gradients of each optimizer from one step to the next.

    A gradient was not cleared if, at every backward pass after the step that consumed it, it is still there and not
    zero, and at the next step it is the same tensor. The look at every backward pass is what tells a gradient that
    is set to zero in place, however late: in a GAN the generator's backward fills what the discriminator clears
    only before its own.
    """

    def __init__(self) -> None:
        self._rounds: weakref.WeakKeyDictionary[Optimizer, _Round] = weakref.WeakKeyDictionary()
        self._done: weakref.WeakSet[Optimizer] = weakref.WeakSet()  # followed no more

    def backward(self) -> None:
        """A backward pass begins, outside of any step."""
        if not self._rounds:
            return
        for now in self._rounds.values():
            now.passes += 1
            now.witnesses = [w for w in now.witnesses if _nonzero(w.kept())]

    def before_step(self, optimizer: Optimizer) -> Oddity | None:
        now = self._rounds.get(optimizer)
        if now is None or not now.passes or not now.followed:
            return None
        kept = [w.name for w in now.witnesses if w.kept() is not None]
        now.rounds += 1
        now.in_a_row = now.in_a_row + 1 if kept else 0
        if now.in_a_row >= CERTAIN or now.rounds >= MOST or (not now.in_a_row and now.rounds >= CLEARED):
            del self._rounds[optimizer]
            self._done.add(optimizer)
        if now.in_a_row < CERTAIN:
            return None
        share = len(kept) / now.followed
        where = "model" if share == 1 else ", ".join(kept)
        return Oddity(
            "zero_grad_missing",
            where,
            "gradients are not cleared between steps: every step takes the sum of all gradients so far",
            {"share": share, "steps": float(now.in_a_row)},
        )

    def after_step(self, optimizer: Optimizer, infos: Sequence[ParamInfo]) -> None:
        if optimizer in self._done:
            return
        now = self._rounds.setdefault(optimizer, _Round())
        named = zip(flat_params(optimizer), infos, strict=False)
        with_grad = [(info.name, p, p.grad) for p, info in named if p.grad is not None]
        chosen = with_grad[:: max(1, -(-len(with_grad) // WITNESSES))]
        now.witnesses = [_Witness(name, TensorWeakRef(p), TensorWeakRef(grad)) for name, p, grad in chosen]
        now.followed, now.passes = len(chosen), 0


def _nonzero(grad: Tensor | None) -> bool:
    values = None if grad is None else readable(grad)
    return values is not None and bool(values.any())  # host sync
