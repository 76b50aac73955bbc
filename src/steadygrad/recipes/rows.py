"""Rows of plain layers in a Sequential, made into residual blocks."""

from __future__ import annotations

import copy
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from steadygrad.init import follow
from steadygrad.nn.activations import CReLU, Maxout, SwiGLU
from steadygrad.nn.residual import Residual
from steadygrad.recipes.edits import LEAST, Edits, Places, fresh, named

NORMS = (
    nn.LayerNorm,
    nn.RMSNorm,
    nn.GroupNorm,
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
)
DROPOUTS = (nn.modules.dropout._DropoutNd,)
MIXING = (nn.Softmax, nn.Softmax2d, nn.LogSoftmax, nn.Softmin)  # each output depends on the whole input
RESHAPING = (nn.GLU, nn.MultiheadAttention, CReLU, Maxout, SwiGLU)
SHORT = 4  # weights in a branch that is a residual block already; a longer one is a net under a skip


@dataclass(frozen=True)
class _Unit:
    """A weight with what follows it in a Sequential: (norm,) activation (, dropout)."""

    names: tuple[str, ...]
    weight: nn.Module
    norm: nn.Module | None
    activation: nn.Module
    dropout: nn.Module | None

    def parts(self) -> list[nn.Module]:
        parts = (self.weight, self.norm, self.activation, self.dropout)
        return [part for part in parts if part is not None]


class _Run:
    """What a run on the example shows: how often each module was called, and where residual branches are."""

    def __init__(self, model: nn.Module, example_input: Any) -> None:
        self._calls: Counter[nn.Module] = Counter()
        with register_module_forward_pre_hook(lambda module, _: self._calls.update([module])):
            found = follow(model, example_input)
        self._uses = {layer.weight: layer.uses for layer in found}
        self._heads = {layer.weight for layer in found if layer.head}
        self._branches = {w for branch in found.branches if branch.depth <= SHORT for w in branch.weights}

    def kept(self, module: nn.Module, path: str, unit: _Unit) -> str | None:
        """Why a unit of a Sequential must stay as it is; None if it may be changed."""
        weight = f"{path}.{unit.names[0]}.weight".removeprefix(".")
        runs, calls = self._calls[module], self._calls[unit.weight]
        if calls != runs or self._uses.get(weight, 0) != runs:
            return "used from outside of its Sequential"
        if not runs:
            return "not met by the example"
        if weight in self._branches:
            return "in a residual block"
        return "makes the output" if weight in self._heads else None


NormFor = Callable[[nn.Module, int], nn.Module]
Width = Callable[[nn.Module], int | None]  # channels of a weight that keeps its input's shape, or None


def linear_width(module: nn.Module) -> int | None:
    """Features of a linear layer as wide as its input."""
    if type(module) is not nn.Linear or module.in_features != module.out_features:
        return None
    return module.in_features


def conv_width(module: nn.Module) -> int | None:
    """Channels of a convolution whose output has the shape of its input."""
    if type(module) not in (nn.Conv1d, nn.Conv2d, nn.Conv3d):
        return None
    assert isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
    if module.in_channels != module.out_channels:
        return None
    if any(s != 1 for s in module.stride):
        return None
    if module.padding != "same":
        reach = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        if isinstance(module.padding, str) or any(
            2 * p != r for p, r in zip(module.padding, reach, strict=True)
        ):
            return None
    return module.in_channels


def batch_norm_for(weight: nn.Module, channels: int) -> nn.Module:
    """The batch norm of a convolution's dimension."""
    kind = {nn.Conv1d: nn.BatchNorm1d, nn.Conv2d: nn.BatchNorm2d, nn.Conv3d: nn.BatchNorm3d}
    return next(norm for conv, norm in kind.items() if isinstance(weight, conv))(channels)


def layer_norm_for(weight: nn.Module, channels: int) -> nn.Module:
    """A layer norm over the features."""
    return nn.LayerNorm(channels)


def add_residuals(
    edits: Edits, example_input: Any, width_of: Width, norm_for: NormFor, dropout: float | None
) -> None:
    """Turn rows of ``weight, activation`` in every Sequential into pre-activation residual blocks.

        W_1, a, W_2, a, ...   ->   x + D(W_1 a(N(x))), x + D(W_2 a(N(x))), ..., N, a

    A block of ``x + a(W x)`` would only ever add where a >= 0, and explode with depth. Norms that are there are
    used; a dropout that is there becomes that of the block, unless another is given. What makes the output of the
    model, is part of a residual block already, or must stay for a reason of its own (`Places`) ends a row.
    """
    model = getattr(
        edits.model, "_orig_mod", edits.model
    )  # behind torch.compile, as follow names its weights
    rows = [
        (path, module, row)
        for path, module in model.named_modules()
        if type(module) is nn.Sequential
        for row in _rows(module, width_of)
    ]
    if not rows:
        return
    places, run = Places(model), _Run(model, example_input)
    found: dict[nn.Module, list[list[_Unit]]] = {}
    for path, module, row in rows:
        reasons: Counter[str] = Counter()
        for part in _parted(module, path, row, places, run, reasons):
            found.setdefault(module, []).append(part)
        for why, count in reasons.items():
            edits.changes.append(f"{named(path)}: {count} layer{'s' * (count > 1)} kept ({why})")
    for path, module in list(model.named_modules()):
        if module not in found:
            continue
        children: OrderedDict[str, nn.Module] = OrderedDict(module._modules)  # type: ignore[arg-type]
        for row in found[module]:
            children = _with_blocks(children, row, width_of, norm_for, dropout)
        digits = all(name.isdigit() for name in module._modules)
        if digits:
            children = OrderedDict((str(i), child) for i, child in enumerate(children.values()))
        count = sum(len(row) for row in found[module])
        edits.children(module, children, f"{named(path)}: {count} layers made pre-activation residual blocks")


def _rows(module: nn.Sequential, width_of: Width) -> Iterator[list[_Unit]]:
    row: list[_Unit] = []
    names = list(module._modules)
    at = 0
    while at < len(names):
        unit = _unit(module, names, at, width_of)
        if unit is not None and (not row or width_of(row[0].weight) == width_of(unit.weight)):
            row.append(unit)
            at += len(unit.names)
            continue
        if len(row) >= LEAST:
            yield row
        at += 0 if row else 1
        row = []
    if len(row) >= LEAST:
        yield row


def _parted(
    module: nn.Module, path: str, row: list[_Unit], places: Places, run: _Run, reasons: Counter[str]
) -> Iterator[list[_Unit]]:
    """The parts of a row between the units that must stay; why these must is counted in ``reasons``."""
    part: list[_Unit] = []
    for unit in row:
        whys = [places.kept(p) for p in unit.parts()] + [run.kept(module, path, unit)]
        why = next((why for why in whys if why is not None), None)
        if why is None:
            part.append(unit)
            continue
        reasons[why] += 1
        if len(part) >= LEAST:
            yield part
        part = []
    if len(part) >= LEAST:
        yield part


def _unit(module: nn.Sequential, names: list[str], at: int, width_of: Width) -> _Unit | None:
    children = [module._modules[n] for n in names[at : at + 4]]
    weight = children[0]
    if weight is None or width_of(weight) is None or not next(weight.parameters()).is_floating_point():
        return None
    norm = children[1] if len(children) > 1 and isinstance(children[1], NORMS) else None
    after = 2 if norm is not None else 1
    activation = children[after] if len(children) > after else None
    if activation is None or not _is_activation(activation):
        return None
    end = after + 1
    dropout = children[end] if len(children) > end and isinstance(children[end], DROPOUTS) else None
    end += dropout is not None
    return _Unit(tuple(names[at : at + end]), weight, norm, activation, dropout)


def _is_activation(module: nn.Module) -> bool:
    if isinstance(module, (*MIXING, *RESHAPING)):
        return False
    home = type(module).__module__
    return home == "torch.nn.modules.activation" or home.startswith("steadygrad.nn.activations")


def _with_blocks(
    children: OrderedDict[str, nn.Module],
    row: list[_Unit],
    width_of: Width,
    norm_for: NormFor,
    dropout: float | None,
) -> OrderedDict[str, nn.Module]:
    first, last = row[0], row[-1]
    width = width_of(first.weight)
    assert width is not None
    in_row = {name: unit for unit in row for name in unit.names}

    def norm(unit: _Unit) -> nn.Module:
        like = next(unit.weight.parameters())
        new = norm_for(unit.weight, width).to(like.device, like.dtype)
        return unit.norm if unit.norm is not None else new.train(unit.weight.training)

    out: OrderedDict[str, nn.Module] = OrderedDict()
    for name, child in children.items():
        unit = in_row.get(name)
        if unit is None:
            out[name] = child
        elif name == unit.names[0]:
            branch = nn.Sequential(norm(unit), unit.activation, unit.weight)
            if dropout is None and unit.dropout is not None:
                branch.append(unit.dropout)
            block = Residual(branch, placement=None, dropout=dropout or 0.0)
            for new in (block, branch, block.dropout):
                if new is not None:
                    new.training = unit.weight.training
            out[name] = block
        if name == last.names[-1]:
            out[f"{last.names[0]}_norm"] = fresh(last.norm) if last.norm is not None else norm(last)
            out[f"{last.names[0]}_act"] = copy.deepcopy(last.activation)
    return out
