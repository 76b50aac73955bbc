"""Numbers on their way from a device to the host: grouped reductions, and one copy for all of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from steadygrad.probe.host import Pending, post

SAFE = (1e-15, 1e18)  # float32 norms between these have squares that neither under- nor overflow
Numbers = dict[str, dict[Any, float]]


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
        self._waiting: dict[torch.device, tuple[list[tuple[str, Any]], list[Tensor]]] = {}

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
        """Put 0-D tensors of one device with the others of theirs."""
        known, waiting = self._waiting.setdefault(like.device, ([], []))
        known += names
        waiting += tensors

    def post(self) -> Posted:
        """Send them off, one copy for each device."""
        letters = [(names, post(tensors)) for names, tensors in self._waiting.values()]
        return Posted(self._known, letters)

    def to_host(self) -> Numbers:
        """Send them off, and wait for them; see :meth:`Posted.numbers`."""
        return self.post().numbers()


class Posted:
    """Readings on their way."""

    def __init__(
        self, known: dict[str, dict[Any, float]], letters: list[tuple[list[tuple[str, Any]], Pending]]
    ) -> None:
        self._known, self._letters = known, letters

    def ready(self) -> bool:
        """Whether all have arrived."""
        return all([pending.ready() for _, pending in self._letters])

    def numbers(self) -> Numbers:
        """kind -> key -> number. A kind that nothing was added for is empty."""
        numbers = defaultdict(dict, self._known)
        for names, pending in self._letters:
            for (kind, key), value in zip(names, pending.numbers(), strict=True):  # host sync
                numbers[kind][key] = value
        return numbers
