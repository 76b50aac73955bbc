"""Memory that is ready before it is needed: the first write to a page costs more than the copy itself."""

from __future__ import annotations

import contextlib
import mmap
import threading
from collections.abc import Mapping

import torch
from torch import Tensor

from steadygrad.guard.tensors import new_buffer, num_bytes, plainly

CHUNK = 16 << 20  # bytes that are touched in one call: few enough for torch to stay in this one thread


class Preparation:
    """Buffers for tensors like ``leaves``, made and touched in a thread of its own.

    The kernel gives memory page by page at the first write to it, which cost 0.4 s per GB of CPU where it was
    measured, and 2.5 s per GB on a busy machine; huge pages were slower still. Pinned memory is slow to get too.
    Only shapes and dtypes of the leaves are looked at, and not by the thread: the training may go on with them.

    Args:
        leaves: by name; strided ones.

    Example:
        >>> made = Preparation({"w": torch.ones(2, 3)}).buffers()
        >>> made["w"].shape
        torch.Size([2, 3])
    """

    def __init__(self, leaves: Mapping[str, Tensor]) -> None:
        self.num_bytes = sum(map(num_bytes, leaves.values()))
        with plainly():
            shapes = {
                name: (torch.empty_like(leaf, device="meta"), leaf.device.type == "cuda")
                for name, leaf in leaves.items()
            }
        self._made: dict[str, Tensor] = {}
        self._thread = threading.Thread(
            target=self._make, args=(shapes,), name="steadygrad-memory", daemon=True
        )
        self._thread.start()

    @property
    def done(self) -> bool:
        """Whether :meth:`buffers` returns at once. So it does in a forked child, which has no such thread."""
        return not self._thread.is_alive()

    def buffers(self) -> dict[str, Tensor]:
        """The buffers by name, waited for. Fewer than asked for where there was no memory for all."""
        self._thread.join()
        return self._made

    def _make(self, shapes: dict[str, tuple[Tensor, bool]]) -> None:
        # Whoever takes what is missing asks for the memory again, and is told then.
        with plainly(), contextlib.suppress(MemoryError, RuntimeError):
            for name, (like, pinned) in shapes.items():
                buffer = new_buffer(like, pinned=pinned)
                if not buffer.is_pinned():
                    _touch_(buffer)
                self._made[name] = buffer


def _touch_(buffer: Tensor) -> None:
    """Write to every page of a buffer that nobody uses yet."""
    memory = torch.empty(0, dtype=torch.uint8).set_(buffer.untyped_storage())
    for chunk in memory.split(CHUNK):
        chunk[:: mmap.PAGESIZE].zero_()
