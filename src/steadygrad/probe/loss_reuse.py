"""A loss that is differentiated twice, and one whose graph grows from step to step."""

from __future__ import annotations

import weakref
from collections.abc import Sequence

from torch import Tensor
from torch.optim import Optimizer

from steadygrad.probe.local import readable
from steadygrad.probe.names import flat_params
from steadygrad.records import Oddity

CERTAIN = 2  # steps with a loss that was used twice
LOOKS = 5  # steps
WITNESSES = 8  # parameters of each optimizer that show whether gradients are there
SIZES = 4  # sizes of the graph that lie on one line
LEAST_GROWTH = 0.25  # per step, of the first size


class LossReuse:
    """Looks at the roots of the backward passes of the first steps.

    A root is used twice if it comes again before a step while the gradients of its first pass are still there. A
    graph grows if its size at four looks lies exactly on a rising line over the steps, as where the loss of a
    step is added to the losses before it and all are differentiated.
    """

    def __init__(self) -> None:
        self._optimizers: weakref.WeakSet[Optimizer] = weakref.WeakSet()
        self._roots: dict[
            tuple[int, int], Tensor
        ] = {}  # held until the step, so that no address is used again
        self._twice = self._looks = 0
        self._again = False
        self._sizes: list[tuple[int, int]] = []  # (step, nodes)
        self._grows = False

    def backward(self, roots: Sequence[Tensor]) -> None:
        """A backward pass begins on these 0-D values."""
        if self._looks >= LOOKS:
            return
        for root in roots:
            value = readable(root)
            if value is None or not value.data_ptr():
                continue
            key = (value.data_ptr(), value._version)
            self._again |= key in self._roots and self._gradients_there()
            self._roots[key] = value

    def before_step(self, optimizer: Optimizer) -> Oddity | None:
        """Gradients have been made; roots are no longer compared with those to come."""
        if self._looks >= LOOKS:
            return None
        self._optimizers.add(optimizer)
        again, self._again = self._again, False
        self._looks += bool(self._roots)
        self._roots.clear()
        self._twice += again
        if not again or self._twice != CERTAIN:
            return None
        return Oddity(
            "loss_used_twice",
            "loss",
            "backward is called twice on the same loss before a step: its gradient counts double",
            {"steps": float(self._twice)},
        )

    def graph_size(self, step: int, nodes: int) -> Oddity | None:
        """The graph of this step's loss has so many nodes."""
        if self._grows or len(self._sizes) >= SIZES or any(step == s for s, _ in self._sizes):
            return None
        self._sizes.append((step, nodes))
        if len(self._sizes) < SIZES:
            return None
        (first, size), (last, most) = self._sizes[0], self._sizes[-1]
        on_a_line = all(
            (n - size) * (last - first) == (most - size) * (s - first) for s, n in self._sizes[1:-1]
        )
        rate = (most - size) / (last - first)
        if not on_a_line or rate < LEAST_GROWTH * size:
            return None
        self._grows = True
        return Oddity(
            "graph_grows",
            "loss",
            f"the graph of the loss grows by {rate:.0f} operations every step: what earlier steps computed is "
            f"differentiated again (a sum of losses or a state that is not detached)",
            {"nodes": float(most), "growth": rate},
        )

    def _gradients_there(self) -> bool:
        """Whether the first pass has left gradients that the second will add to."""
        grads = (
            readable(p.grad)
            for optimizer in list(self._optimizers)
            for p in flat_params(optimizer)[:WITNESSES]
        )
        return any(grad is not None and bool(grad.any()) for grad in grads)  # host sync
