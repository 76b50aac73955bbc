"""AGC: clip the gradient of each unit by the size of the unit's own weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from steadygrad._check import positive
from steadygrad.clip._tensors import checked, joint_norm, match, norms_of
from steadygrad.clip.stats import ClipStats, clip_stats, nothing_to_clip


def unit_norm(x: Tensor) -> Tensor:
    """L2 norm of each unit: a row of a matrix, a filter of a convolution, a whole vector.

    A unit is everything that belongs to one output: all dimensions after the first. The result broadcasts to
    ``x`` and is at least float32.

    Example:
        >>> unit_norm(torch.tensor([[3.0, 4.0], [0.0, 2.0]])).flatten().tolist()
        [5.0, 2.0]
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    dims = tuple(range(1, x.ndim))
    return torch.linalg.vector_norm(x, dim=dims or None, keepdim=True, dtype=dtype)


@torch.no_grad()
def clip_by_unit_norm_(
    grads: Sequence[Tensor | None],
    params: Sequence[Tensor | None],
    clip_factor: float = 0.01,
    eps: float = 1e-3,
) -> ClipStats:
    """Shrink the gradient of each unit in place to at most ``clip_factor`` times the norm of its weights.

        g_u <- g_u * min(1, lambda * max(||w_u||, eps) / ||g_u||)

    for every unit u: a row of a weight matrix, a filter of a convolution, a whole bias.

    When to use it: convolutional nets without BatchNorm, large batches, high learning rates: one step can
    then move no unit by more than ``lr * clip_factor`` of its size. Leave out the last linear layer, as the
    paper does. With an optimizer that rescales the gradient anyway (Adam) it does little.

    Values in use: ``clip_factor`` 0.01 in NFNets at batch 4096, more for smaller batches (its ablation);
    ``eps`` 1e-3, which lets weights that start at 0 move.

    Cost: one read of the gradients and one of the weights, one read and write of the gradients.

    Args:
        grads: one gradient for each parameter, None where there is none. Changed in place.
        params: the parameters, in the order of ``grads``. Not changed.
        clip_factor: lambda, largest ratio of gradient norm to weight norm, > 0.
        eps: smallest weight norm assumed, > 0.

    Returns:
        ``norm`` is the joint L2 norm before clipping, ``scale`` the smallest factor of any unit, ``limit``
        is lambda, ``clipped`` the share of tensors with a clipped unit.

    Empty, zero, nan: an empty list and a zero gradient are left alone. With a nan or inf in any gradient no
    unit is changed and ``finite`` is False; a unit whose weights are not finite is left alone. Of a sparse
    gradient the rows that it holds are clipped.

    Example:
        >>> weight, grad = torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.ones(2, 2)
        >>> stats = clip_by_unit_norm_([grad], [weight], clip_factor=0.1)
        >>> [round(n, 6) for n in unit_norm(grad).flatten().tolist()]  # 0.1 * 5 and 0.1 * eps
        [0.5, 0.0001]

    Source: Brock, De, Smith & Simonyan (2021), equation 3, https://arxiv.org/abs/2102.06171
    """
    clip_factor = positive("clip_factor", clip_factor)
    eps = positive("eps", eps)
    match(grads, params, "params")
    values = checked(grads)
    weights = {i: _rows(grads[i], params[i], i) for i in values}
    if not values:
        return nothing_to_clip(clip_factor)
    norms = {i: unit_norm(g) for i, g in values.items()}
    norm = joint_norm(norms_of(norms))
    finite = norm.isfinite()
    smallest = []
    for i, g in values.items():
        max_norm = clip_factor * unit_norm(weights[i]).clamp(min=eps)
        scale = (max_norm / norms[i]).clamp(max=1.0)  # a zero gradient gives inf, clamped to 1
        scale = torch.where(finite.to(g.device) & max_norm.isfinite(), scale, 1.0)
        g.mul_(scale)
        smallest.append(scale.amin().to(norm))
    return clip_stats(norm, torch.stack(smallest), clip_factor)


def _rows(grad: Tensor | None, param: Tensor | None, position: int) -> Tensor:
    """The weights that a gradient belongs to: all of them, or the rows of a sparse gradient."""
    if param is None:
        raise ValueError(f"params[{position}] is None, and there is a gradient for it: pass the parameter")
    if grad is None or not grad.is_sparse:
        return param
    if grad.sparse_dim() != 1:
        raise TypeError(
            f"grads[{position}] is sparse in {grad.sparse_dim()} dimensions: a unit is a row, "
            "so only the first dimension may be sparse"
        )
    return param[grad._indices()[0]]
