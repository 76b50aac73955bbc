"""Where values that are not finite come from: every tensor that holds one is traced back to who made the first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from steadygrad.locating.frames import Site
from steadygrad.locating.values import Value, storage_key

Kind = Literal["forward", "backward", "loss", "optimizer", "data"]


@dataclass
class Candidate:
    """An operation that made something that is not finite out of finite values. Whether it matters shows later."""

    order: int
    kind: Kind
    module: nn.Module | None
    op: str
    site: Site
    step: int
    batch: int
    sample: int | None
    value: Value
    detail: str
    growth: str = ""
    models_begun: int = (
        0  # so many models had been called: a "loss" before another one is part of the forward pass
    )


class Origins:
    """Who made the non-finite values of each tensor, by the memory that a tensor shares with its views."""

    MEANT = Candidate(-1, "data", None, "", Site("", 0), 0, 0, None, "-inf", "an infinity that was asked for")

    def __init__(self) -> None:
        self._by_storage: dict[int, Candidate] = {}

    def of(self, tensor: Tensor) -> Candidate | None:
        """None: it came from outside, before anybody looked."""
        return self._by_storage.get(storage_key(tensor))

    def set(self, tensor: Tensor, origin: Candidate | None) -> None:
        """None: whatever it holds, nobody under watch is behind it."""
        if origin is None:
            self._by_storage.pop(storage_key(tensor), None)
        else:
            self._by_storage[storage_key(tensor)] = origin
