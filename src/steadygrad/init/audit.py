"""Audit of an initialisation: how much each layer amplifies the signal forward and the gradient backward."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from steadygrad.init._audit_run import Found, measure_run
from steadygrad.init._measured import Measured
from steadygrad.init._through_time import AuditTime, notes_through_time, reason_through_time
from steadygrad.init._trace import Recorder, trace
from steadygrad.init._weights import last_weight, weight_name
from steadygrad.init.depth import aligned
from steadygrad.init.follow import Followed, Layer, check_model, understand

# The forecast's thresholds: end to end, not the largest jump inside, which a norm may undo.
MAX_GROWTH = 30.0  # of the signal, first layer to last
MAX_GRADIENT_GROWTH = 1e3  # of the gradient, last layer to first
MAX_SHRINKING = 1e-3  # of either
MAX_JUMP = 10.0  # gain of one layer alone
MAX_INPUT_RMS = 20.0


@dataclass(frozen=True, slots=True)
class AuditRow:
    """One layer, of a recurrent module one direction of one; nan where there is nothing to measure."""

    weight: str  # the last of several in a call; of a recurrent layer weight_hh
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
    through_time: tuple[AuditTime, ...] = ()  # one for each direction of each recurrent layer

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
            f"signal {_times(self.growth)} from first to last layer, gradient {_times(self.gradient_growth)} back"
        )
        if self.through_time:
            columns = ("through time", "steps", "gradient back", "alone", "a step", "reach")
            recurrences = []
            for t in self.through_time:
                star = " *" if t.weight in self.off else ""
                cells = [f"{v:.4g}" if not math.isnan(v) else "" for v in (t.growth, t.alone, t.per_step)]
                recurrences.append((t.weight + star, str(t.steps), *cells, str(t.reach)))
            lines += aligned([columns, *recurrences])
        lines += [f"* {weight}: {why}" for weight, why in self.off.items()]
        return "\n".join([*lines, *self.notes])


def audit(
    model: nn.Module, example_input: Any, loss_fn: Callable[..., Tensor] | None = None, target: Any = None
) -> Audit:
    """Measure the forward and backward gain of every layer and recurrence of a model, and say which are off.

        forward  = rms(f(W x)) / rms(x)
        backward = |J^T u| / |u|,     J = d f(W x) / dx,  u random
        through time = |dL / ds_1| / |dL / ds_T|

    The first two are 1 at a critical initialisation with weights of variance gain^2 / fan_in. One layer off by a
    little is harmless; the same little in each of 100 is not, so what counts is the growth from end to end.

    In a recurrence each step is one more layer. s_t is the input of step t in ``nn.RNN``, ``nn.LSTM`` and
    ``nn.GRU``, whose layers and directions are run again one by one; what a cell gives in step t; or, in a
    recurrence written out, the state that its weight takes in step t. Loops in Python are found by the run, those
    unit by unit (IndRNN) too, parallel scans (LRU) not; of packed sequences the longest count. ``alone`` is the
    same quotient for a random gradient put in behind the last step, through this layer only: it does not depend on
    what reads the layer, and it tells a layer that explodes from one that is handed an exploding gradient.

    Args:
        model: runs forward once and backward once, in the mode it is in; it is left bit-identical, gradients
            included.
        example_input: as for ``follow``; a real batch, of real length, gives the real numbers.
        loss_fn: ``loss_fn(output, target)``, or ``loss_fn(output)`` if target is None, gives the scalar loss.
            Left out, the gradient of a random direction in the output is taken, of norm 1.
        target: second argument of ``loss_fn``.

    Returns:
        ``rows`` in order of execution, one for each direction of each recurrent layer; ``through_time``, a row for
        each recurrence; ``off`` (weight -> reason); the growth of signal and gradient from the first layer to the
        last; ``notes`` on what was not measured, and why.

    A layer is off if its output is not finite or 0 everywhere (unless its weight is 0, as Fixup has it), if
    alone it changes signal or gradient more than 10 times with no norm behind it, or if it takes part in a
    growth of the signal above 30 or of the gradient above 1000, or in a shrinking of either below 1/1000.
    Non-finite values are reported, never raised.

    A recurrence is off if the gradient grows more than 1000 times through time and more than 10 times in this
    layer alone, or if it falls below 1/1000 by losing more than 9/10 in each step. Slower fading is how recurrent
    nets start: torch's default RNN, LSTM and GRU keep 0.4 to 0.7 of it a step, 1e-8 and less over 50 steps. It is
    told in a note, with the number of steps that the gradient reaches back.

    When to use it: before training, and when a run's gradients explode or vanish, over layers or over time.

    Values in use: none to set.

    Cost: two backward passes; for each of torch's recurrent calls one more forward and three backward, and for each
    recurrence in Python one more backward.

    Raises ValueError as ``follow`` does, and if loss_fn does not give a scalar with a gradient.

    Example:
        >>> net = nn.Sequential(*[m for _ in range(30) for m in (nn.Linear(64, 64), nn.ReLU())])
        >>> result = audit(net, torch.randn(8, 64))       # torch's default: He for a slope of sqrt(5)
        >>> result.gradient_growth < 1e-3, "2.weight" in result.off
        (True, True)
        >>> rnn = nn.RNN(8, 32, nonlinearity="relu")
        >>> _ = nn.init.orthogonal_(rnn.weight_hh_l0, gain=2.0)
        >>> result = audit(rnn, torch.randn(100, 4, 8))
        >>> result.through_time[0].growth > 1e3, list(result.off)
        (True, ['weight_hh_l0'])

    Source: Glorot & Bengio (2010), section 4.2; Schoenholz et al. (2017), section 4,
    https://arxiv.org/abs/1611.01232; through time: Pascanu, Mikolov & Bengio (2013), section 2,
    https://arxiv.org/abs/1211.5063
    """
    check_model(model)
    if target is not None and loss_fn is None:
        raise ValueError("target is given without loss_fn: pass loss_fn(output, target) too")
    model_itself = getattr(model, "_orig_mod", model)
    recorder = Measured(model_itself)
    found = Found()

    def measure(_recorder: Recorder, output: Any) -> None:
        measure_run(recorder, found, output, loss_fn, target)

    with _differentiable(model_itself):
        followed = understand(trace(model, example_input, recorder, measure))
    rows, first_inputs = [], set()
    for layer in followed:
        if layer.weight in found.layers:
            run, first_weight = found.layers[layer.weight]
            if followed[first_weight].first:
                first_inputs.add(layer.weight)
            gain = run.output_rms / run.input_rms if run.input_rms > 0 else math.nan
            measured = (run.input_rms, run.output_rms, gain, run.backward, run.grad_norm)
            rows.append(AuditRow(layer.weight, layer.activation, *measured, layer.uses))
        elif layer.weight not in found.covered:
            rows.append(_row(recorder, found, layer))
            node = found.ends[layer.weight][0]
            if node.name.endswith("_cell") and followed[weight_name(node.weights[0])].first:
                first_inputs.add(layer.weight)
    layers = {x.weight: replace(x, first=x.first or x.weight in first_inputs) for x in followed}
    result = _judged(tuple(rows), tuple(found.times), layers, followed, model_itself)
    return replace(result, notes=(*found.notes, *result.notes))


def _differentiable(model: nn.Module) -> AbstractContextManager[Any]:
    """cuDNN gives no gradient of a recurrent module in eval mode: torch's own kernels do."""
    evaluated = any(isinstance(m, nn.RNNBase) and not m.training for m in model.modules())
    return torch.backends.cudnn.flags(enabled=False) if evaluated else nullcontext()


def _row(recorder: Measured, found: Found, layer: Layer) -> AuditRow:
    node, after = found.ends[layer.weight]
    before = recorder.rms.get(node.parents[0], math.nan) if node.parents else math.nan
    if last_weight(node) != layer.weight:  # inside attention only the last one's output is seen
        nan = math.nan
        return AuditRow(layer.weight, layer.activation, before, nan, nan, nan, nan, layer.uses)
    output, end = (recorder.rms.get(recorder.value(n), math.nan) for n in (node, after))
    gain = end / before if before > 0 else math.nan
    gradient = found.gradients.get(recorder.value(node), math.nan)
    return AuditRow(
        layer.weight, layer.activation, before, output, gain, found.backward[node], gradient, layer.uses
    )


def _judged(
    rows: tuple[AuditRow, ...],
    times: tuple[AuditTime, ...],
    layers: Mapping[str, Layer],
    followed: Followed,
    model: nn.Module,
) -> Audit:
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
    for time in times:
        if reason := reason_through_time(time):
            off.setdefault(time.weight, reason)
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
    notes = notes_through_time(times, off)
    notes += _unmeasured(inner, growth, gradient_growth)
    if followed.unused:
        notes.append(
            f"not used in the run: {', '.join(followed.unused[:5])}"
            + (" ..." if len(followed.unused) > 5 else "")
        )
    return Audit(
        rows,
        {w: off[w] for w in dict.fromkeys((*layers, *(t.weight for t in times))) if w in off},
        growth,
        gradient_growth,
        tuple(notes),
        times,
    )


def _unmeasured(inner: Sequence[AuditRow], growth: float, gradient_growth: float) -> list[str]:
    """Why a growth from end to end could not be measured, or over what."""
    notes = []
    if math.isnan(growth):
        why = "no layer but embeddings and heads" if not inner else "the first is 0 or one is not finite"
        notes.append(f"growth of the signal not measured: {why}")
    away = [r.weight for r in inner if math.isnan(r.grad_norm) and math.isfinite(r.output_rms)]
    if away:
        names = ", ".join(away[:5]) + (" ..." if len(away) > 5 else "")
        notes.append(f"no gradient at {names}: frozen, detached or not finite; its growth is without them")
    elif math.isnan(gradient_growth) and inner:
        notes.append(
            f"growth of the gradient not measured: it is 0 or not finite at {inner[-1].weight}, "
            "the last layer before the head"
        )
    return notes


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
    # of the projections inside attention; a recurrent layer's output is seen
    unseen = layer.fused and not layer.kind.startswith("recurrent") and math.isnan(row.forward)
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


def _times(growth: float) -> str:
    return "not measured" if math.isnan(growth) else f"x{growth:.3g}"
