"""After the fact: read from the graph of a loss which operation was behind it, without having watched.

The graph holds, until ``backward`` frees it, what each operation kept of its arguments or result. That is enough to
see most faults, and costs nothing before. What it cannot give is a line of code: for that the next step's forward pass
runs under :func:`steadygrad.locating.stacks.capture_stacks`.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from steadygrad.graph.walk import Graph, Node, op
from steadygrad.locating.derivative import singular
from steadygrad.locating.explain import division_fault, domain_fault, explain, samples_in_words
from steadygrad.locating.kept import KeptValues
from steadygrad.locating.ops import node_name
from steadygrad.locating.values import bad_count, first_value, is_bad, is_mask, not_finite, sample_hit
from steadygrad.probe.names import find_roots, named_roots

MAX_SUSPECTS = 16
# Put infinities in on purpose, or take them out of sight.
SELECTING = frozenset({"MaskedFill", "Where", "ConstantPadNd", "IndexPut", "MaskedScatter", "Fill"})
# Cannot make an infinity of their own: if what went in is not known, the operation before them is meant.
PASSING = frozenset(
    "Relu LeakyRelu View UnsafeView ReshapeAlias T Transpose Permute Expand Squeeze Unsqueeze Slice Select Clone "
    "Clamp Hardtanh MaxPool2DWithIndices NativeDropout Split Unbind Alias Neg Abs".split()
)


@dataclass(frozen=True, slots=True)
class Suspect:
    """An operation of the graph that may be the producer."""

    kind: Literal["forward", "backward", "data", "optimizer"]
    op: str  # "log", "sqrt", ...
    node: str  # as `graph.op` has it: the name for `line_of`
    nth: int  # so many of the name were run before it
    position: int  # in the order of execution
    count: int  # values at fault
    sample: int | None  # first one on axis 0, where only some are hit
    detail: str
    upstream: str  # nearest parameter on the way to the inputs, "" if there is none
    downstream: str  # nearest parameter on the way to the loss

    @property
    def module(self) -> str:
        """The module that the nearest parameter belongs to: the one upstream, else the one downstream."""
        return (self.upstream or self.downstream).rpartition(".")[0]


def autopsy(roots: Sequence[Tensor], params: Mapping[str, Tensor] | None = None) -> Suspect | None:
    """The earliest operation that made something not finite out of finite values.

    Call it before ``backward``, with a loss that is not finite.

    Args:
        roots: the losses.
        params: names of parameters; those of the live modules if None.

    Returns:
        None if the graph shows nothing: the losses are finite, or the operation at fault kept no values.

    Example:
        >>> import torch
        >>> w = torch.zeros(3, requires_grad=True)
        >>> found = autopsy([(w * 2).log().mean()], {"w": w})
        >>> found.op, found.detail, found.upstream
        ('log', 'log of 0 in 3 of 3 values', 'w')
    """
    bad = [root for root in roots if is_bad(root)]
    if not bad:
        return None
    graph = Graph(bad)
    body = _Body(graph, KeptValues(graph, bad), params)
    suspects = list(body.forward_suspects())
    # What a `where` left out has done no harm, unless there is nothing else.
    harmful = [s for s in suspects if not body.left_out(graph.nodes[s.position])]
    return next(iter(harmful or suspects), None)


def suspects_of_gradient(
    roots: Sequence[Tensor],
    bad_params: Sequence[Tensor],
    finite_params: Sequence[Tensor] = (),
    params: Mapping[str, Tensor] | None = None,
) -> list[Suspect]:
    """Operations at a point without a finite derivative, for gradients that are not finite under a finite loss.

    An operation spoils the gradients of all that went into it. The likeliest spoils no parameter whose gradient
    is finite, then the most of those that are not, then is nearest to the loss. At most 16 are given, likeliest
    first; those that lead to no bad parameter are left out.

    Args:
        roots: the losses, with their graph (before ``backward``, or of a step repeated).
        bad_params, finite_params: parameters by their gradients.
        params: names of parameters; those of the live modules if None.

    Example:
        >>> import torch
        >>> w = torch.zeros(3, requires_grad=True)
        >>> [s.detail for s in suspects_of_gradient([(w * 2).sqrt().sum()], [w], [], {"w": w})]
        ['the derivative of sqrt is not finite at 0: 3 of 3 values']
    """
    graph = Graph(roots)
    body = _Body(graph, KeptValues(graph, ()), params)
    bad, finite = {id(p) for p in bad_params}, {id(p) for p in finite_params}
    ranked = []
    for position, node in enumerate(graph.nodes):
        point = singular(node)
        if point is None:
            continue
        reached = {id(graph.leaves[leaf]) for leaf in body.leaves_behind(node)}
        if not reached & bad:
            continue
        suspect = body.suspect("backward", node, position, point[1], sample_hit(point[2]), point[0])
        ranked.append(((len(reached & finite), -len(reached & bad), -position), suspect))
    return [suspect for _, suspect in sorted(ranked, key=lambda pair: pair[0])][:MAX_SUSPECTS]


class _Body:
    """A graph laid out for reading."""

    def __init__(self, graph: Graph, kept: KeptValues, params: Mapping[str, Tensor] | None) -> None:
        self.graph, self.kept = graph, kept
        self.names = {id(p): name for name, p in (_live_names() if params is None else params).items()}
        self.nth: list[int] = []
        counted: Counter[str] = Counter()
        for node in graph.nodes:
            self.nth.append(counted[op(node)])
            counted[op(node)] += 1

    def forward_suspects(self) -> Iterable[Suspect]:
        for position, node in enumerate(self.graph.nodes):
            if (suspect := self._outside(position, node) or self._made_here(position, node)) is not None:
                yield suspect

    def left_out(self, node: Node) -> bool:
        """Whether all that use the node's result are selections."""
        users = self.graph.consumers(node)
        return bool(users) and all(op(user) in SELECTING for user in users)

    def leaves_behind(self, node: Node) -> set[Node]:
        """The leaves that went into a node."""
        return set(self._towards(node, lambda n: [p for p in self.graph.inputs(n) if p is not None]))

    def suspect(
        self,
        kind: Literal["forward", "backward", "data", "optimizer"],
        node: Node,
        position: int,
        count: int,
        sample: int | None,
        detail: str,
    ) -> Suspect:
        return Suspect(
            kind,
            node_name(op(node)),
            op(node),
            self.nth[position],
            position,
            count,
            sample,
            detail,
            upstream=self._nearest(self._towards(node, lambda n: [p for p in self.graph.inputs(n) if p])),
            downstream=self._below(node),
        )

    # ------------------------------------------------------------------ the two ways to go wrong
    def _outside(self, position: int, node: Node) -> Suspect | None:
        """A parameter or a constant that was not finite before."""
        parents = self.graph.inputs(node)
        for place, value in self.kept.inputs(node):
            parent = parents[place] if place < len(parents) else None
            if not is_bad(value) or is_mask(value):
                continue
            if parent is None:
                hit = not_finite(value)
                detail = f"{first_value(value)} was in the data that came in" + samples_in_words(hit)
                return self.suspect("data", node, position, bad_count(value), sample_hit(hit), detail)
        for parent in parents:
            leaf = self.graph.leaves.get(parent)
            if leaf is not None and is_bad(leaf):
                name = self.names.get(id(leaf), "a parameter")
                detail = f"{name} held {first_value(leaf)} before this step began"
                found = self.suspect("optimizer", node, position, bad_count(leaf), None, detail)
                return replace(found, upstream=self.names.get(id(leaf), found.upstream))
        return None

    def _made_here(self, position: int, node: Node) -> Suspect | None:
        name = op(node)
        inputs = dict(self.kept.inputs(node))
        if name in SELECTING or any(map(is_bad, inputs.values())):
            return None
        out = self.kept.result(node)
        detail = domain_fault(node_name(name), inputs[0]) if 0 in inputs else ""
        if not detail and name == "Div" and 1 in inputs:
            detail = division_fault(inputs.get(0), inputs[1])
        if out is not None and is_bad(out):
            if not inputs and (before := self._before(node)) is not node:
                return self._made_by(before, out)
            detail = detail or explain(node_name(name), [inputs[k] for k in sorted(inputs)], [out])
            return self.suspect(
                "forward", node, position, bad_count(out), sample_hit(not_finite(out)), detail
            )
        if detail and out is None:
            return self.suspect("forward", node, position, 0, None, detail)
        return None

    def _before(self, node: Node) -> Node:
        """The operation whose result a chain of passing ones has handed on."""
        while op(node) in PASSING and not self.kept.inputs(node):
            parent = node.next_functions[0][0]
            if parent is None or parent in self.graph.leaves:
                break
            node = parent
        return node

    def _made_by(self, node: Node, out: Tensor) -> Suspect | None:
        """A suspect whose result is known through what was made of it."""
        inputs = dict(self.kept.inputs(node))
        if op(node) in SELECTING or any(map(is_bad, inputs.values())):
            return None
        detail = explain(node_name(op(node)), [inputs[k] for k in sorted(inputs)], [out])
        position = self.graph.nodes.index(node)
        return self.suspect("forward", node, position, bad_count(out), sample_hit(not_finite(out)), detail)

    # ------------------------------------------------------------------ neighbours
    def _towards(self, node: Node, next_of: Callable[[Node], Sequence[Node]]) -> Iterable[Node]:
        """Leaves in the order of their distance."""
        seen, queue = {node}, deque([node])
        while queue:
            for parent in next_of(queue.popleft()):
                if parent in seen:
                    continue
                seen.add(parent)
                if parent in self.graph.leaves:
                    yield parent
                else:
                    queue.append(parent)

    def _nearest(self, leaves: Iterable[Node]) -> str:
        return next((n for leaf in leaves if (n := self.names.get(id(self.graph.leaves[leaf])))), "")

    def _below(self, node: Node) -> str:
        seen, queue = {node}, deque([node])
        while queue:
            for user in self.graph.consumers(queue.popleft()):
                if user in seen:
                    continue
                for parent in self.graph.inputs(user):
                    leaf = self.graph.leaves.get(parent)
                    if leaf is not None and id(leaf) in self.names:
                        return self.names[id(leaf)]
                seen.add(user)
                queue.append(user)
        return ""


def _live_names() -> dict[str, Tensor]:
    return {
        prefix + name: p for prefix, root in named_roots(find_roots()) for name, p in root.named_parameters()
    }
