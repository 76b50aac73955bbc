"""The gradients that an optimizer is about to use."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim import Optimizer

from steadygrad.probe.names import flat_params
from steadygrad.probe.norms import gradient_norms, plain_values, total_norm


def joint_norm(optimizer: Optimizer) -> float:
    """Joint L2 norm of the gradients, without the factor of a GradScaler.

    What overflows float32 only as a norm is summed again in float64: ``inf`` means that a gradient holds NaN or an
    infinity. 0.0 where there is no gradient.
    """
    scale = getattr(optimizer, "grad_scale", None)  # a fused optimizer gets scaled gradients
    norms = gradient_norms([p.grad for p in flat_params(optimizer)], 1.0 if scale is None else float(scale))
    return total_norm(norms)


@torch.no_grad()
def unscale_(optimizer: Optimizer) -> None:
    """Do what a fused optimizer would do itself: take the factor of a GradScaler out of its gradients.

    Others get unscaled gradients, and are left alone.
    """
    scale = getattr(optimizer, "grad_scale", None)
    if not isinstance(scale, Tensor):
        return
    for p in flat_params(optimizer):
        if p.grad is not None:
            values = plain_values(p.grad)
            values.div_(scale.to(values.device))
    optimizer.grad_scale = None  # type: ignore[attr-defined]  # as after GradScaler.unscale_


@torch.no_grad()
def zero_(optimizer: Optimizer) -> None:
    """Fill the gradients with 0, in place: whoever reads ``p.grad`` afterwards finds a tensor there."""
    for p in flat_params(optimizer):
        if p.grad is not None:
            p.grad.zero_()
