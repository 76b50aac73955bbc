"""One term of a loss as it stands in the graph: its elements, their weights, its targets, its prediction."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from steadygrad.graph._head import Way
from steadygrad.graph.targets import MAX_COLUMNS
from steadygrad.graph.walk import Node

THIN_ABOVE = 2**18  # elements; of more targets a part is enough for a mean and a variance


@dataclass(frozen=True, slots=True)
class RawTerm:
    """Tensors of the step's own data. Lives no longer than the reading."""

    kind: str
    node: Node
    shape: tuple[int, ...]  # of the prediction, broadcast against its targets
    loss: Tensor  # of each element, unreduced
    weight: Tensor  # derivative of the whole loss by each of them, same shape
    way: Way
    target: Tensor | None = (
        None  # values [rows, columns]; class indices [rows]; distributions [rows, classes]
    )
    target_weight: Tensor | None = None  # of values: weight of the element [rows, columns]
    prediction: Tensor | None = None  # as read, in any shape
    maker: Node | None = None  # node whose values are the prediction; of a cross entropy, its logits
    classes: int = 0
    knee: float = 0.0
    pos_weight: Tensor | None = None
    reduction: int = 0  # of torch's own node: 0 none, 1 mean, 2 sum
    moves: bool = False  # the target has a history: gradients flow into it
    paired: int = 0  # so many predictions were each broadcast against as many targets; 0: no such table
    normalised: Tensor | None = None  # of a cross entropy: whether its log-probabilities sum to 1

    @property
    def indices(self) -> bool:
        """Whether the targets are class indices."""
        return self.target is not None and self.target.ndim == 1

    @property
    def columns(self) -> int:
        """Targets of one row: a row is one sample, or one position of it."""
        return 1 if self.classes else num_columns(tuple(self.loss.shape))


def as_columns(value: Tensor) -> Tensor:
    """A tensor as ``[rows, columns]``; of a large one, every third row of its longest axes.

    Columns are the last axis of two or three, the channels (axis 1) of four or more; one column for anything less, and
    where there would be too many.
    """
    columns = num_columns(tuple(value.shape))
    axis = 1 if value.ndim > 3 else value.ndim - 1
    while value.numel() > THIN_ABOVE:  # a view: three is no period of alternating classes
        longest = max(
            (d for d in range(value.ndim) if d != axis or columns == 1), key=lambda d: value.shape[d]
        )
        if value.shape[longest] < 3:
            break
        value = value[(slice(None),) * longest + (slice(None, None, 3),)]
    if value.ndim > 3:
        value = value.movedim(1, -1)
    return value.reshape(-1, columns)


def num_columns(shape: tuple[int, ...]) -> int:
    """Columns of targets of such a shape."""
    if len(shape) < 2:
        return 1
    columns = shape[1 if len(shape) > 3 else -1]
    return columns if 0 < columns <= MAX_COLUMNS else 1


def spread(gradient: Tensor, shape: tuple[int, ...], reduction: int) -> Tensor:
    """Weight of each element of a torch loss, from the gradient at its node."""
    gradient = gradient.float()
    if reduction == 0:
        return gradient
    return (gradient / max(prod(shape), 1) if reduction == 1 else gradient).expand(shape)


def wide(value: Tensor) -> Tensor:
    """At least float32, for sums."""
    return value if value.dtype in (torch.float32, torch.float64) else value.float()
