"""QK-norm on tensors: what is done to queries and keys before their product."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def rms_normalise(x: Tensor, eps: float = 1e-6) -> Tensor:
    """Give each query or key vector a root mean square of 1.

        x <- x / sqrt(mean(x^2) + eps)

    ``F.rms_norm`` over the last dimension without weights, in float32 whatever the dtype of ``x``.

    When to use it: the QK-norm of today's language models; with a learned scale behind it, see `qk_norm`.

    Values in use: eps 1e-6; ViT-22B (its layer norms have neither bias nor centering), Qwen3, Gemma 3.

    Cost: one pass over x.

    Args:
        x: (..., head_dim), float.
        eps: added to the mean square, > 0.

    Returns:
        A tensor of the shape and dtype of x. Logits of two such vectors times ``1/sqrt(head_dim)`` are at most
        ``sqrt(head_dim)``.

    Empty, zero, inf, nan: empty and zero vectors come back as they are; a vector with an inf or nan holds nan.

    Example:
        >>> rms_normalise(torch.tensor([30.0, 40.0])).square().mean().item()
        1.0

    Source: Zhang & Sennrich (2019, RMSNorm), https://arxiv.org/abs/1910.07467; on queries and keys: Dehghani
        et al. (2023, ViT-22B), section 2, https://arxiv.org/abs/2302.05442
    """
    positive_eps(eps)
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return F.rms_norm(wide, x.shape[-1:], eps=eps).to(x.dtype) if x.numel() else x


def layer_normalise(x: Tensor, eps: float = 1e-6) -> Tensor:
    """Give each query or key vector a mean of 0 and a variance of 1.

        x <- (x - mean(x)) / sqrt(var(x) + eps)

    ``F.layer_norm`` over the last dimension without weights, in float32 whatever the dtype of ``x``.

    When to use it: where a model that you follow has it (StableLM 2 12B, Persimmon-8B). It also removes the mean
    of each vector, which `rms_normalise` keeps, so that it changes a trained net more.

    Values in use: eps 1e-5 (StableLM, Persimmon), 1e-6 (flax).

    Cost: one pass over x.

    Args:
        x: (..., head_dim), float.
        eps: added to the variance, > 0.

    Returns:
        A tensor of the shape and dtype of x.

    Empty, zero, inf, nan: empty and zero vectors come back as they are; a vector with an inf or nan holds nan.

    Example:
        >>> [round(v, 4) for v in layer_normalise(torch.tensor([1.0, 3.0])).tolist()]
        [-1.0, 1.0]

    Source: Ba, Kiros & Hinton (2016), https://arxiv.org/abs/1607.06450; on queries and keys: Wortsman et al.
        (2023), section 3.1, https://arxiv.org/abs/2309.14322
    """
    positive_eps(eps)
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return F.layer_norm(wide, x.shape[-1:], eps=eps).to(x.dtype) if x.numel() else x


def l2_normalise(x: Tensor, eps: float = 1e-12) -> Tensor:
    """Give each query or key vector length 1, so that their product is a cosine.

        x <- x / max(||x||, eps)

    ``F.normalize`` over the last dimension, in float32 whatever the dtype of ``x``.

    When to use it: QKNorm as first published; multiply the cosines by `cosine_scale` instead of dividing by
    ``sqrt(head_dim)``. It differs from `rms_normalise` by a factor ``sqrt(head_dim)`` that a learned
    scale takes up.

    Values in use: with a learned number in front that starts at `cosine_scale`.

    Cost: one pass over x.

    Args:
        x: (..., head_dim), float.
        eps: smallest length assumed, > 0.

    Returns:
        A tensor of the shape and dtype of x.

    Empty, zero, inf, nan: empty and zero vectors come back as they are; a vector with an inf or nan holds nan.

    Example:
        >>> [round(v, 4) for v in l2_normalise(torch.tensor([30.0, 40.0])).tolist()]
        [0.6, 0.8]

    Source: Henry et al. (2020), section 3, https://arxiv.org/abs/2010.04245
    """
    positive_eps(eps)
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return F.normalize(wide, dim=-1, eps=eps).to(x.dtype) if x.numel() else x


def cosine_scale(length: int) -> float:
    """The number that QKNorm's learned scale starts at.

        g_0 = log2(L^2 - L)

    When to use it: with `l2_normalise`, as the start of the learned g in ``softmax(g * Q K^T) V``.

    Values in use: L is the 97.5th percentile of the sequence lengths of the training data (Henry et al.).

    Cost: none.

    Args:
        length: L, at least 3 (below, the logarithm is not above 1).

    Returns:
        g_0.

    Empty, zero, inf, nan: refused, as any length below 3.

    Example:
        >>> round(cosine_scale(128), 3)
        13.989

    Source: Henry et al. (2020), section 3, https://arxiv.org/abs/2010.04245
    """
    if not 3 <= length < math.inf:
        raise ValueError(f"length must be at least 3 and finite, got {length}")
    return math.log2(length * length - length)


def positive_eps(eps: float) -> None:
    if not 0 < eps < math.inf:
        raise ValueError(f"eps must be positive and finite, got {eps}")
