"""Where the weights of a net are at work: the nodes of its graph that multiply something by a parameter."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

from torch import Tensor, nn

from steadygrad.graph.walk import Graph, Node, op

# Operands of each product: its place among the arguments, and the name under which the node keeps it.
PRODUCTS = {
    "Mm": ((0, "self"), (1, "mat2")),
    "Addmm": ((1, "mat1"), (2, "mat2")),
    "Mv": ((0, "self"), (1, "vec")),
    "Addmv": ((1, "mat"), (2, "vec")),
    "Bmm": ((0, "self"), (1, "mat2")),
    "Baddbmm": ((1, "batch1"), (2, "batch2")),
}
# Layers that torch runs as one operation: what they are given is kept under one of these names.
LAYER_WORDS = ("Conv", "conv", "Linear", "Rnn", "RNN", "Embedding", "Trilinear")
INPUT_NAMES = ("input", "self", "input_", "i1")
# What may lie between a parameter and its use: views, casts, and the arithmetic of reparametrised weights.
BETWEEN = frozenset(
    "T Transpose Permute View UnsafeView ReshapeAlias Expand Unsqueeze Squeeze Select Slice ToCopy Clone Alias "
    "Mul Div WeightNormInterface Index Split Chunk Unbind Cat Stack Swapaxes Contiguous".split()
)
JOINS = ("Cat", "Stack")
MAX_HOPS = 8


class Use(NamedTuple):
    """One operation that uses a weight."""

    node: Node
    weight: Tensor
    recurrent: bool  # the node runs a whole recurrent layer by itself
    given: tuple[str, ...]  # names under which the node may have kept what the weight is multiplied with


def find_uses(graph: Graph) -> list[Use]:
    """The uses of weights with two or more axes, in the order of execution."""
    uses = []
    for node in graph.nodes:
        name = op(node)
        if name in PRODUCTS:
            use = _product(graph, node, name)
        elif _is_layer(name):
            use = _layer(graph, node, name)
        else:
            continue
        if use is not None:
            uses.append(use)
    return uses


@cache
def _is_layer(name: str) -> bool:
    return any(word in name for word in LAYER_WORDS)


def _product(graph: Graph, node: Node, name: str) -> Use | None:
    """A matrix product with a weight. Of two parameters the later one: ``F.linear`` has its weight there."""
    parents = graph.inputs(node)
    found = []
    for i, (place, _) in enumerate(PRODUCTS[name]):
        leaf = leaf_behind(graph, parents[place])
        if leaf is not None and leaf.dim() >= 2:
            found.append((isinstance(leaf, nn.Parameter), i, leaf))
    if not found or (len(found) == 2 and found[0][2] is found[1][2]):
        return None  # the second: a weight times itself, in a penalty or a parametrisation
    if name == "Mv" and all(op(user) in ("Dot", "Vdot") for user in graph.consumers(node)):
        return None  # the norm of the weight, as in spectral_norm
    _, i, weight = max(found, key=lambda entry: entry[:2])
    return Use(node, weight, False, (PRODUCTS[name][1 - i][1],))


def _layer(graph: Graph, node: Node, name: str) -> Use | None:
    parents = graph.inputs(node)
    fused = "Rnn" in name or "RNN" in name
    if not fused:  # an input that is a leaf itself, like the image of a style transfer, is no weight
        parents = parents[:1] if "Embedding" in name else parents[1:2]
    leaves = [leaf_behind(graph, parent) for parent in parents]
    weights = [leaf for leaf in leaves if leaf is not None and leaf.dim() >= 2]
    if not weights:
        return None
    # A fused recurrent layer has several weights; the square one is what it repeats.
    square = [w for w in weights if w.shape[-1] and w.shape[0] % w.shape[-1] == 0]
    return Use(node, (square[-1] if fused and square else weights[0]), fused, INPUT_NAMES)


def leaf_behind(graph: Graph, node: Node | None, hops: int = MAX_HOPS) -> Tensor | None:
    """The leaf that this node hands on, through views and reparametrisations; None if it is something computed."""
    for left in range(hops, 0, -1):
        if node is None:
            return None
        if node in graph.leaves:
            return graph.leaves[node]
        if op(node) not in BETWEEN:
            return None
        parents = [p for p in graph.inputs(node) if p is not None]
        if not parents:
            return None
        if op(node) in JOINS and any(leaf_behind(graph, p, left - 1) is None for p in graph.inputs(node)):
            return None  # a learned token put before computed ones
        node = parents[0]
    return None


def between(
    graph: Graph, later: Node, earlier: Node, number: int | None = None, most: int = 4000
) -> set[Node] | None:
    """What ``later`` was computed from since ``earlier``, if it was computed from that; None if not.

    With a ``number``: from that output of ``earlier``, of which some operations have several.

    None as well if it cannot be told within ``most`` nodes.
    """
    # In an order of execution, what ``later`` has taken from ``earlier`` lies between the two.
    start, reached = graph.place(earlier), False
    seen, stack = {later}, [later]
    while stack:
        if len(seen) > most:
            return None
        for parent, taken in stack.pop().next_functions:
            if parent is earlier:
                reached = reached or number is None or number == taken
            elif parent is not None and parent not in seen and graph.place(parent) > start:
                seen.add(parent)
                stack.append(parent)
    return seen - {later} if reached else None
