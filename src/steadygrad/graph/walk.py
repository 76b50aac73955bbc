"""The autograd graph of a loss as a list of operations, in an order in which they can be run.

Before ``backward`` frees it, the graph holds what a look at modules cannot give: every operation, whoever wrote it,
with the shapes of what it made, the tensors it kept, and the parameters it used. Reading it costs nothing until one
reads it, and changes nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

Node = Any  # torch.autograd.graph.Node; its saved values are known by name only
MAX_NODES = 100_000
LEAF = "torch::autograd::AccumulateGrad"


class Graph:
    """The operations behind one or more roots.

    Holds the graph alive: let go of it before ``backward`` returns, or memory stays in use for longer.

    Args:
        roots: tensors with a history; those without one add nothing.
        max_nodes: a larger graph is cut off, the part nearest to the roots is kept, and ``truncated`` is true.

    Example:
        >>> w = torch.ones(3, requires_grad=True)
        >>> graph = Graph([(w * 2).exp().sum()])
        >>> [op(node) for node in graph.nodes]
        ['Mul', 'Exp', 'Sum']
        >>> graph.shape(graph.nodes[0]), len(graph.leaves)
        ((3,), 1)
    """

    def __init__(self, roots: Sequence[Tensor], max_nodes: int = MAX_NODES) -> None:
        self.nodes: list[Node] = []  # without leaves; each after all that it uses
        self.leaves: dict[Node, Tensor] = {}
        self.truncated = False
        self._consumers: dict[Node, list[Node]] = {}
        self._edges: dict[tuple[Node, int], int] = {}
        ends = [root.grad_fn for root in roots if root.grad_fn is not None]
        if not self._order(ends, max_nodes):
            self.truncated = True
            self.nodes, self.leaves, self._consumers, self._edges = [], {}, {}, {}
            self._order(ends, max_nodes, _nearest(ends, max_nodes))
        self._places = {node: place for place, node in enumerate(self.nodes)}

    def _order(self, ends: Sequence[Node], max_nodes: int, within: set[Node] | None = None) -> bool:
        """Depth first, without recursion. False: there are more nodes than ``max_nodes``."""
        done: set[Node] = set()
        for end in ends:
            if end in done or within is not None and end not in within:
                continue
            done.add(end)
            stack: list[tuple[Node, Iterator[Any]]] = [(end, iter(end.next_functions))]
            while stack:
                node, rest = stack[-1]
                for parent, number in rest:
                    if parent is None or within is not None and parent not in within:
                        continue
                    self._consumers.setdefault(parent, []).append(node)
                    self._edges[parent, number] = self._edges.get((parent, number), 0) + 1
                    if parent in done:
                        continue
                    if len(done) >= max_nodes:
                        return False
                    done.add(parent)
                    if parent.name() == LEAF:
                        self.leaves[parent] = parent.variable
                        continue
                    stack.append((parent, iter(parent.next_functions)))
                    break
                else:
                    stack.pop()
                    self.nodes.append(node)
        return True

    def place(self, node: Node) -> int:
        """Number of a node in ``nodes``; -1 for leaves and for what was cut off."""
        return self._places.get(node, -1)

    def inputs(self, node: Node) -> list[Node | None]:
        """What the node was made from, in the order of its arguments; None for a constant."""
        return [parent for parent, _ in node.next_functions]

    def consumers(self, node: Node) -> list[Node]:
        """The nodes that use what this one made, or the uses of a leaf."""
        return self._consumers.get(node, [])

    def times_used(self, node: Node, number: int) -> int:
        """How often the output with this number of a node is used."""
        return self._edges.get((node, number), 0)

    @staticmethod
    def shape(node: Node) -> tuple[int, ...]:
        """Shape of the (first) tensor that the node made."""
        return tuple(node._input_metadata[0].shape)

    @staticmethod
    def dtype(node: Node) -> torch.dtype:
        """Type of the (first) tensor that the node made."""
        dtype: torch.dtype = node._input_metadata[0].dtype
        return dtype


def op(node: Node) -> str:
    """The operation of a node by its plain name: ``AddmmBackward0`` is ``Addmm``."""
    return _plain(node.name())


@cache
def _plain(name: str) -> str:
    return name.removeprefix("torch::autograd::").partition("Backward")[0]


def _nearest(ends: Sequence[Node], most: int) -> set[Node]:
    """The nodes fewest steps away from the roots, leaves among them."""
    near = set(ends[:most])
    queue = deque(near)
    while queue and len(near) < most:
        for parent, _ in queue.popleft().next_functions:
            if parent is not None and parent not in near and len(near) < most:
                near.add(parent)
                queue.append(parent)
    return near


def saved(node: Node, name: str) -> Any:
    """A value that the node kept for backward, e.g. ``saved(node, "result")``; None if it has none such.

    None as well where it cannot be read without side effects or error: it was changed in place since, it has been
    freed, or somebody's hooks pack saved tensors (offloading, recomputation).
    """
    try:
        packed = getattr(node, f"_raw_saved_{name}", None)
        # A torch that does not tell whether there is a hook gets no chance to run it.
        if packed is not None and getattr(packed, "unpack_hook", packed) is not None:
            return None
        value = getattr(node, f"_saved_{name}", None)
    except RuntimeError:
        return None
    if not isinstance(value, Tensor):
        return value
    return value.detach() if has_memory(value) else None


def has_memory(tensor: Tensor) -> bool:
    """False for a weight of FSDP that has been given back until backward gathers it again."""
    ordinary = type(tensor) in (Tensor, Parameter)
    if not ordinary or tensor.layout is not torch.strided or tensor.device.type == "meta":
        return True
    return tensor.numel() == 0 or tensor.untyped_storage().nbytes() > 0
