"""What a node made, read from the graph: from a module's output, from what was kept, or worked out from these."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from steadygrad.graph._head import RESHAPES, shape_of, signed
from steadygrad.graph.walk import Node, has_memory, op, saved

MAX_HOPS = 16

RANGES = {  # of the functions whose values have a bound
    "Relu": (0.0, math.inf),
    "Sigmoid": (0.0, 1.0),
    "Tanh": (-1.0, 1.0),
    "Softmax": (0.0, 1.0),
    "LogSoftmax": (-math.inf, 0.0),
    "LogSigmoid": (-math.inf, 0.0),
    "Softplus": (0.0, math.inf),
    "Exp": (0.0, math.inf),
    "Hardsigmoid": (0.0, 1.0),
    "Gelu": (-0.17, math.inf),
    "Silu": (-0.2785, math.inf),
}
REACH = 1e-3  # of the width of a range, or absolute for a half-open one: rounding is not out of range


class Values:
    """Reads the values that nodes made.

    Args:
        outputs: outputs of modules of this step, with their history.
    """

    def __init__(self, outputs: Sequence[Tensor] = ()) -> None:
        self._known = {(t.grad_fn, t.output_nr): t for t in outputs if t.grad_fn is not None}

    def read(self, node: Node, index: int = 0, hops: int = MAX_HOPS) -> Tensor | None:
        """The tensor that a node made, detached; None if nothing tells."""
        shape = shape_of(node, index)
        known = self._known.get((node, index))
        if known is not None and tuple(known.shape) == shape:
            return known.detach()
        if (variable := getattr(node, "variable", None)) is not None:
            return variable.detach() if has_memory(variable) else None
        result = saved(node, "result")
        if isinstance(result, Tensor) and tuple(result.shape) == shape:
            return result
        if hops == 0 or not node.next_functions:
            return None
        if op(node) == "Addmm":
            return self._addmm(node, hops)
        if op(node) in RESHAPES or op(node) in _FORWARD:
            parent, at = node.next_functions[0]
            value = None if parent is None else self.read(parent, at, hops - 1)
            return None if value is None else _again(node, value, shape)
        return None

    def _addmm(self, node: Node, hops: int) -> Tensor | None:
        """``bias + x W``, once more, for a last layer that is no module or has no hook."""
        if saved(node, "alpha") not in (None, 1) or saved(node, "beta") not in (None, 1):
            return None
        parts = []
        for name, (parent, at) in zip(("", "mat1", "mat2"), node.next_functions, strict=True):
            part = saved(node, name) if name else None
            if part is None and parent is not None:
                part = self.read(parent, at, hops - 1)
            if part is None:
                return None
            parts.append(part)
        bias, left, right = parts
        return left @ right + bias


def _again(node: Node, value: Tensor, shape: tuple[int, ...]) -> Tensor | None:
    if op(node) in RESHAPES:
        return value.reshape(shape)
    made = _FORWARD[op(node)](node, value)
    return made if tuple(made.shape) == shape else None


_FORWARD = {
    "Neg": lambda node, x: -x,
    "T": lambda node, x: x.t(),
    "Transpose": lambda node, x: x.transpose(signed(node._saved_dim0), signed(node._saved_dim1)),
    "Permute": lambda node, x: x.permute([signed(d) for d in node._saved_dims]),
    "Select": lambda node, x: x.select(signed(node._saved_dim), signed(node._saved_index)),
    "Gather": lambda node, x: x.gather(signed(node._saved_dim), node._saved_index),
    "Index": lambda node, x: x[tuple(slice(None) if i is None else i for i in node._saved_indices)],
    "Expand": lambda node, x: x.expand(shape_of(node)),
}


def made_by(node: Node | None) -> Node | None:
    """The node that made these values, before reshapings, permutations and expansions."""
    hops = 0
    while node is not None and hops < MAX_HOPS:
        if op(node) not in RESHAPES and op(node) not in ("Permute", "Transpose", "T", "Expand"):
            return node
        node, hops = node.next_functions[0][0], hops + 1
    return node


def bounded(node: Node | None) -> tuple[str, tuple[float, float]]:
    """The bounded function that made these values and its range; "" and the whole line if there is none."""
    maker = made_by(node)
    if maker is None:
        return "", (-math.inf, math.inf)
    name = op(maker)
    if name == "Hardtanh":
        return name, (float(saved(maker, "min_val")), float(saved(maker, "max_val")))
    if name == "Elu":  # SELU too: alpha and scale as kept
        return name, (-float(saved(maker, "alpha")) * float(saved(maker, "scale")), math.inf)
    return (name, RANGES[name]) if name in RANGES else ("", (-math.inf, math.inf))


def outside(target: Tensor, limits: tuple[float, float]) -> Tensor:
    """Share of the targets that lie out of these limits, a 0-D tensor."""
    width = limits[1] - limits[0]
    slack = REACH * (width if math.isfinite(width) else 1.0)
    return ((target < limits[0] - slack) | (target > limits[1] + slack)).float().mean()
