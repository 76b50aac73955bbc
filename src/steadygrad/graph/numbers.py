"""Small tensors brought to the host together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from steadygrad.records import NAN


@torch.no_grad()
def numbers(tensors: Sequence[Tensor | None]) -> list[float]:
    """The values of 0-D tensors, one copy per device; nan for None."""
    out = [NAN] * len(tensors)
    by_device: dict[torch.device, list[tuple[int, Tensor]]] = {}
    for i, tensor in enumerate(tensors):
        if tensor is not None:
            by_device.setdefault(tensor.device, []).append((i, tensor.float()))
    for entries in by_device.values():
        for (i, _), value in zip(
            entries, torch.stack([t for _, t in entries]).tolist(), strict=True
        ):  # host sync
            out[i] = value
    return out
