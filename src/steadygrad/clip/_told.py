"""What a folded clip tells whoever watches the step: the norms that it took, and that the scale is its own.

Seen from the optimizer's step alone, a factor in ``grad_scale`` and a flag in ``found_inf`` are a GradScaler's, and
the gradients are not clipped yet. A step that the clip skips is not seen at all. Both are told here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import is_
from weakref import WeakKeyDictionary

from torch import Tensor
from torch.optim import Optimizer


@dataclass(eq=False)
class Fold:
    """One step of a folded clip, from the moment that the factor is decided until the step is over."""

    params: Sequence[Tensor]  # those with a gradient
    grads: Sequence[Tensor]  # of each
    norms: Tensor  # (len(params),) L2 norm of each gradient before the clip, without a GradScaler's factor
    scale: Tensor  # 0-D: the clip's factor; 1 if the joint norm is not finite
    folded: bool  # ``grad_scale`` and ``found_inf`` of the optimizer are the clip's, not a GradScaler's

    def __post_init__(self) -> None:
        self._versions = [g._version for g in self.grads]  # the number of writes to it

    def raw_norms(self, params: Sequence[Tensor]) -> list[float] | None:
        """The norm of each gradient before the clip; nan where there is none. One read by the host.

        None where they have to be taken anew: a gradient was changed since or is not the clip's, or one of the
        norms is not finite, which in float32 may be an overflow.
        """
        known = self.norms.tolist()  # host sync
        if not math.isfinite(sum(known)):
            return None
        if self._are_those_of(params):
            return known
        fresh = {
            id(p): norm
            for p, grad, version, norm in zip(self.params, self.grads, self._versions, known, strict=True)
            if p.grad is grad and grad._version == version
        }
        found = []
        for p in params:
            if p.grad is None or not p.grad.numel():
                found.append(math.nan if p.grad is None else 0.0)
            elif id(p) in fresh:
                found.append(fresh[id(p)])
            else:
                return None
        return found

    def _are_those_of(self, params: Sequence[Tensor]) -> bool:
        """Whether these are the parameters of the clip, one for one, with the gradients that it saw."""
        return (
            len(params) == len(self.params)
            and all(map(is_, params, self.params))
            and all(map(is_, [p.grad for p in params], self.grads))
            and [g._version for g in self.grads] == self._versions
        )


_in_flight: WeakKeyDictionary[Optimizer, Fold] = WeakKeyDictionary()

skip_listeners: list[Callable[[Optimizer], None]] = []
"""Called when the clip takes no step for a gradient that is not finite, in place of the optimizer's ``step``."""


def fold_of(optimizer: Optimizer) -> Fold | None:
    """The fold whose step is being taken, or skipped, by this optimizer right now."""
    return _in_flight.get(optimizer)


@contextmanager
def told(optimizer: Optimizer, fold: Fold) -> Iterator[None]:
    """Inside the block this fold is in flight."""
    _in_flight[optimizer] = fold
    try:
        yield
    finally:
        _in_flight.pop(optimizer, None)


def skipped(optimizer: Optimizer) -> None:
    """The clip takes no step."""
    for listener in list(skip_listeners):
        listener(optimizer)
