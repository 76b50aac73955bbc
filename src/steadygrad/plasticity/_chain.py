"""Which layer feeds which: pairs of a layer and the only layer that reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from steadygrad.init import _branches
from steadygrad.init._calls import ELEMENTWISE
from steadygrad.init._trace import Graph, Node, trace
from steadygrad.init.follow import check_model, uses_of

# Calls beside elementwise ones that keep each unit's values apart from those of the others.
_KEEPS_UNITS = (
    "dropout",
    "max_pool",
    "avg_pool",
    "adaptive_",
    "feature_dropout",
)

_RESHAPES = ("flatten", "view", "reshape")

Layer = nn.Linear | _ConvNd


@dataclass(frozen=True)
class Link:
    """A layer, and the layer that alone reads what it puts out."""

    name: str
    layer: Layer
    reader_name: str
    reader: Layer
    first: bool  # nothing but the input before it

    @property
    def units(self) -> int:
        """Outputs of the layer: neurons or channels."""
        return self.layer.weight.shape[0]

    @property
    def copies(self) -> int:
        """Inputs of the reader for each unit: more than 1 where a convolution's output is flattened."""
        return self.reader.weight.shape[1] // self.units


@dataclass(frozen=True)
class Known:
    """Pairs that were found before, in the place of an example."""

    links: tuple[Link, ...]


def links(model: nn.Module, example_input: Any) -> tuple[list[Link], dict[str, str]]:
    """The pairs, in order of execution, and why each other linear layer or convolution is in none.

    A pair is two linear layers or convolutions, each used once in the run on ``example_input``, with only
    elementwise functions, dropout, pooling and flattening between: no norm, no skip, no second reader.

    Raises TypeError and ValueError as ``steadygrad.init.follow`` does. The model is left bit for bit as it was.
    """
    check_model(model)
    model = getattr(model, "_orig_mod", model)
    return links_in(trace(model, example_input), dict(model.named_modules()))


def links_in(graph: Graph, modules: Mapping[str, nn.Module]) -> tuple[list[Link], dict[str, str]]:
    """The same from a run that was recorded."""
    layers = {f"{n}.weight".lstrip("."): m for n, m in modules.items() if isinstance(m, (nn.Linear, _ConvNd))}
    uses = uses_of(graph.nodes)
    found: list[Link] = []
    left_out: dict[str, str] = {}
    for weight, layer in layers.items():
        if weight not in uses:
            left_out[weight] = "not used by itself in the run on example_input"
            continue
        reason = _shared(graph.param_names.get(weight, ()), len(uses[weight])) or unfit(layer)
        node = uses[weight][0][0]
        read = reason or _reader(node, layer)
        if isinstance(read, str):
            left_out[weight] = read
            continue
        reader, shape, axis = read
        read_by = reader.weights[0].params[0]
        other = layers.get(read_by)
        if len(reader.weights) != 1 or other is None:
            left_out[weight] = f"read by {reader.name}"
        elif reason := _shared(graph.param_names.get(read_by, ()), len(uses[read_by])) or unfit(other):
            left_out[weight] = f"its reader {read_by} is {reason}"
        elif getattr(other, "groups", 1) != 1:
            left_out[weight] = f"its reader {read_by} takes its units in groups"
        elif axis != _unit_axis(other, shape) or other.weight.shape[1] != shape[axis]:
            left_out[weight] = f"its reader {read_by} does not take its units one by one"
        else:
            first = not any(_behind_weights(parent) for parent in node.parents)
            name, reader_name = weight.removesuffix(".weight"), read_by.removesuffix(".weight")
            found.append(Link(name, layer, reader_name, other, first))
    return sorted(found, key=lambda link: uses[f"{link.name}.weight"][0][0].index), left_out


def _shared(tied: tuple[str, ...], uses: int) -> str:
    if uses != 1:
        return f"used {uses} times in a run"
    return f"tied to {', '.join(tied)}" if tied else ""


def unfit(layer: nn.Module) -> str:
    """Why the units of a layer cannot be handled one by one; "" if they can."""
    if not isinstance(layer, (nn.Linear, _ConvNd)):
        return "no linear layer or convolution"
    if isinstance(layer, _ConvTransposeNd):
        return "a transposed convolution"
    if not isinstance(layer._parameters.get("weight"), nn.Parameter):
        return "computed by a parametrization"
    if isinstance(layer.weight, nn.parameter.UninitializedParameter):
        return "without weights yet"
    if not layer.weight.requires_grad:
        return "frozen"
    return ""


def _reader(node: Node, layer: Layer) -> tuple[Node, tuple[int, ...], int] | str:
    """The call with weights that alone reads what a layer puts out, or what stands in the way.

    With it the shape of what it reads, and the dimension that holds the units, each with its copies in a row.
    """
    shape, axis = node.shape, _unit_axis(layer, node.shape)
    if axis < 0 or not shape[axis]:
        return f"of an output of shape {shape}"
    while True:
        children = [child for child in node.children if child.name != "detach"]  # hooks that only look on
        if not children:
            return "an output of the model"
        if len(children) > 1:
            return "read in several places"
        node = children[0]
        if node.weights:
            return node, shape, axis
        if _branches.is_norm(node):
            return "normalised"
        if len(node.parents) != 1:
            return f"joined with another value by {node.name}"
        if node.name not in ELEMENTWISE and not node.name.startswith((*_KEEPS_UNITS, *_RESHAPES)):
            return f"read by {node.name}"
        moved = _moved(axis, shape, node)
        if moved is None:
            return f"laid out anew by {node.name}, so that its units are no longer apart"
        shape, axis = node.shape, moved


def _unit_axis(layer: Layer, shape: tuple[int, ...]) -> int:
    """The dimension of what a layer puts out, or takes, that holds its units: the last, or that of the channels."""
    return len(shape) - (1 if isinstance(layer, nn.Linear) else len(layer.kernel_size) + 1)


def _moved(axis: int, shape: tuple[int, ...], node: Node) -> int | None:
    """Where the units are after one more call, those of one still in a row; None if they are mixed."""
    if not node.name.startswith(_RESHAPES):
        mixed = "pool" in node.name and axis == len(shape) - 1
        kept = len(node.shape) == len(shape) and node.shape[axis] == shape[axis]
        return axis if kept and not mixed else None
    before, inside = prod(shape[:axis]), prod(shape[axis:])
    for to in reversed(range(len(node.shape))):
        at_the_same_place = prod(node.shape[:to]) == before and prod(node.shape[to:]) == inside
        if at_the_same_place and node.shape[to] and node.shape[to] % shape[axis] == 0:
            return to
    return None


def _behind_weights(node: Node) -> bool:
    stack, seen = [node], {node}
    while stack:
        now = stack.pop()
        if now.weights:
            return True
        new = set(now.parents) - seen
        seen |= new
        stack += new
    return False
