"""Changes of a model's structure that a recipe makes: found in the module tree, undone if the recipe fails."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from steadygrad.nn.residual import Residual, ResidualRecurrence

NORMS = (
    nn.LayerNorm,
    nn.RMSNorm,
    nn.GroupNorm,
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
)
DROPOUTS = (nn.modules.dropout._DropoutNd,)
RECURRENT = (nn.RNN, nn.LSTM, nn.GRU)
LEAST = 2  # blocks in a row: a single one gains nothing from a skip


@dataclass
class Edits:
    """What was changed so far, in words, and the way back."""

    model: nn.Module
    changes: list[str] = field(default_factory=list)
    _undo: list[Callable[[], Any]] = field(default_factory=list)

    def undo(self) -> None:
        """The module tree as it was."""
        while self._undo:
            self._undo.pop()()

    def replace(self, path: str, new: nn.Module, change: str) -> None:
        """Put a module in the place of another; at "" in the place of the model."""
        self.changes.append(f"{path or 'the model'}: {change}")
        if not path:
            old = self.model
            self.model = new
            self._undo.append(lambda: setattr(self, "model", old))
            return
        parent, _, name = path.rpartition(".")
        owner = self.model.get_submodule(parent)
        before = getattr(owner, name)
        setattr(owner, name, new)
        self._undo.append(lambda: setattr(owner, name, before))

    def children(self, owner: nn.Module, children: OrderedDict[str, nn.Module], change: str) -> None:
        """Give a Sequential other children."""
        before = owner._modules
        owner._modules = children  # type: ignore[assignment]
        self.changes.append(change)
        self._undo.append(lambda: setattr(owner, "_modules", before))

    def attribute(self, owner: nn.Module, name: str, value: Any) -> None:
        """Set an attribute, which may be None or a module before and after."""
        before = getattr(owner, name)
        setattr(owner, name, value)

        def undo() -> None:
            delattr(owner, name)  # a module leaves its place among the modules, or None would stay there
            setattr(owner, name, before)

        self._undo.append(undo)


@dataclass(frozen=True)
class _Unit:
    """A weight with what follows it in a Sequential: (norm,) activation (, dropout)."""

    names: tuple[str, ...]
    weight: nn.Module
    norm: nn.Module | None
    activation: nn.Module
    dropout: float


NormFor = Callable[[nn.Module, int], nn.Module]
Width = Callable[
    [nn.Module], int | None
]  # channels of a weight that keeps its input's shape, None for others


def linear_width(module: nn.Module) -> int | None:
    """Features of a linear layer as wide as its input."""
    same = isinstance(module, nn.Linear) and module.in_features == module.out_features
    return module.in_features if same else None  # type: ignore[return-value]


def conv_width(module: nn.Module) -> int | None:
    """Channels of a convolution whose output has the shape of its input."""
    if not isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) or module.in_channels != module.out_channels:
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


def add_residuals(edits: Edits, width_of: Width, norm_for: NormFor, dropout: float | None) -> None:
    """Turn rows of ``weight, activation`` in every Sequential into pre-activation residual blocks.

        W_1, a, W_2, a, ...   ->   x + D(W_1 a(N(x))), x + D(W_2 a(N(x))), ..., N, a

    A block of ``x + a(W x)`` would only ever add where a >= 0, and explode with depth. Norms that are there are
    used; a dropout that is there becomes that of the block, unless another is given.
    """
    for path, module in list(edits.model.named_modules()):
        if type(module) is not nn.Sequential:
            continue
        rows = list(_rows(module, width_of))
        if not rows:
            continue
        children: OrderedDict[str, nn.Module] = OrderedDict(module._modules)  # type: ignore[arg-type]
        for row in rows:
            children = _with_blocks(children, row, width_of, norm_for, dropout)
        digits = all(name.isdigit() for name in module._modules)
        if digits:
            children = OrderedDict((str(i), child) for i, child in enumerate(children.values()))
        count = sum(len(row) for row in rows)
        edits.children(
            module, children, f"{path or 'the model'}: {count} layers made pre-activation residual blocks"
        )


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


def _unit(module: nn.Sequential, names: list[str], at: int, width_of: Width) -> _Unit | None:
    children = [module._modules[n] for n in names[at : at + 4]]
    if width_of(children[0]) is None:  # type: ignore[arg-type]
        return None
    norm = children[1] if len(children) > 1 and isinstance(children[1], NORMS) else None
    after = 2 if norm is not None else 1
    if len(children) <= after or not _is_activation(children[after]):
        return None
    end = after + 1
    dropout = 0.0
    if len(children) > end and isinstance(children[end], DROPOUTS):
        dropout = float(children[end].p)  # type: ignore[union-attr,arg-type]
        end += 1
    weight, activation = children[0], children[after]
    assert weight is not None and activation is not None
    return _Unit(tuple(names[at : at + end]), weight, norm, activation, dropout)


def _is_activation(module: nn.Module | None) -> bool:
    if isinstance(module, (nn.Softmax, nn.LogSoftmax, nn.Softmin, nn.MultiheadAttention)):
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
    like = next(first.weight.parameters())

    def norm(unit: _Unit) -> nn.Module:
        return (
            unit.norm if unit.norm is not None else norm_for(unit.weight, width).to(like.device, like.dtype)
        )

    out: OrderedDict[str, nn.Module] = OrderedDict()
    for name, child in children.items():
        unit = in_row.get(name)
        if unit is None:
            out[name] = child
        elif name == unit.names[0]:
            branch = nn.Sequential(norm(unit), unit.activation, unit.weight)
            p = unit.dropout if dropout is None else dropout
            out[name] = Residual(branch, placement=None, dropout=p)
        if name == last.names[-1]:
            out[f"{last.names[0]}_norm"] = copy.deepcopy(last.norm) if last.norm is not None else norm(last)
            out[f"{last.names[0]}_act"] = copy.deepcopy(last.activation)
    return out


def add_recurrent_residuals(edits: Edits, dropout: float | None) -> None:
    """Every RNN, LSTM and GRU of two layers and more becomes a `ResidualRecurrence`."""
    for path, module in list(edits.model.named_modules()):
        if type(module) in RECURRENT and module.num_layers >= LEAST:  # type: ignore[operator]
            new = ResidualRecurrence(module, dropout)  # type: ignore[arg-type]
            edits.replace(path, new, f"{module.num_layers} layers with norm and residual connection each")


def norm_first(edits: Edits) -> None:
    """torch's Transformer layers put their norms first, and the stack gets one at its end."""
    count = 0
    for module in edits.model.modules():
        if (
            isinstance(module, (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer))
            and not module.norm_first
        ):
            edits.attribute(module, "norm_first", True)
            count += 1
    if count:
        edits.changes.append(f"{count} Transformer layers put their norms first")
    for path, module in edits.model.named_modules():
        if isinstance(module, (nn.TransformerEncoder, nn.TransformerDecoder)) and module.norm is None:
            first = module.layers[0]
            norm = copy.deepcopy(first.norm1)
            edits.attribute(module, "norm", norm)
            edits.changes.append(f"{path or 'the model'}: a norm at the end of the stack")
