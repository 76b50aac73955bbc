"""Attention logits: the soft cap, attention with capped logits, and the largest logit of each head."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def soft_cap_logits(logits: Tensor, cap: float) -> Tensor:
    """Bend logits smoothly so that none is larger than ``cap`` in absolute value.

        x <- cap * tanh(x / cap)

    Close to the identity below ``cap / 3`` and flat far above, so that the gradient dies where the logit is
    already at the cap. Infinite entries stay as they are: -inf is a mask, +inf an overflow that must show.

    When to use it: attention logits or output logits grow until the softmax picks one entry and training
    stops or explodes. For attention in your own model see `soft_cap`.

    Values in use: 50 for attention logits, 30 for output logits (Gemma 2).

    Cost: one pass over the logits, and one more tensor of their size kept for the gradient.

    Args:
        logits: of any shape and float dtype.
        cap: largest absolute value, > 0; inf changes nothing.

    Returns:
        A new tensor of the same dtype, computed in float32 at least.

    Empty, zero, inf, nan: an empty tensor and zeros come back as they are, inf and -inf and nan too; the
    gradient at inf is 0, at nan nan.

    Example:
        >>> [round(x, 2) for x in soft_cap_logits(torch.tensor([1.0, 50.0, 1e6, -torch.inf]), 50.0).tolist()]
        [1.0, 38.08, 50.0, -inf]

    Source: Gemma Team (2024, Gemma 2), section 2, "Logit soft-capping", https://arxiv.org/abs/2408.00118
    """
    check_cap(cap)
    if cap == math.inf:
        return logits
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return torch.where(wide.isinf(), wide.detach(), cap * torch.tanh(wide / cap)).to(logits.dtype)


def soft_capped_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cap: float,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Scaled dot-product attention whose logits are soft-capped before the mask.

        softmax(cap * tanh(scale * Q K^T / cap) + mask) V

    When to use it: you write the model yourself. To put it into a model that exists, see `soft_cap`.

    Values in use: cap 50 (Gemma 2).

    Cost: written out, not fused: the logits (..., L, S) are held in float32, several times for the gradient.
    For long sequences on CUDA use torch's ``flex_attention`` with a tanh ``score_mod`` in your own code.

    Args:
        query: (..., H, L, E); key: (..., H, S, E); value: (..., H, S, Ev).
        cap: largest absolute logit before the mask, > 0; inf caps nothing.
        attn_mask, dropout_p, is_causal, scale, enable_gqa: as in ``F.scaled_dot_product_attention``.

    Returns:
        (..., H, L, Ev), in the dtype that torch's function would give. A query that the mask leaves no key
        gets zeros, and finite gradients, as in torch.

    Empty, zero, inf, nan: no query gives an empty result, no key zeros. A nan in a query or key is in the
    rows that it concerns.

    Example:
        >>> q = k = v = torch.eye(2)[None, None]
        >>> out = soft_capped_attention(100 * q, k, v, cap=1.0, scale=1.0)
        >>> bool(torch.allclose(out, torch.softmax(torch.eye(2), -1)))
        True

    Source: Gemma Team (2024, Gemma 2), section 2, "Logit soft-capping", https://arxiv.org/abs/2408.00118
    """
    device = query.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else query.dtype
    with torch.autocast(device, enabled=False):
        logits = soft_cap_logits(attention_logits(query, key, scale, enable_gqa), cap)
        logits = masked(logits, attn_mask, is_causal)
        # a row with nothing left: zeros, and no nan in the gradient, which needs both fills
        nothing = (logits == -math.inf).all(-1, keepdim=True)
        weights = torch.softmax(logits.masked_fill(nothing, 0.0), -1).masked_fill(nothing, 0.0)
        if dropout_p > 0:
            weights = F.dropout(weights, dropout_p)
        if enable_gqa:
            value = repeat_heads(value, query.size(-3))
        return weights.to(dtype) @ value.to(dtype)


@torch.no_grad()
def max_logit_per_head(
    query: Tensor,
    key: Tensor,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
    chunk_size: int = 1024,
) -> Tensor:
    """The largest number that goes into the softmax of each attention head.

        S_max^h = max over batch, i, j of  scale * q_i^h . k_j^h + mask_ij

    When to use it: as the signal that attention is about to blow up, and as what QK-clip steers by. To
    read it off a model that exists, see `max_attention_logit`.

    Values in use: QK-clip acts above 100 (Kimi K2).

    Cost: the product of all queries and keys once more, without gradient, in float32; memory for
    ``batch * heads * chunk_size * S`` numbers. Take it on sampled steps.

    Args:
        query: (..., H, L, E); key: (..., H, S, E). With fewer than four dimensions there are no heads.
        attn_mask, is_causal, scale, enable_gqa: as in ``F.scaled_dot_product_attention``. Masked positions do
            not count; a float mask is part of the logit.
        chunk_size: queries at a time, >= 1.

    Returns:
        (H,), or a single number where there are no heads; float32 at least, on the device of the query.

    Empty, zero, inf, nan: without a logit (empty, or all masked) -inf. An inf or nan in a head shows in its
    maximum.

    Example:
        >>> q = torch.tensor([[[[1.0], [2.0]], [[3.0], [-9.0]]]])  # 2 heads, 2 queries
        >>> max_logit_per_head(q, torch.ones(1, 2, 1, 1)).tolist()
        [2.0, 3.0]

    Source: Kimi Team (2025, Kimi K2), section 2.1, https://arxiv.org/abs/2507.20534; Dehghani et al. (2023,
        ViT-22B), https://arxiv.org/abs/2302.05442
    """
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
    heads = query.size(-3) if query.ndim >= 4 else None
    found = []
    with torch.autocast(query.device.type, enabled=False):
        for start in range(0, query.size(-2), chunk_size):
            rows = slice(start, start + chunk_size)
            logits = attention_logits(query[..., rows, :], key, scale, enable_gqa)
            mask = attn_mask
            if mask is not None and mask.ndim > 1 and mask.size(-2) > 1:
                mask = mask[..., rows, :]
            found.append(max_over_head(masked(logits, mask, is_causal, start), heads))
    if not found:
        return max_over_head(query.new_zeros(*query.shape[:-1], 0).float(), heads)
    return torch.stack(found).amax(0)


def check_cap(cap: float) -> None:
    if not cap > 0:
        raise ValueError(f"cap must be positive, got {cap}; Gemma 2 takes 50 for attention")


def attention_logits(query: Tensor, key: Tensor, scale: float | None, enable_gqa: bool) -> Tensor:
    """``scale * Q K^T`` in float32 at least: (..., H, L, S)."""
    if query.is_nested or key.is_nested:
        raise ValueError("nested tensors have no logits here: pad them, or leave this model as it is")
    dtype = torch.promote_types(query.dtype, torch.float32)
    if enable_gqa:
        key = repeat_heads(key, query.size(-3))
    scale = 1 / math.sqrt(query.size(-1)) if scale is None else scale
    return (query.to(dtype) * scale) @ key.to(dtype).mT


def repeat_heads(x: Tensor, heads: int) -> Tensor:
    """Grouped keys or values: each serves ``heads / own heads`` query heads in a row."""
    return x.repeat_interleave(heads // x.size(-3), -3)


def masked(logits: Tensor, attn_mask: Tensor | None, is_causal: bool, first_row: int = 0) -> Tensor:
    if is_causal:
        if attn_mask is not None:
            raise ValueError("attn_mask and is_causal exclude each other: put the causal mask into attn_mask")
        allowed = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).tril(first_row)
        return logits.masked_fill(~allowed, -math.inf)
    if attn_mask is None:
        return logits
    if attn_mask.dtype == torch.bool:
        return logits.masked_fill(~attn_mask, -math.inf)
    return logits + attn_mask


@torch.no_grad()
def max_over_head(logits: Tensor, heads: int | None) -> Tensor:
    """(heads,) if the heads are dimension -3, or the first of three as batch * heads; else one number."""
    logits = logits.detach()
    if heads is not None and logits.ndim == 3:
        logits = logits.unflatten(0, (-1, heads))
    if heads is None:
        flat = logits.reshape(1, -1)
    else:
        flat = logits.movedim(-3, 0).reshape(heads, -1) if logits.numel() else logits.new_zeros(heads, 0)
    flat = flat.to(torch.promote_types(flat.dtype, torch.float32))
    if flat.size(-1) == 0:
        found = torch.full_like(flat.sum(-1), -math.inf)
    else:
        found = flat.amax(-1)
    return found if heads is not None else found.squeeze(0)
