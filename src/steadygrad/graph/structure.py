"""What a net is built of, as its graph shows it: normalisations and skip connections."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

from steadygrad.graph.walk import Graph, Node, op
from steadygrad.graph.weights import Use, between

NORMS = ("LayerNorm", "BatchNorm", "GroupNorm", "RmsNorm", "RMSNorm", "InstanceNorm")
BRANCH = 400  # nodes that one residual branch may have
CASTS = ("ToCopy", "View", "UnsafeView", "ReshapeAlias", "Transpose", "Permute", "Clone")


class Structure(NamedTuple):
    """Counts over a graph."""

    norms: int  # normalisations at work, those of torch
    post_norms: int  # those that stand on the skip path: nothing but they uses the sum of a residual block
    skips: int  # additions of a hidden value and something that a layer has made of it


def read_structure(graph: Graph, uses: Sequence[Use]) -> Structure:
    """Count norms and skips. A norm after the last block counts as one on the skip path: nothing tells it apart.

    Args:
        graph: of the loss.
        uses: of its weights.
    """
    at_work = {use.node for use in uses}
    skips = {node for node in graph.nodes if op(node) == "Add" and _is_skip(graph, node, at_work)}
    norms = [node for node in graph.nodes if _is_norm(op(node))]
    return Structure(len(norms), sum(_only_source(graph, node) in skips for node in norms), len(skips))


@cache
def _is_norm(name: str) -> bool:
    return any(word in name for word in NORMS)


def _only_source(graph: Graph, node: Node) -> Node | None:
    """What this node was made from, through casts and views; None if somebody else uses it too."""
    source = graph.inputs(node)[0]
    while source is not None and len(graph.consumers(source)) == 1:
        if op(source) not in CASTS:
            return source
        source = graph.inputs(source)[0]
    return None


def _is_skip(graph: Graph, node: Node, at_work: set[Node]) -> bool:
    edges = [(graph.place(parent), number, parent) for parent, number in node.next_functions]
    (place, number, earlier), (later_place, _, later) = sorted(edges, key=lambda edge: edge[0])
    # What is added is used by the branch as well; a leaf has no place.
    if not 0 <= place < later_place or graph.times_used(earlier, number) < 2:
        return False
    branch = between(graph, later, earlier, number, BRANCH)
    if branch is None or later not in at_work and at_work.isdisjoint(branch):
        return False
    return len(graph.shape(node)) >= 2
