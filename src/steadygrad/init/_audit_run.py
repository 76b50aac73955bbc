"""What the audit takes from a run while its tensors are there: gains, gradients, and both through time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from steadygrad.init._activation import following_activation
from steadygrad.init._calls import PRODUCTS
from steadygrad.init._fused import LayerRun, layer_runs
from steadygrad.init._measured import Measured, norm_of
from steadygrad.init._through_time import AuditTime, audit_time, chain, loop_alone, loop_loss, places
from steadygrad.init._trace import Node, Use, tensors_in
from steadygrad.init._weights import last_weight, weight_name
from steadygrad.init.follow import uses_of


class Found:
    """What a run showed, by weight."""

    def __init__(self) -> None:
        self.ends: dict[str, tuple[Node, Node]] = {}  # the last call, and what it gives after the activation
        self.gradients: dict[Node, float] = {}
        self.backward: dict[Node, float] = {}
        self.layers: dict[str, tuple[LayerRun, str]] = {}  # of a recurrent call, with its input weight
        self.covered: set[str] = set()  # weights whose layer has its row under another one
        self.times: list[AuditTime] = []
        self.notes: list[str] = []


def measure_run(
    recorder: Measured, found: Found, output: Any, loss_fn: Callable[..., Tensor] | None, target: Any
) -> None:
    uses = uses_of(recorder.nodes)
    calls: dict[Node, None] = {}
    for name, of_weight in uses.items():
        node = of_weight[-1][0]  # a recurrent weight's first input is often the zero state
        if node in recorder.fused:
            calls[node] = None
        else:
            found.ends[name] = (node, following_activation(node).after or node)
        if node.name.endswith("_cell") and last_weight(node) != name:
            found.covered.add(name)
    loops = _loops(recorder, uses)
    ends = [recorder.value(node) for node, _ in found.ends.values()]
    steps = [v for nodes in loops.values() for n in nodes for v in places(recorder, n)]
    parts = [v for call in calls for v in recorder.values(call)]
    gradients = _loss_gradients(recorder, dict.fromkeys((*ends, *steps, *parts)), output, loss_fn, target)
    found.gradients = {node: norm_of(g) for node, g in gradients.items()}
    for node, after in found.ends.values():
        found.backward[node] = _local_gain(recorder, node, after)
    for node in calls:
        values = recorder.values(node)
        reached = any(v in gradients for v in values)
        arriving = tuple(gradients.get(v) for v in values) if reached else None
        _measure_layers(recorder, found, node, arriving, {name: len(u) for name, u in uses.items()})
    for name, nodes in loops.items():
        loss = loop_loss(recorder, nodes, gradients)
        found.times.append(audit_time(name, loss, loop_alone(recorder, nodes)))


def _measure_layers(
    recorder: Measured,
    found: Found,
    node: Node,
    arriving: tuple[Tensor | None, ...] | None,
    uses: Mapping[str, int],
) -> None:
    """Each layer of one of torch's recurrent calls."""
    call = recorder.fused[node]
    names = {use.position: weight_name(use) for use in node.weights}
    found.covered |= set(names.values())
    for run in layer_runs(call, arriving):
        position = call.position(run.index * call.per_direction)
        into, hidden = names.get(position), names.get(position + 1)
        if into is None or hidden is None:
            continue  # no parameters of the model
        found.layers[hidden] = run, into
        if uses[hidden] > 1 and call.steps > 1:
            found.notes.append(f"{hidden}: called {uses[hidden]} times, measured in the last call alone")
        if call.steps > 1:
            found.times.append(audit_time(hidden, run.loss, run.alone))


def _loops(recorder: Measured, uses: Mapping[str, Sequence[tuple[Node, Use]]]) -> dict[str, list[Node]]:
    """The steps of recurrences that are loops in Python, by the last weight of their calls."""
    loops: dict[str, list[Node]] = {}
    for name, of_weight in uses.items():
        alike = [n for n, _ in of_weight if n.name == of_weight[0][0].name]
        call = recorder.fused.get(alike[-1])
        if len(alike) > 1 and last_weight(alike[-1]) == name and (call is None or call.steps == 1):
            steps = chain(alike)
            if len(steps) > 2:
                loops[name] = steps
    scales: dict[str, list[Node]] = {}
    for node in recorder.nodes:
        if node.name in PRODUCTS and node.affine:
            scales.setdefault(node.affine[0], []).append(node)
    for name, nodes in scales.items():  # a recurrence unit by unit, with no matrix on its way
        steps = chain(nodes, through_weights=False)
        if len(steps) > 2 and len({n.shape for n in steps}) == 1:  # a parallel scan has other shapes
            loops[name] = steps
    return loops


def _loss_gradients(
    recorder: Measured,
    nodes: Iterable[Node],
    output: Any,
    loss_fn: Callable[..., Tensor] | None,
    target: Any,
) -> dict[Node, Tensor | None]:
    """Gradient of the loss at each node that is in the graph; None where none arrives."""
    if loss_fn is None:
        outputs = [t for t in tensors_in(output) if t.is_floating_point() and t.requires_grad]
        seeds = [torch.randn_like(t) for t in outputs]
        norm = math.sqrt(sum(s.double().square().sum().item() for s in seeds)) or 1.0
        seeds = [s / norm for s in seeds]
    else:
        try:
            loss = loss_fn(output) if target is None else loss_fn(output, target)
        except Exception as error:  # noqa: BLE001  whatever the user's loss raises is told with its cause
            raise ValueError(
                f"loss_fn does not run on the model's output: {type(error).__name__}: {error}"
            ) from error
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
            raise ValueError(
                f"loss_fn must return a scalar tensor that depends on the weights, got {loss!r}"[:300]
            )
        outputs, seeds = [loss], [torch.ones_like(loss)]
    wanted = {node: recorder.edges[node] for node in nodes if node in recorder.edges}
    if not outputs or not wanted:
        return {}
    found = torch.autograd.grad(outputs, list(wanted.values()), seeds, allow_unused=True, retain_graph=True)
    return dict(zip(wanted, found, strict=True))


def _local_gain(recorder: Measured, node: Node, after: Node) -> float:
    """Norm of a random gradient, after the layer over before it, on the way through this layer only.

    Before a cell are its input and its state.
    """
    after = recorder.value(after)
    before = [p for p in node.parents[: None if node.name.endswith("_cell") else 1] if p in recorder.edges]
    if not before or after not in recorder.edges:
        return math.nan
    shape, dtype, device = recorder.like[after]
    seed = torch.randn(shape, dtype=dtype, device=device)
    edges = [recorder.edges[p] for p in before]
    found = torch.autograd.grad(recorder.edges[after], edges, seed, retain_graph=True, allow_unused=True)
    if all(g is None for g in found):
        return math.nan
    return norm_of(*found) / (norm_of(seed) or math.nan)
