"""Numbers on their way from a device to the host: grouped reductions, and one copy for all of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


class Readings:
    """0-D tensors that go to the host together: one copy per device. Plain numbers may come along.

    Example:
        >>> readings = Readings()
        >>> readings.add_norms("norm", {"a": torch.ones(4), "b": torch.ones(9)})
        >>> readings.to_host()["norm"]
        {'a': 2.0, 'b': 3.0}
    """

    def __init__(self) -> None:
        self._known: dict[str, dict[Any, float]] = defaultdict(dict)
        self._waiting: dict[torch.device, dict[torch.dtype, tuple[list[tuple[str, Any]], list[Tensor]]]] = {}

    def add(self, kind: str, values: Mapping[Any, Tensor | float]) -> None:
        """Take these 0-D tensors and numbers along."""
        for key, value in values.items():
            if isinstance(value, Tensor):
                self._take(value, [(kind, key)], [value])
            else:
                self._known[kind][key] = value

    def add_norms(self, kind: str, tensors: Mapping[Any, Tensor]) -> None:
        """Take along the L2 norms of these tensors, in float32 at least: one grouped call per device and dtype."""
        groups: dict[tuple[torch.device, torch.dtype], list[Any]] = defaultdict(list)
        for key, tensor in tensors.items():
            groups[tensor.device, tensor.dtype].append(key)
        for (_, dtype), keys in groups.items():
            members = [tensors[key].float() if dtype.itemsize == 1 else tensors[key] for key in keys]
            wide = torch.float64 if dtype == torch.float64 else torch.float32
            found = torch._foreach_norm(members, 2, dtype=wide)
            self._take(found[0], [(kind, key) for key in keys], found)

    def _take(self, like: Tensor, names: list[tuple[str, Any]], tensors: Sequence[Tensor]) -> None:
        """Put 0-D tensors of one device and dtype with the others of theirs."""
        of_device = self._waiting.setdefault(like.device, {})
        known, waiting = of_device.setdefault(like.dtype, ([], []))
        known += names
        waiting += tensors

    def to_host(self) -> dict[str, dict[Any, float]]:
        """kind -> key -> number. A kind that nothing was added for is empty."""
        numbers = defaultdict(dict, self._known)
        for device, groups in self._waiting.items():
            names = [name for known, _ in groups.values() for name in known]
            for (kind, key), value in zip(names, _read(device, groups.values()), strict=True):
                numbers[kind][key] = value
        return numbers


def _read(device: torch.device, groups: Iterable[tuple[Any, list[Tensor]]]) -> list[float]:
    if device.type == "cpu":  # nothing to wait for: a number each is the cheapest way to read them
        return [tensor.item() for _, tensors in groups for tensor in tensors]
    wide = torch.float32 if device.type == "mps" else torch.float64
    return torch.cat([torch.stack(tensors).to(wide) for _, tensors in groups]).tolist()  # host sync
