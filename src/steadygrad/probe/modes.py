"""Training steps that are taken while the model is in evaluation mode."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from steadygrad.probe.names import class_name
from steadygrad.records import Oddity

CERTAIN = 3  # steps in a row


class EvalMode:
    """Looks at the mode of the whole model at each backward pass: one attribute per model.

    A model is told of after three steps in a row in which no backward pass saw it in training mode, if it holds
    layers that behave differently there, all of them are in evaluation mode, and they work on weights that are
    trained. Parts that were put into evaluation mode within a model that trains are a choice (frozen batch
    norms), as are models of which only a frozen part holds such layers.
    """

    def __init__(self) -> None:
        self._last: dict[
            int, int
        ] = {}  # id of a model -> number of the last pass that saw it in training mode
        self._in_a_row: dict[int, int] = {}
        self._judged: set[int] = set()

    def backward(self, models: Sequence[nn.Module], number: int) -> None:
        """The ``number``-th backward pass of the run begins."""
        for model in models:
            if model.training:
                self._last[id(model)] = number

    def before_step(
        self, tensors: Sequence[Tensor], models: Sequence[nn.Module], passes: range
    ) -> Oddity | None:
        """A step on these parameters is about to be taken; ``passes``: numbers of those since the one before it."""
        found = None
        for model in models if passes else ():
            key = id(model)
            if self._last.get(key, 0) >= passes.start:
                self._in_a_row[key] = 0
            elif key not in self._judged and (odd := self._count(model, tensors)):
                found = odd
        return found

    def _count(self, model: nn.Module, tensors: Sequence[Tensor]) -> Oddity | None:
        key = id(model)
        trained = {id(p) for p in tensors if p.requires_grad and p.grad is not None}
        if self._in_a_row.get(key, 0) == 0 and not any(id(p) in trained for p in model.parameters()):
            return None
        self._in_a_row[key] = self._in_a_row.get(key, 0) + 1
        if self._in_a_row[key] < CERTAIN:
            return None
        self._judged.add(key)
        layers = list(_differing(model, [], trained, set()))
        if not layers or any(layer.training for layer in layers):
            return None
        kinds = sorted({class_name(layer) for layer in layers})
        since = "since it was evaluated (model.train() is missing)" if key in self._last else "from the start"
        return Oddity(
            "eval_mode",
            class_name(model),
            f"{class_name(model)} is trained in evaluation mode {since}: {', '.join(kinds)} do not act as in training",
            {"layers": float(len(layers)), "after_training": float(key in self._last)},
        )


def _differing(
    module: nn.Module, above: list[nn.Parameter], trained: set[int], done: set[int]
) -> Iterator[nn.Module]:
    """The modules that behave differently in training, next to weights that are trained."""
    if id(module) in done:
        return
    done.add(id(module))
    nearest = list(module.parameters()) or above
    if _differs(module) and any(id(p) in trained for p in nearest):
        yield module
    for child in module.children():
        yield from _differing(child, nearest, trained, done)


def _differs(module: nn.Module) -> bool:
    kind = type(module)
    if issubclass(kind, _DropoutNd):
        return float(module.p) > 0  # type: ignore[arg-type]
    if issubclass(kind, _NormBase):
        return bool(module.track_running_stats)
    if issubclass(kind, nn.RNNBase):
        return float(module.dropout) > 0 and int(module.num_layers) > 1  # type: ignore[arg-type]
    return issubclass(kind, nn.MultiheadAttention) and float(module.dropout) > 0  # type: ignore[arg-type]
