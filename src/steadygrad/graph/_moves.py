"""Whether targets were computed from what a model put out: r + gamma Q(s') of a value-learning loop."""

from __future__ import annotations

import torch
from torch import Tensor

MIN_VALUES = 8
MAX_VALUES = 4096
AGREE = 1e-3  # relative, between the slopes of two pairs


@torch.no_grad()
def moves_with(target: Tensor, output: Tensor) -> bool:
    """Whether most targets lie on one straight line over the output, or over its largest entry per row.

    Most, as the end of an episode has a target of its own. Independent values share a slope to a part in a thousand
    with no chance worth a name; a constant target or output tells nothing.

    Args:
        target: ``[rows, columns]``.
        output: of a module, any shape; one of another size is no match.
    """
    candidates = [output] if output.numel() == target.numel() else []
    if output.ndim > 1 and output.shape[-1] > 1 and output.numel() // output.shape[-1] == target.numel():
        candidates.append(output.amax(-1))
    return any(_on_a_line(target, candidate) for candidate in candidates)


def _on_a_line(target: Tensor, output: Tensor) -> bool:
    y, x = target.reshape(-1)[:MAX_VALUES].float(), output.detach().reshape(-1)[:MAX_VALUES].float()
    if len(x) < MIN_VALUES:
        return False
    half = len(x) // 2
    run, rise = x[:half] - x[half : 2 * half], y[:half] - y[half : 2 * half]
    far = run.abs() > 0.05 * run.abs().max()
    slope = rise[far] / run[far]  # host sync
    if len(slope) < MIN_VALUES // 2:
        return False
    middle = slope.median()
    agree = ((slope - middle).abs() <= AGREE * middle.abs()).float().mean()
    return bool(((middle.abs() > 1e-3) & (agree > 0.5)).item())  # host sync
