"""A step that is over, with numbers that may still be on their way from a device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from steadygrad.probe.host import Pending, post
from steadygrad.probe.look import Look
from steadygrad.probe.norms import MISSING, total_norm, with_infinities
from steadygrad.records import StepStats


class Unread:
    """A step that is taken before the host knows its gradients: the device decides on it, and says so later.

    Args:
        stats: of the step, without loss and norms.
        norms: of the gradients, 0-D each, on their device.
        present: whether each of the optimizer's parameters has a gradient; as many of them have as there are norms.
        loss: of the step, on its way; None if none was seen.
    """

    def __init__(
        self, stats: StepStats, norms: Sequence[Tensor], present: Sequence[bool], loss: Pending | None
    ) -> None:
        self.stats = stats
        self.norms = norms
        self.further: list[float] = []  # what was sent along, once it is read
        self._present, self._loss = present, loss
        self._posted = Pending([])

    def send(self, skip: Tensor, further: Sequence[Tensor]) -> None:
        """Send the norms to the host, and with them whether the step is left out, and ``further`` 0-D tensors."""
        self._posted = post([*self.norms, skip, *further])
        self.norms = ()

    def read(self, stats: StepStats) -> StepStats:
        """The same step with its loss and norms, ``applied`` as the device has decided; waits for them if need be."""
        numbers = self._posted.numbers()  # host sync
        count = sum(self._present)
        found = iter(with_infinities(numbers[:count]))
        self.further = numbers[count + 1 :]
        norms = np.array([next(found) if has else MISSING for has in self._present])
        joint = total_norm(norms)
        return replace(
            stats,
            loss=self._loss.numbers()[0] if self._loss is not None else None,
            grad_norm=joint,
            clipped_grad_norm=joint,
            grad_norms=norms,
            applied=not numbers[count],
        )


@dataclass(frozen=True, slots=True)
class Ended:
    """A step that is over."""

    stats: StepStats  # without ``tensors`` as long as those are on their way
    on_its_way: Look | None = None
    unread: Unread | None = None  # the host does not know yet what became of it

    @property
    def waits(self) -> bool:
        """Whether there are numbers on their way."""
        return self.on_its_way is not None or self.unread is not None

    def complete(self) -> StepStats:
        """The step with all its numbers; waits for them if need be. To be asked before the optimizer's next step."""
        stats = self.stats if self.unread is None else self.unread.read(self.stats)
        if self.on_its_way is not None:
            stats = replace(stats, tensors=self.on_its_way.finish(stats.applied))  # host sync
        return stats
