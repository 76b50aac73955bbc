"""Change the shape of the gradient instead of bounding it: take out the mean, or keep the direction only."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from steadygrad._check import positive
from steadygrad.clip._tensors import checked, joint_norm, norms_of, scale_, scale_each_
from steadygrad.clip.stats import ClipStats, clip_stats, nothing_to_clip

NO_LIMIT = float("inf")


@torch.no_grad()
def centralise_(grads: Sequence[Tensor | None], conv_only: bool = False) -> ClipStats:
    """Take out, in place, the mean of the gradient of each unit of a matrix or a convolution.

        g_u <- g_u - mean(g_u)        over all dimensions after the first

    When to use it: a convolutional net or a fully connected one with SGD or Adam; it works like a
    constraint that holds the mean of each unit's weights, smooths the loss and shrinks the gradient norm a
    little. Vectors (biases, gains) are left alone. Not for embeddings, where a row's mean carries meaning.

    Values in use: none to choose. ``conv_only`` leaves fully connected layers alone, the paper's GCC; the
    default is its GC.

    Cost: one read, one read and write of the matrices; one read for the norm.

    Args:
        grads: one gradient for each parameter, None where there is none. Changed in place.
        conv_only: only tensors of at least 4 dimensions.

    Returns:
        ``norm`` is the joint L2 norm before, ``clipped`` the share of tensors that were centred, ``scale`` 1.

    Empty, zero, nan: an empty list and a zero gradient are left alone. With a nan or inf anywhere nothing
    is changed and ``finite`` is False; otherwise it would spread over the unit. The mean is taken in
    float32 whatever the dtype.

    Example:
        >>> grad = torch.tensor([[1.0, 3.0], [5.0, 5.0]])
        >>> stats = centralise_([grad])
        >>> grad.tolist()
        [[-1.0, 1.0], [0.0, 0.0]]

    Source: Yong, Huang, Hua & Zhang (2020), equations 1 and 2, https://arxiv.org/abs/2004.01461
    """
    values = checked(grads)
    if not values:
        return nothing_to_clip()
    norm = joint_norm(norms_of(values))
    finite = norm.isfinite()
    centred = []
    for g in values.values():
        if g.ndim < (4 if conv_only else 2):
            continue
        dtype = torch.promote_types(g.dtype, torch.float32)
        mean = g.mean(dim=tuple(range(1, g.ndim)), keepdim=True, dtype=dtype)
        g.sub_(torch.where(finite.to(g.device), mean, 0.0))  # in float32, rounded once
        centred.append(g)
    stats = clip_stats(norm, torch.ones_like(norm), NO_LIMIT)
    share = torch.full_like(norm, len(centred) / len(values))
    return stats._replace(clipped=torch.where(finite, share, 0.0))


@torch.no_grad()
def normalise_by_global_norm_(grads: Sequence[Tensor | None], norm: float = 1.0) -> ClipStats:
    """Rescale the gradients in place, down or up, so that their joint L2 norm is ``norm``.

        g <- norm * g / ||g||        a zero gradient stays zero

    When to use it: plateaus and cliffs in turn, where the size of the gradient says nothing and its
    direction does: quasi-convex losses, (L0, L1)-smooth ones such as those of language models. Every step
    has the length ``lr * norm``, so the learning rate must fall for the run to settle. With Adam it only
    weighs the steps evenly.

    Values in use: ``norm`` 1, with the learning rate as the step's length; large-batch optimizers (LARS,
    LAMB, Muon) do the same for each tensor.

    Cost: one read of the gradients, one read and write.

    Args:
        grads: one gradient for each parameter, None where there is none. Changed in place.
        norm: the joint norm afterwards, > 0 and finite.

    Returns:
        ``norm`` before, the ``scale`` applied (may be above 1).

    Empty, zero, nan: an empty list and a zero gradient are left alone. With a nan or inf anywhere nothing
    is changed and ``finite`` is False.

    Example:
        >>> grads = [torch.tensor([3e-6]), torch.tensor([4e-6])]
        >>> stats = normalise_by_global_norm_(grads)
        >>> [round(g.item(), 4) for g in grads]
        [0.6, 0.8]

    Source: Hazan, Levy & Shalev-Shwartz (2015), Algorithm 1 (NGD), https://arxiv.org/abs/1507.02030; why
        clipping and normalising are one thing up to a constant: Zhang, He, Sra & Jadbabaie (2020),
        https://arxiv.org/abs/1905.11881
    """
    norm = positive("norm", norm, finite=True)
    values = checked(grads)
    if not values:
        return nothing_to_clip(norm)
    before = joint_norm(norms_of(values))
    scale = _unit_scale(before, norm)
    scale = torch.where(before.isfinite(), scale, 1.0)
    scale_(values, scale)
    return clip_stats(before, scale, norm)


@torch.no_grad()
def normalise_by_tensor_norm_(grads: Sequence[Tensor | None], norm: float = 1.0) -> ClipStats:
    """Rescale each gradient tensor in place, down or up, so that its own L2 norm is ``norm``.

        g_i <- norm * g_i / ||g_i||        a zero gradient stays zero

    When to use it: gradients that shrink or grow with depth by orders of magnitude, with plain SGD: every
    layer then moves by the same length. It removes the symptom of vanishing and exploding gradients, not
    the noise that a tiny gradient carries, which is blown up with it.

    Values in use: ``norm`` 1.

    Cost: one read of the gradients, one read and write.

    Args:
        grads: one gradient for each parameter, None where there is none. Changed in place.
        norm: the norm of each tensor afterwards, > 0 and finite.

    Returns:
        ``norm`` is the joint norm before, ``scale`` the smallest factor (may be above 1).

    Empty, zero, nan: an empty list and a zero gradient are left alone. With a nan or inf in any tensor
    nothing is changed and ``finite`` is False.

    Example:
        >>> grads = [torch.tensor([300.0]), torch.tensor([0.004])]
        >>> stats = normalise_by_tensor_norm_(grads)
        >>> [round(g.item(), 4) for g in grads]
        [1.0, 1.0]

    Source: Yu, Huang, Lin, Salakhutdinov & Carbonell (2017), block-normalised gradient,
        https://arxiv.org/abs/1707.04822
    """
    norm = positive("norm", norm, finite=True)
    values = checked(grads)
    if not values:
        return nothing_to_clip(norm)
    norms = norms_of(values)
    before = joint_norm(norms)
    scales = torch.where(before.isfinite(), _unit_scale(norms, norm), 1.0)
    scale_each_(values, scales)
    return clip_stats(before, scales, norm)


def _unit_scale(norm: Tensor, target: float) -> Tensor:
    """target / norm, and 1 where that has no value: a zero norm, or one so small that it overflows."""
    scale = target / norm
    return torch.where(scale.isfinite(), scale, 1.0)
