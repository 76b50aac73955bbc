"""Self-paced learning: the loss itself says which samples are easy."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def self_paced_weights(losses: Tensor, threshold: float | Tensor) -> Tensor:
    """Weights that leave the samples out whose loss is too large for now.

        v_i = 1 if l_i < lambda else 0

    Usage::

        losses = F.cross_entropy(model(x), y, reduction="none")
        v = self_paced_weights(losses, threshold)
        loss = (v * losses).sum() / v.sum().clamp(min=1)

    When to use it: no difficulty is known beforehand, labels are noisy, single samples blow the gradient up.
    For an order of the whole dataset by its losses see ``set_difficulty`` of the curriculum samplers.

    Limits: what is hard is not looked at until the threshold lets it in, and a threshold below all losses
    trains on nothing.

    Values in use: a threshold that lets in about half of the samples at first and grows by 1.3 an epoch, until
    it lets in all.

    Cost: a comparison for each sample; nothing is copied to the host.

    Args:
        losses: one for each sample, any shape, float; not changed.
        threshold: lambda (1/K in the paper), above 0; inf lets in every finite loss. A tensor is not checked.

    Returns weights of 0 and 1 in the shape and dtype of ``losses``, without gradient. A loss that is nan or
    inf has weight 0; multiply with care: 0 * nan is nan, so take ``torch.where(v > 0, losses, 0)`` there. An
    empty tensor gives an empty one, and a loss of 0 has weight 1.

    Example:
        >>> self_paced_weights(torch.tensor([0.2, 3.0, float("nan")]), threshold=1.0)
        tensor([1., 0., 0.])

    Source: Kumar, Packer & Koller (2010), section 4, Algorithm 2,
    https://papers.nips.cc/paper/3923-self-paced-learning-for-latent-variable-models
    """
    if not isinstance(losses, Tensor) or not losses.is_floating_point():
        got = losses.dtype if isinstance(losses, Tensor) else type(losses).__name__
        raise TypeError(f"losses must be a float tensor, one entry for each sample, got {got}")
    if not isinstance(threshold, Tensor) and not threshold > 0:  # nan fails too
        raise ValueError(f"threshold must be above 0, got {threshold}")
    values = losses.float() if losses.dtype in (torch.float16, torch.bfloat16) else losses
    return ((values < threshold) & values.isfinite()).to(losses.dtype)
