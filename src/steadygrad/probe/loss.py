"""The loss of a step, from the roots of the backward passes that made its gradients."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from steadygrad.probe.host import Pending, near, post


class LossKeeper:
    """Sums the roots of ``backward`` since the last step of any optimizer.

    With gradient accumulation that is the sum over the micro-batches, which loops divide beforehand. Where two
    optimizers step on the gradients of the same backward passes, both get the same sum. Closures that are
    evaluated again inside a step (LBFGS) do not count: the loss of a step is that of its first evaluation.
    """

    def __init__(self) -> None:
        self._roots: list[Tensor] = []
        self._read = False
        self._passes = 0
        self.in_step = False

    def saw(self, roots: Sequence[Tensor]) -> None:
        """A backward pass begins on these 0-D values."""
        if self.in_step:
            return
        if self._read:
            self.forget()
        self._roots.extend(roots)
        self._passes += 1

    def forget(self) -> None:
        """The gradients of these passes came to nothing (a scaler's overflow)."""
        self._roots.clear()
        self._passes, self._read = 0, False

    def read(self) -> tuple[float | None, int]:
        """The loss of the coming step, None if no root was seen, and the number of backward passes."""
        loss = self.post()
        return loss.numbers()[0] if loss is not None else None, self._passes  # host sync

    def post(self) -> Pending | None:
        """The loss of the coming step on its way to the host, None if no root was seen."""
        self._read = True
        if not self._roots:
            return None
        first, *others = self._roots
        return post([sum((root.double() for root in others), first.double()) if others else first])

    @property
    def passes(self) -> int:
        """Backward passes that the gradients of the coming step were made in."""
        return self._passes


def without_sync(values: Sequence[Tensor]) -> list[float] | None:
    """What 0-D values are worth; None where one lies on another device, for to look would be a host sync."""
    return [value.item() for value in values] if all([near(value) for value in values]) else None
