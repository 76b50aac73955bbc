"""Clip by a bound that the user sets: each value, the joint norm, the norm of each tensor, or its RMS."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from steadygrad._check import positive
from steadygrad.clip._tensors import checked, clamp_, joint_norm, norms_of, scale_, scale_each_
from steadygrad.clip.stats import ClipStats, clip_stats, nothing_to_clip


@torch.no_grad()
def clip_by_global_norm_(
    grads: Sequence[Tensor | None], max_norm: float, norm_type: float = 2.0
) -> ClipStats:
    """Shrink the gradients in place until their joint norm is at most ``max_norm``; the direction stays.

        g <- g * min(1, max_norm / ||g||_p)        ||g||_p^p = sum_i ||g_i||_p^p

    When to use it: the first thing to try against exploding gradients, and the habit of nearly every
    recurrent net and Transformer. It bounds one bad step; it does not cure a net whose gradient grows with
    depth, where one global factor starves the deep layers to save the shallow ones.

    Values in use: 1.0 for GPT-3, LLaMA and most language models; 0.25 for the AWD-LSTM; 5 to 10 for LSTM
    translation (Sutskever et al. 2014 took 5); 0.1 for DETR. Look at the norm of a healthy run and take a
    little more.

    Cost: one read of the gradients, one read and write.

    Args:
        grads: one gradient for each parameter, None where there is none; any shapes, float dtypes, devices;
            sparse and sharded ones too. Changed in place.
        max_norm: largest joint norm allowed, > 0; inf measures only.
        norm_type: order p of the norm, > 0; inf for the largest absolute value.

    Returns:
        ``norm`` before clipping, the one ``scale`` applied. Nothing is copied to the host.

    Empty, zero, nan: an empty list and a zero gradient are left alone. With a nan or inf anywhere, or a
    norm beyond float32, nothing is changed and ``finite`` is False: torch's function turns one nan into all
    nan, and one inf into a gradient of zeros. A norm taken in float32 whatever the dtype; torch takes a
    bf16 norm in bf16.

    Example:
        >>> grads = [torch.tensor([3.0]), torch.tensor([4.0])]
        >>> stats = clip_by_global_norm_(grads, max_norm=1.0)
        >>> stats.norm.item(), [round(g.item(), 3) for g in grads]
        (5.0, [0.6, 0.8])

    Source: Pascanu, Mikolov & Bengio (2013), Algorithm 1, https://arxiv.org/abs/1211.5063
    """
    max_norm = positive("max_norm", max_norm)
    norm_type = positive("norm_type", norm_type)
    values = checked(grads)
    if not values:
        return nothing_to_clip(max_norm)
    norm = joint_norm(norms_of(values, norm_type), norm_type)
    scale = (max_norm / norm).clamp(max=1.0)  # norm == 0 gives inf, clamped to 1: no epsilon needed
    scale = torch.where(norm.isfinite(), scale, 1.0)
    scale_(values, scale)
    return clip_stats(norm, scale, max_norm)


@torch.no_grad()
def clip_by_tensor_norm_(
    grads: Sequence[Tensor | None], max_norm: float, norm_type: float = 2.0
) -> ClipStats:
    """Shrink each gradient tensor in place until its own norm is at most ``max_norm``.

        g_i <- g_i * min(1, max_norm / ||g_i||_p)

    When to use it: the layers differ in scale by orders of magnitude, and one of them must not decide the
    step of all the others. It turns the joint direction, which a global norm does not; and the same bound
    means less to a large tensor than to a small one, where `clip_by_block_rms_` is fairer.

    Values in use: like the global norm's, divided by about the root of the number of tensors.

    Cost: one read of the gradients, one read and write.

    Args:
        grads: one gradient for each parameter, None where there is none. Changed in place.
        max_norm: largest norm of one tensor, > 0.
        norm_type: order p of the norm, > 0; inf for the largest absolute value.

    Returns:
        ``norm`` is the joint norm before clipping, ``scale`` the smallest factor, ``clipped`` the share of
        tensors.

    Empty, zero, nan: an empty list and a zero gradient are left alone. With a nan or inf in any tensor no
    tensor is changed and ``finite`` is False.

    Example:
        >>> grads = [torch.tensor([3.0]), torch.tensor([0.5])]
        >>> clip_by_tensor_norm_(grads, max_norm=1.0).clipped.item(), [g.item() for g in grads]
        (0.5, [1.0, 0.5])

    Source: Pascanu, Mikolov & Bengio (2013), Algorithm 1, applied to each tensor,
        https://arxiv.org/abs/1211.5063
    """
    max_norm = positive("max_norm", max_norm)
    norm_type = positive("norm_type", norm_type)
    values = checked(grads)
    if not values:
        return nothing_to_clip(max_norm)
    norms = norms_of(values, norm_type)
    return _scale_to(values, norms, torch.full_like(norms, max_norm), joint_norm(norms, norm_type), max_norm)


@torch.no_grad()
def clip_by_block_rms_(grads: Sequence[Tensor | None], max_rms: float) -> ClipStats:
    """Shrink each gradient tensor in place until the root mean square of its entries is at most ``max_rms``.

        g_i <- g_i / max(1, RMS(g_i) / max_rms)        RMS(g) = ||g||_2 / sqrt(n)

    When to use it: as `clip_by_tensor_norm_`, with a bound that means the same for a bias of 10 entries and
    a matrix of 10 million. On the *updates* of an optimizer it is Adafactor's update clipping (``max_rms =
    d = 1``).

    Values in use: 1.0 on updates (Adafactor, T5). On raw gradients take a little more than a healthy run
    shows.

    Cost: one read of the gradients, one read and write.

    Args:
        grads: one gradient (or update) for each parameter, None where there is none. Changed in place.
        max_rms: largest root mean square of one tensor, > 0.

    Returns:
        ``norm`` is the joint L2 norm before clipping, ``scale`` the smallest factor, ``clipped`` the share
        of tensors.

    Empty, zero, nan: an empty list and a zero gradient are left alone. With a nan or inf in any tensor no
    tensor is changed and ``finite`` is False. The mean of a sparse gradient runs over the rows that it
    holds.

    Example:
        >>> grads = [torch.full((100,), 3.0), torch.full((4,), 0.5)]
        >>> clip_by_block_rms_(grads, max_rms=1.0).scale.item(), grads[0][0].item(), grads[1][0].item()
        (0.3333333432674408, 1.0, 0.5)

    Source: Shazeer & Stern (2018), section 6, https://arxiv.org/abs/1804.04235; ``clip_by_block_rms`` of
        optax
    """
    max_rms = positive("max_rms", max_rms)
    values = checked(grads)
    if not values:
        return nothing_to_clip(max_rms)
    norms = norms_of(values)
    roots = torch.stack([torch.full_like(norms[0], v.numel() ** 0.5) for v in values.values()])
    return _scale_to(values, norms, max_rms * roots, joint_norm(norms), max_rms)


def _scale_to(
    values: dict[int, Tensor], norms: Tensor, limits: Tensor, norm: Tensor, limit: float
) -> ClipStats:
    scales = torch.where(norm.isfinite(), (limits / norms).clamp(max=1.0), 1.0)
    scale_each_(values, scales)
    return clip_stats(norm, scales, limit)


@torch.no_grad()
def clip_by_value_(grads: Sequence[Tensor | None], clip_value: float) -> ClipStats:
    """Clamp every entry of the gradients in place to [-clip_value, clip_value].

        g <- max(-c, min(c, g))

    When to use it: a few entries are wild and the rest is sound (heavy-tailed noise, as in attention
    models), or a reinforcement learner whose rewards have outliers. It turns the direction of the step;
    prefer a norm otherwise.

    Values in use: 0.5 to 1 in much recurrent code (Graves 2013 clipped the derivative at LSTM inputs to
    [-10, 10]); 1 for DQN's error.

    Cost: one read of the gradients, two reads and writes: twice torch's, for the read that finds a nan.

    Args:
        grads: one gradient for each parameter, None where there is none. Changed in place.
        clip_value: largest absolute value allowed, > 0.

    Returns:
        ``norm`` is the largest absolute value before clipping, ``scale`` the factor that this entry received,
        ``clipped`` the share of tensors with an entry beyond the bound.

    Empty, zero, nan: an empty list and a zero gradient are left alone. With a nan or inf anywhere nothing
    is changed and ``finite`` is False; torch's function turns an inf into ``clip_value`` and so hides it.

    Example:
        >>> grads = [torch.tensor([3.0, -0.5]), torch.tensor([-4.0])]
        >>> clip_by_value_(grads, clip_value=1.0).norm.item(), [g.tolist() for g in grads]
        (4.0, [[1.0, -0.5], [-1.0]])

    Source: Mikolov (2012), PhD thesis; the coordinate-wise clipping (CClip) of Zhang et al. (2020),
        https://arxiv.org/abs/1912.03194
    """
    clip_value = positive("clip_value", clip_value)
    values = checked(grads)
    if not values:
        return nothing_to_clip(clip_value)
    largest = norms_of(values, float("inf"))
    norm = joint_norm(largest, float("inf"))
    finite = norm.isfinite()
    clamp_(values, torch.where(finite, torch.full_like(norm, clip_value), float("inf")))
    return clip_stats(norm, torch.where(finite, (clip_value / largest).clamp(max=1.0), 1.0), clip_value)
