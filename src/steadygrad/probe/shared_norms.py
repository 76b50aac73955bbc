"""The norms that torch takes of the gradients for the user's clip, at hand in the moment that the clip is told."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from weakref import ref

import torch
from torch import Tensor

from steadygrad.probe.host import post
from steadygrad.probe.norms import MISSING

# Of bf16 and fp16 torch takes norms of 8 and 11 bits, the probe of 24.
SHARED = {torch.float32, torch.float64}
DEVICES = {"cpu", "cuda"}  # where torch reduces all gradients in one call


class SharedNorms:
    """The L2 norm of each of some gradients, as long as nothing is written to them.

    Args:
        grads: such as `can_share` allows; held weakly.
        norms: of each, 0-D.
    """

    def __init__(self, grads: Sequence[Tensor], norms: Sequence[Tensor]) -> None:
        self._kept = [(ref(grad), grad._version) for grad in grads]  # _version: the number of writes
        self._norms = norms
        self._read: list[float] | None = None

    def are_of(self, grads: Sequence[Tensor]) -> bool:
        """Whether it is just these gradients, in this order, and as they were."""
        return len(grads) == len(self._kept) and all(
            kept() is grad and grad._version == version
            for (kept, version), grad in zip(self._kept, grads, strict=True)
        )

    def of(self, grads: Sequence[Tensor | None]) -> list[float] | None:
        """The norms of these, nan where there is no gradient. One read by the host, for all who ask.

        None where they have to be taken anew: a gradient is not among ours or was written to, or one of the norms
        is not finite, which may be an overflow.
        """
        if self._read is None:
            self._read = post(self._norms).numbers()  # host sync
        if not all(map(math.isfinite, self._read)):
            return None
        known = {
            id(grad): norm
            for (kept, version), norm in zip(self._kept, self._read, strict=True)
            if (grad := kept()) is not None and grad._version == version
        }
        found = [MISSING if grad is None else known.get(id(grad)) for grad in grads]
        return None if None in found else found  # type: ignore[return-value]


def can_share(grads: object) -> bool:
    """Whether these are plain dense float32 or float64 gradients of one dtype and device, with no graph on them."""
    return (
        type(grads) is list
        and {type(g) for g in grads} == {Tensor}
        and len({(g.dtype, g.device) for g in grads}) == 1
        and grads[0].dtype in SHARED
        and grads[0].device.type in DEVICES
        and {g.layout for g in grads} == {torch.strided}
        and not any(g.requires_grad or g.is_inference() for g in grads)
    )


_at_hand: list[SharedNorms] = []


@contextmanager
def at_hand(norms: SharedNorms | None) -> Iterator[None]:
    """Inside the block these norms are at hand, if there are any."""
    if norms is None:
        yield
        return
    _at_hand.append(norms)
    try:
        yield
    finally:
        _at_hand.remove(norms)


def norms_at_hand(grads: Sequence[Tensor | None]) -> list[float] | None:
    """The norms of these gradients, if a clip that is just being told has them; see `SharedNorms.of`."""
    return _at_hand[-1].of(grads) if _at_hand else None
