"""The head of a loss: from its roots down through sums, means, scalings and views to the terms, with gradients.

Whatever a script writes between its terms and its loss is linear, or a picking of elements. The backward function of
each such operation, called by hand, gives the exact weight of every element of every term: nothing has to be matched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from steadygrad.graph.walk import Node, op, saved

MAX_HEAD = 20_000  # operations between the loss and its terms; a longer head is read no further
MAX_ELEMENTS = 2**24  # largest tensor that is made for reading; a term behind a larger one is not seen

RESHAPES = frozenset(
    {"View", "UnsafeView", "ReshapeAlias", "Unsqueeze", "Squeeze", "Clone", "Alias", "ToCopy"}
)
PICKS = frozenset(
    {"Select", "Slice", "Index", "IndexSelect", "Gather", "Permute", "Transpose", "T", "Split", "Unbind"}
)
LINEAR = (
    RESHAPES
    | PICKS
    | {"Mean", "Sum", "Nansum", "Neg", "Add", "Sub", "Rsub", "Where", "MaskedFill", "MaskedSelect", "Expand"}
    | {"Repeat", "Stack", "Cat", "SplitWithSizes", "Maximum", "Minimum", "Clamp", "ClampMin", "ClampMax"}
)
PRODUCTS = frozenset({"Mm", "Bmm", "Mv", "Dot"})  # linear where the other factor is a constant


@dataclass(frozen=True, slots=True)
class Way:
    """What lies between the loss and a node."""

    sums: bool = False  # a sum over the first axis, or over all
    means: bool = False  # a mean over the first axis, or over all
    rooted: bool = False  # a square root: weights are derivatives there
    offset: bool = False  # subtracted from a constant tensor, element by element
    factor: bool = False  # multiplied or divided by a constant tensor
    table: bool = False  # so that as many values and factors became a table of each with each

    def __or__(self, other: Way) -> Way:
        return Way(
            self.sums or other.sums,
            self.means or other.means,
            self.rooted or other.rooted,
            self.offset or other.offset,
            self.factor or other.factor,
            self.table or other.table,
        )


@dataclass(frozen=True, slots=True)
class Arrival:
    """A node at which the head ends: the derivative of the loss by each element that it made."""

    node: Node
    gradient: Tensor
    way: Way


def shape_of(node: Node, index: int = 0) -> tuple[int, ...]:
    """Shape of the tensor that a node made (or that a leaf is)."""
    return tuple(node._input_metadata[index].shape)


def arrivals(roots: Sequence[Tensor], is_term: Callable[[Node], bool]) -> list[Arrival]:
    """The nodes under the roots for which ``is_term`` holds, the first of each path, in the order they were made."""
    order, useful = _head(roots, is_term)
    pending: dict[Node, list[Tensor | None]] = {}
    ways: dict[Node, Way] = {}
    for root in roots:
        if root.grad_fn in useful:
            _add(pending, root.grad_fn, root.output_nr, torch.ones_like(root.detach()))
            ways[root.grad_fn] = Way()
    found = []
    for node in reversed(order):
        if node not in useful or node not in pending:
            continue
        gradients, way = pending.pop(node), ways.pop(node)
        if is_term(node):
            if gradients[0] is not None:
                found.append(Arrival(node, gradients[0], way))
            continue
        pulled = pull(node, gradients)
        below = way | _step(node)
        for (parent, index), gradient, passed in zip(node.next_functions, pulled, passes(node), strict=False):
            if passed and parent in useful and gradient is not None:
                _add(pending, parent, index, gradient)
                ways[parent] = ways.get(parent, below) | below
    return found[::-1]


def pull(node: Node, gradients: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
    """The node's own backward function, run on these gradients; nothing if it cannot be run without side effects.

    The engine sums what was broadcast after it has run a node, so this does as well.
    """
    if any(getattr(getattr(node, name), "unpack_hook", None) is not None for name in _packed(node)):
        return ()
    if any(parent is not None and _large(parent, index) for parent, index in node.next_functions):
        return ()
    try:
        with torch.no_grad():
            pulled = node(*gradients)
            pulled = pulled if isinstance(pulled, tuple) else (pulled,)
            return [
                None if each is None or parent is None else each.sum_to_size(shape_of(parent, index))
                for each, (parent, index) in zip(pulled, node.next_functions, strict=True)
            ]
    except RuntimeError:  # a saved tensor was changed in place, or freed: the user's backward will say so
        return ()


def passes(node: Node) -> list[bool]:
    """For each input of a node: whether the node is linear in it, and the head goes on there."""
    name, parents = op(node), node.next_functions
    there = [parent is not None for parent, _ in parents]
    if name in LINEAR or _is_root(node):
        return there
    if name in ("Mul", "Div") and sum(there) == 2:
        single = [prod(shape_of(parent, index)) == 1 for parent, index in parents]
        return [single[1], single[0] and name == "Mul"]
    if name in ("Mul", "Div"):
        return [each and (at == 0 or name == "Mul") for at, each in enumerate(there)]
    if name in PRODUCTS and sum(there) == 1:
        return there
    return [False] * len(there)


def _head(roots: Sequence[Tensor], is_term: Callable[[Node], bool]) -> tuple[list[Node], set[Node]]:
    """The nodes of the head, each after those below it, and the ones among them that lead to a term."""
    order: list[Node] = []
    useful: set[Node] = set()
    done: set[Node] = set()
    for root in roots:
        if root.grad_fn is None or root.grad_fn in done:
            continue
        done.add(root.grad_fn)
        stack = [(root.grad_fn, _below(root.grad_fn, is_term))]
        while stack:
            node, rest = stack[-1]
            for parent in rest:
                if parent not in done and len(done) < MAX_HEAD:
                    done.add(parent)
                    stack.append((parent, _below(parent, is_term)))
                    break
            else:
                stack.pop()
                order.append(node)
                below = (
                    p for (p, _), passed in zip(node.next_functions, passes(node), strict=True) if passed
                )
                if is_term(node) or any(parent in useful for parent in below):
                    useful.add(node)
    return order, useful


def _below(node: Node, is_term: Callable[[Node], bool]) -> Iterator[Node]:
    if is_term(node):
        return iter(())
    return iter(
        [parent for (parent, _), passed in zip(node.next_functions, passes(node), strict=True) if passed]
    )


def _step(node: Node) -> Way:
    name = op(node)
    if name in ("Sum", "Nansum", "Mean"):
        dims = getattr(node, "_saved_dim", None)
        first = (
            dims is None
            or len(dims) == 0
            or any(signed(d) % len(node._saved_self_sym_sizes) == 0 for d in dims)
        )
        return Way(sums=first and name != "Mean", means=first and name == "Mean")
    if name == "Sub" and node.next_functions[0][0] is None and prod(shape_of(node)) > 1:
        return Way(offset=True)
    if name in ("Mul", "Div") and not all(parent is not None for parent, _ in node.next_functions):
        factors = [f for name in ("other", "self") if _is_data(f := saved(node, name))]
        return Way(factor=bool(factors), table=any(_makes_table(node, factor) for factor in factors))
    return Way(rooted=_is_root(node))


def _is_data(value: Any) -> bool:
    """Whether a factor is a tensor of the script's: autograd keeps plain numbers as 0-D float64 or int64."""
    return isinstance(value, Tensor) and (value.ndim > 0 or value.dtype not in (torch.float64, torch.int64))


def _makes_table(node: Node, factor: Tensor) -> bool:
    """Whether ``[n, 1]`` was multiplied with ``[n]``, or the other way round."""
    parent, index = next(edge for edge in node.next_functions if edge[0] is not None)
    size = factor.numel()
    return 1 < size == prod(shape_of(parent, index)) and shape_of(node) == (size, size)


def signed(number: int) -> int:
    """A negative index as autograd keeps it, unsigned, made negative again."""
    return number - 2**64 if number >= 2**63 else number


def _is_root(node: Node) -> bool:
    return op(node) == "Sqrt" or (op(node) == "Pow" and getattr(node, "_saved_exponent", None) == 0.5)


def _large(node: Node, index: int) -> bool:
    return prod(shape_of(node, index)) > MAX_ELEMENTS


def _add(pending: dict[Node, list[Tensor | None]], node: Node, index: int, gradient: Tensor) -> None:
    slots = pending.setdefault(node, [None] * len(node._input_metadata))
    before = slots[index]
    slots[index] = gradient if before is None else before + gradient


def _packed(node: Node) -> tuple[str, ...]:
    """Names under which a node keeps tensors; looked up once per type of node."""
    kind = type(node)
    if kind not in _PACKED:
        _PACKED[kind] = tuple(name for name in dir(kind) if name.startswith("_raw_saved_"))
    return _PACKED[kind]


_PACKED: dict[type, tuple[str, ...]] = {}


def constant_factor(node: Node) -> Tensor | None:
    """The constant by which a ``Mul`` node multiplies its one input with a history; None if there is none to read."""
    parents = [parent for parent, _ in node.next_functions]
    if op(node) != "Mul" or len(parents) != 2 or (parents[0] is None) == (parents[1] is None):
        return None
    value = saved(node, "other" if parents[0] is not None else "self")
    return value if isinstance(value, Tensor) else None
