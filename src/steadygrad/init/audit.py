"""Audit of an initialisation: how much each layer amplifies the signal forward and the gradient backward."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from steadygrad.init._activation import following_activation
from steadygrad.init._trace import Node, Recorder, tensors_in, trace
from steadygrad.init._weights import last_weight
from steadygrad.init.depth import aligned
from steadygrad.init.follow import Followed, Layer, check_model, understand, uses_of

# The forecast's thresholds: end to end, not the largest jump inside, which a norm may undo.
MAX_GROWTH = 30.0  # of the signal, first layer to last
MAX_GRADIENT_GROWTH = 1e3  # of the gradient, last layer to first
MAX_SHRINKING = 1e-3  # of either
MAX_JUMP = 10.0  # gain of one layer alone
MAX_INPUT_RMS = 20.0


@dataclass(frozen=True, slots=True)
class AuditRow:
    """One layer; nan where there is nothing to measure."""

    weight: str
    activation: str  # what follows
    input_rms: float
    output_rms: float  # of what the weight puts out
    forward: float  # rms after the activation over rms of the input
    backward: float  # norm of a random gradient before the layer over behind it, through this layer alone
    grad_norm: float  # of the loss with respect to the layer's output
    uses: int


@dataclass(frozen=True)
class Audit:
    """What ``audit`` measured; ``str()`` aligns it."""

    rows: tuple[AuditRow, ...]  # in order of execution
    off: Mapping[str, str]  # weight -> what is wrong with its scale; empty if nothing is
    growth: float  # rms of the outputs, last layer over first
    gradient_growth: float  # norm of the gradients, first layer over last
    notes: tuple[str, ...]

    def __str__(self) -> str:
        head = (
            "weight",
            "followed by",
            "input rms",
            "output rms",
            "forward",
            "backward",
            "grad norm",
            "uses",
        )
        body = []
        for r in self.rows:
            numbers = (r.input_rms, r.output_rms, r.forward, r.backward, r.grad_norm)
            cells = ["" if math.isnan(v) else f"{v:.4g}" for v in numbers]
            body.append(
                (r.weight + (" *" if r.weight in self.off else ""), r.activation, *cells, str(r.uses))
            )
        lines = aligned([head, *body])
        lines.append(
            f"signal x{self.growth:.3g} from first to last layer, gradient x{self.gradient_growth:.3g} back"
        )
        lines += [f"* {weight}: {why}" for weight, why in self.off.items()]
        return "\n".join([*lines, *self.notes])


class _Measured(Recorder):
    """Keeps rms and the place in the autograd graph of every value, at the time it is made."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.rms: dict[Node, float] = {}
        self.edges: dict[Node, Any] = {}
        self.like: dict[Node, tuple[torch.Size, torch.dtype, torch.device]] = {}

    def add(self, tensor: Tensor | None, name: str, parents: tuple[Node, ...] = (), **more: Any) -> Node:
        node = super().add(tensor, name, parents, **more)
        if tensor is not None and tensor.is_floating_point():
            values = tensor.detach()
            norm = torch.linalg.vector_norm(values, dtype=torch.float64).item()
            self.rms[node] = norm / math.sqrt(values.numel()) if values.numel() else math.nan
            if tensor.requires_grad:
                # not the tensor itself, which may be changed in place later
                self.edges[node] = get_gradient_edge(tensor)
                self.like[node] = (values.shape, values.dtype, values.device)
        return node


def audit(
    model: nn.Module, example_input: Any, loss_fn: Callable[..., Tensor] | None = None, target: Any = None
) -> Audit:
    """Measure the forward and backward gain of every layer of a model as it is, and say which are off.

        forward  = rms(f(W x)) / rms(x)
        backward = |J^T u| / |u|,     J = d f(W x) / dx,  u random

    Both are 1 at a critical initialisation with weights of variance gain^2 / fan_in. One layer off by a
    little is harmless; the same little in each of 100 is not, so what counts is the growth from end to end.

    Args:
        model: runs forward once and backward once, in the mode it is in; it is left bit-identical, gradients
            included.
        example_input: as for ``follow``; a real batch gives the real numbers.
        loss_fn: ``loss_fn(output, target)``, or ``loss_fn(output)`` if target is None, gives the scalar loss.
            Left out, the gradient of a random direction in the output is taken, of norm 1.
        target: second argument of ``loss_fn``.

    Returns:
        ``rows`` in order of execution, ``off`` (weight -> reason), the growth of signal and gradient from end
        to end.

    A layer is off if its output is not finite or 0 everywhere (unless its weight is 0, as Fixup has it), if
    alone it changes signal or gradient more than 10 times with no norm behind it, or if it takes part in a
    growth of the signal above 30 or of the gradient above 1000, or in a shrinking of either below 1/1000.
    Non-finite values are reported, never raised.

    When to use it: before training, and when a run's gradients explode or vanish.

    Values in use: none to set.

    Cost: two backward passes.

    Raises ValueError as ``follow`` does, and if loss_fn does not give a scalar with a gradient.

    Example:
        >>> net = nn.Sequential(*[m for _ in range(30) for m in (nn.Linear(64, 64), nn.ReLU())])
        >>> result = audit(net, torch.randn(8, 64))       # torch's default: He for a slope of sqrt(5)
        >>> result.gradient_growth < 1e-3, "2.weight" in result.off
        (True, True)

    Source: Glorot & Bengio (2010), section 4.2; Schoenholz et al. (2017), section 4,
    https://arxiv.org/abs/1611.01232
    """
    check_model(model)
    if target is not None and loss_fn is None:
        raise ValueError("target is given without loss_fn: pass loss_fn(output, target) too")
    recorder = _Measured(getattr(model, "_orig_mod", model))
    gradients: dict[Node, float] = {}
    backward: dict[Node, float] = {}
    ends: dict[str, tuple[Node, Node]] = {}

    def measure(_recorder: Recorder, output: Any) -> None:
        for name, found in uses_of(recorder.nodes).items():
            node = found[-1][0]  # a recurrent weight's first input is often the zero state
            ends[name] = (node, following_activation(node).after or node)
        gradients.update(_loss_gradients(recorder, [n for n, _ in ends.values()], output, loss_fn, target))
        for node, after in ends.values():
            backward[node] = _local_gain(recorder, node, after)

    graph = trace(model, example_input, recorder, measure)
    followed = understand(graph)
    rows = []
    for layer in followed:
        node, after = ends[layer.weight]
        before = recorder.rms.get(node.parents[0], math.nan) if node.parents else math.nan
        if (
            last_weight(node) != layer.weight
        ):  # inside attention or an LSTM, only the last one's output is seen
            nan = math.nan
            rows.append(AuditRow(layer.weight, layer.activation, before, nan, nan, nan, nan, layer.uses))
            continue
        output, end = (recorder.rms.get(_value(recorder, n), math.nan) for n in (node, after))
        gains = (end / before if before > 0 else math.nan, backward[node], gradients.get(node, math.nan))
        rows.append(AuditRow(layer.weight, layer.activation, before, output, *gains, layer.uses))
    return _judged(tuple(rows), followed, getattr(model, "_orig_mod", model))


def _value(recorder: _Measured, node: Node) -> Node:
    """The node that holds a call's value: itself, or of several outputs the first."""
    return node if node in recorder.rms else next((c for c in node.children if c.name == "part"), node)


def _loss_gradients(
    recorder: _Measured, nodes: list[Node], output: Any, loss_fn: Callable[..., Tensor] | None, target: Any
) -> dict[Node, float]:
    """Norm of the loss gradient at each node."""
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
    places = {node: recorder.edges.get(_value(recorder, node)) for node in nodes}
    wanted = [(node, edge) for node, edge in places.items() if edge is not None]
    if not outputs or not wanted:
        return {}
    found = torch.autograd.grad(outputs, [e for _, e in wanted], seeds, allow_unused=True, retain_graph=True)
    return {
        node: torch.linalg.vector_norm(g, dtype=torch.float64).item() if g is not None else 0.0
        for (node, _), g in zip(wanted, found, strict=True)
    }


def _local_gain(recorder: _Measured, node: Node, after: Node) -> float:
    """Norm of a random gradient, after the layer over before it, on the way through this layer only."""
    after = _value(recorder, after)
    if not node.parents or node.parents[0] not in recorder.edges or after not in recorder.edges:
        return math.nan
    shape, dtype, device = recorder.like[after]
    seed = torch.randn(shape, dtype=dtype, device=device)
    edges = recorder.edges[after], recorder.edges[node.parents[0]]
    (found,) = torch.autograd.grad(edges[0], edges[1], seed, retain_graph=True, allow_unused=True)
    if found is None:
        return math.nan
    return (
        torch.linalg.vector_norm(found, dtype=torch.float64)
        / torch.linalg.vector_norm(seed, dtype=torch.float64)
    ).item()


def _judged(rows: tuple[AuditRow, ...], followed: Followed, model: nn.Module) -> Audit:
    layers = {layer.weight: layer for layer in followed}
    parameters = dict(model.named_parameters())
    zero = {
        w
        for w, layer in layers.items()
        if layer.params[0] in parameters and not bool(parameters[layer.params[0]].any())
    }
    off: dict[str, str] = {}
    for row in rows:
        reason = _reason_alone(row, layers[row.weight], row.weight in zero)
        if reason:
            off[row.weight] = reason
    silent = zero | _silent(followed, parameters, zero)
    inner = [r for r in rows if layers[r.weight].kind != "embedding" and r.weight not in silent]
    inner = [r for r in inner if not math.isnan(r.output_rms)]
    inner = [r for r in inner if not layers[r.weight].head] or inner
    growth = _ratio(inner[-1].output_rms, inner[0].output_rms) if inner else math.nan
    gradients = [r.grad_norm for r in inner if not math.isnan(r.grad_norm)]
    gradient_growth = _ratio(gradients[0], gradients[-1]) if gradients else math.nan
    for name, total, limit in (
        ("forward", growth, MAX_GROWTH),
        ("backward", gradient_growth, MAX_GRADIENT_GROWTH),
    ):
        if total > limit or total < MAX_SHRINKING:
            for weight, why in _culprits(inner, followed, name, total).items():
                off.setdefault(weight, why)
    notes = []
    if followed.unused:
        notes.append(
            f"not used in the run: {', '.join(followed.unused[:5])}"
            + (" ..." if len(followed.unused) > 5 else "")
        )
    return Audit(
        rows,
        {r.weight: off[r.weight] for r in rows if r.weight in off},
        growth,
        gradient_growth,
        tuple(notes),
    )


def _silent(followed: Followed, parameters: Mapping[str, nn.Parameter], zero: set[str]) -> set[str]:
    """Weights in branches that put out 0 on purpose, and so get no gradient yet."""
    silent: set[str] = set()
    for branch in followed.branches:
        scales = [parameters[name] for name in (*branch.scale, branch.norm or "") if name in parameters]
        if set(branch.ends) <= zero or any(not bool(scale.any()) for scale in scales):
            silent |= set(branch.weights)
    return silent


def _reason_alone(row: AuditRow, layer: Layer, zero: bool) -> str:
    """What is wrong with one layer whatever the others do; empty if nothing is."""
    unseen = math.isnan(row.grad_norm) and math.isnan(row.forward) and layer.fused
    if math.isinf(row.output_rms) or (math.isnan(row.output_rms) and not unseen):
        return "its output is not finite" + (
            ", its input is" if math.isfinite(row.input_rms) else ", nor is its input"
        )
    if zero:
        return ""  # Fixup, SkipInit and zeroed heads: on purpose
    if row.output_rms == 0 and row.input_rms > 0:
        return "its output is 0 everywhere: the weight or its input is too small for the dtype"
    if row.forward == 0:
        return f"everything is 0 behind {row.activation}: dead units"
    if layer.first and row.input_rms > MAX_INPUT_RMS:
        return f"input rms {row.input_rms:.3g}: standardise the data"
    if layer.normed or layer.recurrent or layer.kind == "recurrent_input":
        return ""  # a norm behind it undoes the scale; a recurrence is judged over time
    # small heads and branch ends are good practice
    too_small = 0 if layer.head or layer.ends is not None else 1 / MAX_JUMP
    for name, gain in (("forward", row.forward), ("backward", row.backward)):
        if gain > MAX_JUMP or gain < too_small:
            return f"{name} gain {gain:.3g} alone"
    return ""


def _culprits(inner: list[AuditRow], followed: Followed, name: str, total: float) -> dict[str, str]:
    """The layers that a growth or shrinking from end to end is made of."""
    way = "grows" if total > 1 else "shrinks"
    what = "signal" if name == "forward" else "gradient"
    if math.isnan(total):
        return {}  # named one by one already
    bounded = MAX_SHRINKING if total == 0 else MAX_GRADIENT_GROWTH if math.isinf(total) else total
    per_layer = math.log(bounded) / len(inner)
    found = {}
    for row in inner:
        gain = row.forward if name == "forward" else row.backward
        if gain > 0 and math.log(gain) / per_layer > 0.5 and not followed[row.weight].normed:
            found[row.weight] = (
                f"{name} gain {gain:.3g}; the {what} {way} x{total:.3g} over {len(inner)} layers"
            )
    ends = [w for b in followed.branches for w in b.ends]
    if followed.branches and way == "grows":
        why = f"the {what} {way} x{total:.3g} over {len(followed.branches)} residual branches: start their ends smaller"
        return {w: why for w in ends}
    return found


def _ratio(a: float, b: float) -> float:
    return a / b if b > 0 else math.nan
