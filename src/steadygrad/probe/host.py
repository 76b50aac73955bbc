"""The way from a device to the host: numbers are posted where they are made, and waited for where they are needed.

Every number that the hot path reads goes this way, so that what it waits for can be counted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


def near(tensor: Tensor) -> bool:
    """Whether the host reads this tensor without waiting for a device."""
    return tensor.is_cpu and _stand_in is None


def wide(device: torch.device) -> torch.dtype:
    """The widest floating dtype that this device has."""
    return torch.float32 if device.type == "mps" else torch.float64


class Pending:
    """Numbers that are at hand, or on their way."""

    def __init__(self, numbers: list[float]) -> None:
        self._numbers = numbers

    def ready(self) -> bool:
        """Whether :meth:`numbers` would not wait."""
        return True

    def numbers(self) -> list[float]:
        """The numbers, in the order in which they were posted; waits for them if need be. Can be called again."""
        return self._numbers


def post(tensors: Sequence[Tensor]) -> Pending:
    """Send 0-D tensors to the host, as they are now, and do not wait for them.

    On a CPU they are read at once. On a CUDA device they are laid in one vector, which the current stream copies to
    pinned memory while the host goes on; an event says when it has arrived. On other devices the vector stays where
    it is until it is asked for. What is no ordinary tensor (a DTensor) is read at once everywhere.

    Args:
        tensors: () each, of one device and of any dtypes without imaginary part; may be none.

    Returns:
        One number for each: exact but for integers beyond 2^53 away from the CPU (2^24 on mps, which has no
        float64). nan and inf arrive as such.

    Example:
        >>> post([torch.tensor(2.5), torch.tensor(3)]).numbers()
        [2.5, 3]
    """
    if not tensors or near(tensors[0]):
        return Pending([tensor.item() for tensor in tensors])
    if any(type(tensor) is not Tensor for tensor in tensors):
        return Pending([tensor.item() for tensor in tensors])  # host sync
    vector, places = _laid_end_to_end(tensors)
    if _stand_in is not None:
        return _stand_in.post(vector, places)
    return _Copied(vector, places) if vector.is_cuda else _Left(vector, places)


def _laid_end_to_end(tensors: Sequence[Tensor]) -> tuple[Tensor, list[int]]:
    """One vector of all, in a few calls for each dtype, and where in ``tensors`` each of its numbers stood."""
    groups: dict[torch.dtype, list[int]] = defaultdict(list)
    for i, tensor in enumerate(tensors):
        groups[tensor.dtype].append(i)
    dtype = wide(tensors[0].device)
    with torch.no_grad():
        parts = [torch.stack([tensors[i] for i in places]).to(dtype) for places in groups.values()]
        return torch.cat(parts), [i for places in groups.values() for i in places]


class _Left(Pending):
    """Numbers in a vector of our own, which lies on a device until somebody asks."""

    def __init__(self, vector: Tensor, places: list[int]) -> None:
        super().__init__([])
        self._vector: Tensor | None = vector
        self._places = places

    def ready(self) -> bool:
        return self._vector is None

    def numbers(self) -> list[float]:
        if self._vector is not None:
            self._wait()
            self._numbers = [0.0] * len(self._places)
            for place, number in zip(self._places, self._vector.tolist(), strict=True):  # host sync
                self._numbers[place] = number
            self._vector = None
        return self._numbers

    def _wait(self) -> None:
        """Reading the vector is all the waiting there is."""


class _Copied(_Left):
    """Numbers on their way to pinned memory, which torch uses again when they have been read."""

    def __init__(self, vector: Tensor, places: list[int]) -> None:
        # said in full: the script may have set another default device
        slot = torch.empty(vector.shape, dtype=vector.dtype, device="cpu", pin_memory=True)
        slot.copy_(vector, non_blocking=True)
        self._event = torch.cuda.Event()
        self._event.record(torch.cuda.current_stream(vector.device))
        super().__init__(slot, places)

    def ready(self) -> bool:
        return super().ready() or self._event.query()

    def _wait(self) -> None:
        self._event.synchronize()  # host sync, unless the device has come so far already


# ---------------------------------------------------------------------- where there is no such device
class StandIn:
    """Stands in for a device that lags behind its host, on a machine that has none.

    It works through what is posted in order, and only when it is given the time: by :meth:`catch_up`, or by a host
    that waits. ``waits`` counts how often the host did.
    """

    def __init__(self) -> None:
        self.waits = 0
        self.posted = 0
        self.done = 0

    def catch_up(self) -> None:
        """All that was posted so far has arrived."""
        self.done = self.posted

    def post(self, vector: Tensor, places: list[int]) -> Pending:
        """Take these along behind all that was posted before."""
        self.posted += 1
        return _Behind(self, vector, places)


class _Behind(_Left):
    """Numbers on their way from a stand-in."""

    def __init__(self, device: StandIn, vector: Tensor, places: list[int]) -> None:
        super().__init__(vector, places)
        self._device, self._turn = device, device.posted

    def ready(self) -> bool:
        return super().ready() or self._device.done >= self._turn

    def _wait(self) -> None:
        if not self.ready():
            self._device.waits += 1
            self._device.done = self._turn


_stand_in: StandIn | None = None


@contextmanager
def lagging() -> Iterator[StandIn]:
    """Inside the block the CPU is treated as a device that lags behind its host: for tests.

    Example:
        >>> with lagging() as device:
        ...     number = post([torch.tensor(2.5)])
        ...     number.ready(), number.numbers(), device.waits
        (False, [2.5], 1)
    """
    global _stand_in
    outer, _stand_in = _stand_in, StandIn()
    try:
        yield _stand_in
    finally:
        _stand_in = outer
