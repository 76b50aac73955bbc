"""torch's recurrent calls taken apart: each layer run again alone, for what the call itself does not show."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from steadygrad.init._measured import FusedCall, norm_of, rms
from steadygrad.init._through_time import Profile


@dataclass(frozen=True, slots=True)
class LayerRun:
    """One direction of one layer."""

    index: int  # of the layer and direction, in torch's order
    input_rms: float
    output_rms: float
    backward: float  # of a random gradient at all its outputs
    grad_norm: float  # of the loss gradient that arrives at its outputs and last states; nan if none does
    loss: Profile
    alone: Profile


def layer_runs(call: FusedCall, arriving: tuple[Tensor | None, ...] | None) -> list[LayerRun]:
    """Run each layer again and send two gradients back through it.

    ``arriving`` is the loss gradient at the call's outputs (output, h_n, c_n); None if it does not go through.
    Dropout between the layers is drawn anew.
    """
    runs = list(_forward(call))
    found: list[LayerRun] = []
    above = arriving[0] if arriving else None
    for layer, (x, outputs) in reversed(list(enumerate(runs))):
        below = None
        for direction in reversed(range(call.directions)):
            index = layer * call.directions + direction
            own = [_half(call, o, direction) if i == 0 else o[direction] for i, o in enumerate(outputs)]
            loss, norm, got = Profile([math.nan] * call.steps), math.nan, None
            if arriving is not None:
                states = [g[index] if g is not None else None for g in arriving[1:]]
                given = [_half(call, above, direction) if above is not None else None, *states]
                norm, got = norm_of(*given), _back(own, x, given)
                loss = Profile(_in_time(call, got, direction))
                below = got if below is None else below + got
            seed = [torch.randn_like(own[1]), *[None] * (len(own) - 2)]
            alone = _back(own, x, [None, *seed])
            everywhere = torch.randn_like(own[0])
            backward = norm_of(_back(own, x, [everywhere])) / (norm_of(everywhere) or math.nan)
            profile = Profile(_in_time(call, alone, direction))
            found.append(LayerRun(index, rms(x), rms(own[0]), backward, norm, loss, profile))
        above = below
    return found[::-1]


def _forward(call: FusedCall) -> Iterator[tuple[Tensor, tuple[Tensor, ...]]]:
    """Input and outputs (output, h_n, c_n) of each layer."""
    dtype, per = call.weights[0].dtype, call.per_direction * call.directions
    x = call.input.to(dtype)
    for layer in range(call.num_layers):
        x = x.detach().requires_grad_()
        rows = slice(layer * call.directions, (layer + 1) * call.directions)
        state = tuple(s[rows].to(dtype).contiguous() for s in call.state)
        given = torch.nn.functional.dropout(x, call.dropout) if layer and call.dropout else x
        weights = list(call.weights[layer * per : (layer + 1) * per])
        rest = (
            state if len(state) > 1 else state[0],
            weights,
            call.has_biases,
            1,
            0.0,
            True,
            call.directions > 1,
        )
        data = (given,) if call.sizes is None else (given, call.sizes)
        with torch.backends.cudnn.flags(enabled=False):  # it warns of weights that are not in one piece
            outputs = call.func(*data, *rest, *(() if call.sizes is not None else (call.batch_first,)))
        yield x, outputs
        x = outputs[0]


def _half(call: FusedCall, output: Tensor, direction: int) -> Tensor:
    return output.chunk(call.directions, -1)[direction]


def _back(outputs: list[Tensor], x: Tensor, gradients: list[Tensor | None]) -> Tensor:
    pairs = [(o, g.to(o.dtype)) for o, g in zip(outputs, gradients, strict=False) if g is not None]
    if not pairs:
        return torch.zeros_like(x)
    (found,) = torch.autograd.grad(
        [o for o, _ in pairs], x, [g for _, g in pairs], retain_graph=True, allow_unused=True
    )
    return torch.zeros_like(x) if found is None else found


def _in_time(call: FusedCall, gradient: Tensor, direction: int) -> list[float]:
    """Norm at each step, in the order of the direction's run; of packed sequences the longest count."""
    if call.sizes is not None:
        sizes = call.sizes.tolist()
        steps = [part[: sizes[-1]] for part in gradient.split(sizes)]
    else:
        steps = list(gradient.unbind(int(call.batch_first)))
    norms = [norm_of(step) for step in steps]
    return norms[::-1] if direction else norms
