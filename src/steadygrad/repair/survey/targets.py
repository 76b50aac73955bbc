"""Survey ``targets``: which layers make the predictions of a regression, and what its targets are like."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, ClassVar

import numpy as np
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from steadygrad.graph._head import RESHAPES
from steadygrad.graph._terms import as_columns
from steadygrad.graph.loss import SeenTerm, read_loss
from steadygrad.graph.targets import Targets
from steadygrad.graph.walk import Graph, Node, op
from steadygrad.probe.names import find_compiled
from steadygrad.repair.effects._modes import RunMode
from steadygrad.repair.effects.effect import Models
from steadygrad.repair.survey.by_layer import ByLayer
from steadygrad.repair.survey.inputs import rounded

LOOKS = 32  # backward passes of which the targets are measured
MAX_KEPT = 256  # outputs from a forward to its backward
MAX_PLAIN = 8  # of these without a history
POWERS = {"mse": 2, "l1": 1, "smooth_l1": 1, "huber": 1}  # of the deviation in the gradient of each loss
OUTLIER = 20.0  # times the median batch
VARIES = 1e-6  # relative to the mean: less is a constant
MAX_COLUMNS = 512
MAX_HOPS = 4
MAX_DIFFERENCES = 64
DIFFERENCES = ("sub", "subtract", "__sub__", "__rsub__", "rsub")
READABLE = 1e3  # times the targets: of a larger prediction, target = prediction - error is lost in rounding


_Output = tuple[Node, int, nn.Module, Tensor]  # its node and number there, the layer that made it


class TargetsOf(ByLayer["_Seen"]):
    """The targets of each regression in the first backward passes, with the layer that makes the prediction.

    ``found()``: ``{"modules": {path: {"mean", "std", "axis", "power", "rms", "ratio"}}}``, with ``rms`` of all targets
    and ``ratio`` of the largest deviation of a column to the smallest. Left out are constant targets, such as have been
    computed by the model itself, and layers whose output is used for anything else than the one loss.
    """

    key: ClassVar[str] = "targets"

    def __init__(self, value: Any = None) -> None:
        super().__init__()
        self._outputs: deque[_Output] = deque(maxlen=MAX_KEPT)
        self._plain: deque[Tensor] = deque(maxlen=MAX_PLAIN)
        self._looks = 0
        self._handle: Any = None
        self._differences = _Differences()

    def install(self) -> None:
        self._handle = register_module_forward_hook(self._leave)

    def models(self, models: Models) -> None:
        super().models(models)
        if (
            self._looks == 0 and self._handle is not None and not find_compiled()
        ):  # which a mode does not go with
            self._differences.enter()

    def remove(self) -> None:
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
        self._outputs.clear()
        self._plain.clear()
        self._differences.leave()

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        if not isinstance(output, Tensor) or not output.is_floating_point():
            return
        if output.grad_fn is not None and any(True for _ in module.parameters(recurse=False)):
            self._outputs.append((output.grad_fn, output.output_nr, module, output))
        elif not output.requires_grad:
            self._plain.append(output)

    def backward(self, roots: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        outputs, plain = list(self._outputs), list(self._plain)
        self._outputs.clear()
        self._plain.clear()
        self._looks += 1
        if self._looks > LOOKS:
            return
        try:
            self._look(roots, outputs, plain)
        except Exception:  # noqa: BLE001 - a graph that cannot be read says nothing of targets
            self._looks = LOOKS
        if self._looks == LOOKS:
            self.remove()

    def _look(self, roots: Sequence[Tensor], outputs: Sequence[_Output], plain: Sequence[Tensor]) -> None:
        graph = Graph(roots)
        makers = {(node, number): (module, output) for node, number, module, output in outputs}
        made = [output for *_, output in outputs]
        # A target may also have been cut off from an output that has a history.
        sources = [*plain, *(output.detach() for output in made[-MAX_PLAIN:])]
        for seen in read_loss(graph, roots, made, sources):
            maker = _behind(graph, seen, makers) if seen.term.kind in POWERS else None
            if maker is not None and seen.targets is not None:
                module, output = maker
                target = self._differences.target_of(seen.node)
                self._seen.setdefault(module, _Seen()).take(seen, seen.targets, output, target)


class _Differences(RunMode):
    """Keeps what is subtracted from a prediction, which autograd does not."""

    def __init__(self) -> None:
        super().__init__()
        self._kept: deque[tuple[Node, Tensor]] = deque(maxlen=MAX_DIFFERENCES)

    def call(self, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        out = func(*args, **kwargs)
        if name in DIFFERENCES and isinstance(out, Tensor) and out.grad_fn is not None and len(args) == 2:
            constants = [a for a in args if isinstance(a, Tensor) and not a.requires_grad]
            if len(constants) == 1:
                self._kept.append((out.grad_fn, constants[0].detach()))
        return out

    def target_of(self, node: Node) -> Tensor | None:
        """What was subtracted in the difference that this node squares, or takes the size of."""
        known = dict(self._kept)
        for _ in range(MAX_HOPS):
            if node is None or node in known:
                return known.get(node)
            node = node.next_functions[0][0] if node.next_functions else None
        return None

    def leave(self) -> None:
        super().leave()
        self._kept.clear()


def _behind(
    graph: Graph, seen: SeenTerm, makers: Mapping[tuple[Node, int], tuple[nn.Module, Tensor]]
) -> tuple[nn.Module, Tensor] | None:
    """The layer whose output the prediction is, reshaped at most, and used for nothing else."""
    node, number = seen.maker, 0
    while node is not None and graph.times_used(node, number) == 1:
        if (node, number) in makers:
            return makers[node, number]
        if op(node) not in RESHAPES:
            return None
        node, number = node.next_functions[0]
    return None


@dataclass(frozen=True)
class _Batch:
    """Of each column."""

    weight: np.ndarray
    mean: np.ndarray
    squares: np.ndarray  # weighted sum of squared deviations

    @property
    def mean_square(self) -> float:
        total = self.weight.sum()
        return float((self.squares + self.weight * self.mean**2).sum() / total) if total > 0 else math.nan


def _batch(target: Tensor, shape: tuple[int, ...], columns: int) -> _Batch:
    values = as_columns(target.expand(shape) if target.ndim <= len(shape) else target).double()
    rows: np.ndarray = values.reshape(-1, columns).cpu().numpy()  # host sync
    return _Batch(np.full(columns, float(len(rows))), rows.mean(0), rows.var(0) * len(rows))


class _Seen:
    """The targets of one layer, batch by batch."""

    def __init__(self) -> None:
        self._batches: list[_Batch] = []
        self._axes: set[int] = set()
        self._powers: set[int] = set()
        self._refused = False

    def take(self, seen: SeenTerm, targets: Targets, output: Tensor, target: Tensor | None) -> None:
        """One batch; ``target``: the tensor itself, where it was seen."""
        axis = 1 if output.ndim > 3 else -1
        columns = len(targets.mean)
        same = tuple(output.shape) == seen.shape or columns == 1
        if seen.term.target_moves or not same or columns > 1 and output.shape[axis] != columns:
            self._refused = True
            return
        if target is not None:
            batch = _batch(target, seen.shape, columns)
        elif seen.term.prediction_rms < READABLE * seen.term.target_rms:
            batch = _Batch(targets.weight, targets.mean, targets.squares)
        else:
            return
        if math.isfinite(batch.mean_square):
            self._batches.append(batch)
            self._axes.add(axis)
            self._powers.add(POWERS[seen.term.kind])

    def facts(self) -> dict[str, Any] | None:
        """None if they are not to be scaled."""
        alike = len(self._axes) == len(self._powers) == len({len(b.mean) for b in self._batches}) == 1
        if self._refused or not self._batches or not alike:
            return None
        limit = OUTLIER * median(b.mean_square for b in self._batches)
        kept = [b for b in self._batches if b.mean_square <= limit] or self._batches
        weight = np.sum([b.weight for b in kept], 0)
        if not (weight > 0).all():
            return None
        mean = np.sum([b.weight * b.mean for b in kept], 0) / weight
        square = np.sum([b.squares + b.weight * b.mean**2 for b in kept], 0) / weight
        std = np.sqrt(np.maximum(square - mean**2, 0.0))
        varies = std > VARIES * (VARIES + np.sqrt(square))
        if not varies.any():
            return None
        ratio = float(std[varies].max() / std[varies].min())
        std = np.where(varies, std, 1.0)
        if len(std) > MAX_COLUMNS:
            mean, std = mean.mean(keepdims=True), np.sqrt(square.mean(keepdims=True) - mean.mean() ** 2)
        numbers = {"mean": [rounded(v) for v in mean.tolist()], "std": [rounded(v) for v in std.tolist()]}
        single = {name: v[0] if len(v) == 1 else v for name, v in numbers.items()}
        rms = math.sqrt(float(square.mean()))
        return {
            **single,
            "axis": self._axes.copy().pop(),
            "power": self._powers.copy().pop(),
            "rms": rounded(rms),
            "ratio": rounded(ratio),
        }
