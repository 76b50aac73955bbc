"""What waits to be written: records as they were given, and the chunks that are made of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from steadygrad.records import StepStats

Key = tuple[int, int, str, str, str]  # attempt, optimizer, kind, stat, layout

_NO_NORMS = np.zeros(0, dtype=np.float32)


class Detail(NamedTuple):
    """One signal of one step, of many tensors."""

    attempt: int
    optimizer: int
    kind: str
    stat: str
    step: int
    columns: np.ndarray | None  # uint32, sparse; None: values has every column
    values: np.ndarray  # float32 or float64; negative where nothing was measured

    @property
    def key(self) -> Key:
        layout = "dense" if self.columns is None else "sparse"
        return self.attempt, self.optimizer, self.kind, self.stat, layout

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + (0 if self.columns is None else self.columns.nbytes) + 200


class Exact(NamedTuple):
    """The exact scalars of one step."""

    attempt: int
    optimizer: int
    step: int
    values: Mapping[str, float]


@dataclass(slots=True, eq=False)
class Whole:
    """A step record that nobody has taken apart yet. It stands in two queues: its detail and its scalars wait apart."""

    attempt: int
    stats: StepStats

    @property
    def nbytes(self) -> int:
        """About what the record keeps alive. The names of its parameters are shared by all."""
        stats = self.stats
        return stats.grad_norms.nbytes + 600 + 250 * (len(stats.tensors) + len(stats.activations))

    def give_up_detail(self) -> None:
        """Keep the scalars alone."""
        self.stats = replace(self.stats, grad_norms=_NO_NORMS, params=(), tensors=(), activations=())


class Chunk(NamedTuple):
    """Consecutive records of one signal, coded."""

    key: Key
    steps: list[int]  # n
    width: int  # columns: of the matrix, or at least so many where the layout is sparse; 1 for exact
    data: npt.NDArray  # dense (n, width) int16; sparse (m,) int16; exact (n,) float64
    counts: list[int] | None = None  # sparse: n, their sum is m
    columns: npt.NDArray[np.uint32] | None = None  # sparse: (m,)
