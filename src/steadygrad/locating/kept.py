"""The values that a graph still holds: arguments and results of its operations, as far as backward needs them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from steadygrad.graph.walk import Graph, Node, op, saved

RESULTS = ("result", "out", "output", "result0")
# name of a kept argument -> its place among the inputs of the node
PLACES = {
    "self": 0,
    "input": 0,
    "x1": 0,
    "mat1": 1,
    "batch1": 1,
    "other": 1,
    "mat2": 1,
    "batch2": 2,
    "target": 1,
    "exponent": 1,
    "weight": 1,
    "x2": 1,
}


class KeptValues:
    """Arguments and results by node.

    A result is known if the operation kept it, if one that uses it kept its argument, or if it is a root.

    Args:
        graph: before ``backward`` has freed it.
        roots: whose values are known.
    """

    def __init__(self, graph: Graph, roots: Sequence[Tensor]) -> None:
        self._graph = graph
        self._roots = {root.grad_fn: root.detach() for root in roots if root.grad_fn is not None}

    def inputs(self, node: Node) -> list[tuple[int, Tensor]]:
        """The floating arguments that the node kept, with their places."""
        found: dict[int, Tensor] = {}
        parents = len(node.next_functions)
        for name, place in PLACES.items():
            if name == "mat2" and op(node) == "Addmm":
                place = 2
            value = saved(node, name)
            if (
                isinstance(value, Tensor)
                and value.is_floating_point()
                and not value.is_meta
                and place < parents
            ):
                found.setdefault(place, value)
        return sorted(found.items())

    def result(self, node: Node) -> Tensor | None:
        """What the node made; None if nobody kept it."""
        if node in self._roots:
            return self._roots[node]
        for name in RESULTS:
            value = saved(node, name)
            if isinstance(value, Tensor) and value.is_floating_point() and not value.is_meta:
                return value
        for user in self._graph.consumers(node):
            for place, value in self.inputs(user):
                parent, number = user.next_functions[place]
                if parent == node and number == 0 and tuple(value.shape) == self._graph.shape(node):
                    return value
        return None
