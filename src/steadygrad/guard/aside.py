"""Copies from a GPU that the training does not wait for. Not measured: no GPU was at hand when it was written."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from steadygrad._foreach import copy_grouped_

FREE_SHARE = (
    0.25  # of a GPU's free memory that a copy on it may take for a while; the training may need the rest
)

_streams: dict[torch.device, torch.cuda.Stream] = {}  # one for each GPU and process


class AsideCopies:
    """Copies from GPUs into pinned memory that are under way.

    The training may write to its tensors as soon as :meth:`copy_` returns, whoever does it and however: they are
    first copied on the GPU, in the order of the training's own stream, and go to the host from there on a stream
    of their own. Waiting just before the next optimizer step instead would save that copy, but a script that
    clamps or exchanges its weights in between would tear the snapshot. Where the GPU has no room for the copy,
    the training's stream itself carries the values to the host.
    """

    def __init__(self) -> None:
        self._events: list[torch.cuda.Event] = []

    def copy_(self, targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
        """Begin to copy every source, on any GPU, into its target on the CPU. No host sync."""
        pairs: dict[torch.device, tuple[list[Tensor], list[Tensor]]] = defaultdict(lambda: ([], []))
        for target, source in zip(targets, sources, strict=True):
            pairs[source.device][0].append(target)
            pairs[source.device][1].append(source)
        for device, (to, of) in pairs.items():
            self._events.append(_begin(device, to, of))

    def wait(self) -> None:
        """Until all copies are complete."""
        for event in self._events:
            event.synchronize()  # host sync: the copies from the GPU may still be under way
        self._events.clear()


def has_room(needed: int, free: int) -> bool:
    """Whether ``needed`` bytes may be taken for a while on a GPU that has ``free`` bytes to spare."""
    return needed <= FREE_SHARE * free


def _begin(device: torch.device, targets: list[Tensor], sources: list[Tensor]) -> torch.cuda.Event:
    stream = torch.cuda.current_stream(device)
    staged = _staged(device, sources)
    if staged is not None:
        sources = staged
        side = _side_stream(device)
        side.wait_stream(stream)
        for tensor in staged:
            tensor.record_stream(side)  # its memory is given to nobody else before the copy has left it
        stream = side
    with torch.cuda.stream(stream):
        copy_grouped_(targets, sources, non_blocking=True)
    event = torch.cuda.Event()
    event.record(stream)
    return event


def _staged(device: torch.device, sources: list[Tensor]) -> list[Tensor] | None:
    """Copies on the GPU itself, made in the order of the training's stream. None if there is no room for them."""
    free, _ = torch.cuda.mem_get_info(device)
    if not has_room(sum(source.nbytes for source in sources), free):
        return None
    try:
        staged = [torch.empty_like(source) for source in sources]
    except torch.OutOfMemoryError:
        return None
    copy_grouped_(staged, sources)
    return staged


def _side_stream(device: torch.device) -> torch.cuda.Stream:
    if device not in _streams:
        _streams[device] = torch.cuda.Stream(device)
    return _streams[device]
