"""Which layer feeds which: pairs of a layer and the only layer that reads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from steadygrad.init import _branches
from steadygrad.init._calls import ELEMENTWISE
from steadygrad.init._trace import Node, trace
from steadygrad.init.follow import check_model, uses_of

# Calls beside elementwise ones that keep each unit's values apart from those of the others.
_KEEPS_UNITS = (
    "dropout",
    "flatten",
    "view",
    "reshape",
    "max_pool",
    "avg_pool",
    "adaptive_",
    "feature_dropout",
)

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


def links(model: nn.Module, example_input: Any) -> tuple[list[Link], dict[str, str]]:
    """The pairs, in order of execution, and why each other linear layer or convolution is in none.

    A pair is two linear layers or convolutions, each used once in the run on ``example_input``, with only
    elementwise functions, dropout, pooling and flattening between: no norm, no skip, no second reader.

    Raises TypeError and ValueError as ``steadygrad.init.follow`` does. The model is left bit for bit as it was.
    """
    check_model(model)
    model = getattr(model, "_orig_mod", model)
    graph = trace(model, example_input)
    layers = {
        f"{n}.weight".lstrip("."): m for n, m in model.named_modules() if isinstance(m, (nn.Linear, _ConvNd))
    }
    uses = uses_of(graph.nodes)
    found: list[Link] = []
    left_out: dict[str, str] = {}
    for weight, layer in layers.items():
        if weight not in uses:
            left_out[weight] = "not used by itself in the run on example_input"
            continue
        reason = _unfit(layer, graph.param_names.get(weight, ()), len(uses[weight]))
        node = uses[weight][0][0]
        reader = node if reason else _reader(node)
        if isinstance(reader, str) or reason:
            left_out[weight] = reason or str(reader)
            continue
        read_by = reader.weights[0].params[0]
        other = layers.get(read_by)
        if len(reader.weights) != 1 or other is None:
            left_out[weight] = f"read by {reader.name}"
        elif reason := _unfit(other, graph.param_names.get(read_by, ()), len(uses[read_by])):
            left_out[weight] = f"its reader {read_by} is {reason}"
        elif other.weight.shape[1] % layer.weight.shape[0] or getattr(other, "groups", 1) != 1:
            left_out[weight] = f"its reader {read_by} takes its units in groups"
        else:
            first = not any(_behind_weights(parent) for parent in node.parents)
            name, reader_name = weight.removesuffix(".weight"), read_by.removesuffix(".weight")
            found.append(Link(name, layer, reader_name, other, first))
    return sorted(found, key=lambda link: uses[f"{link.name}.weight"][0][0].index), left_out


def _unfit(layer: Layer, tied: tuple[str, ...], uses: int) -> str:
    if uses != 1:
        return f"used {uses} times in a run"
    if tied:
        return f"tied to {', '.join(tied)}"
    if isinstance(layer, _ConvTransposeNd):
        return "a transposed convolution"
    if not isinstance(layer._parameters.get("weight"), nn.Parameter):
        return "computed by a parametrization"
    if not layer.weight.requires_grad:
        return "frozen"
    return ""


def _reader(node: Node) -> Node | str:
    """The call with weights that alone reads a value, or what stands in the way."""
    while True:
        children = [child for child in node.children if child.name != "detach"]  # hooks that only look on
        if not children:
            return "an output of the model"
        if len(children) > 1:
            return "read in several places"
        node = children[0]
        if node.weights:
            return node
        if _branches.is_norm(node):
            return "normalised"
        if len(node.parents) != 1:
            return f"joined with another value by {node.name}"
        if node.name not in ELEMENTWISE and not node.name.startswith(_KEEPS_UNITS):
            return f"read by {node.name}"


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
