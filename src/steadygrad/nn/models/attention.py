"""Multi-head attention with query, key and value as layers of their own."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steadygrad._check import count, fraction
from steadygrad.nn.models._parts import Norm


class Attention(nn.Module):
    """Multi-head attention whose query, key, value and output projections are four linear layers.

        y = W_o N([head_1, .., head_h]),        head_i = softmax(q_i k_i^T / sqrt(d_h)) v_i

    N the norm of sub-LN, none unless one is given.

    When to use it: in a Transformer whose projections should be seen one by one: by an initialisation, by a
    stabiliser of the queries and keys, by a probe. `torch.nn.MultiheadAttention` packs them into one
    parameter; the function is the same.

    Values in use: d_model / num_heads 32 to 128; num_heads 8 (Vaswani), 12 (GPT-2).

    Cost: four linear layers and `torch.nn.functional.scaled_dot_product_attention`, fused where the device
    has a kernel for it.

    Args:
        d_model: width of input and output, a multiple of num_heads.
        num_heads: at least 1.
        dropout: of the attention weights, 0 to 1.
        bias: whether the four layers have one.
        causal: a position sees only itself and those before it.
        norm: makes a norm from d_model for N; None for none.

    Called with x (B, T, d_model) it attends to x, called with x and memory (B, S, d_model) to the memory.
    ``key_padding_mask`` (B, S), bool, is True at keys to leave out, as in torch. Returns (B, T, d_model).

    Empty, zero, nan: an empty batch gives an empty one. A query whose keys are all left out gets W_o 0 + b_o.
    An inf or nan in a position stays visible in every position that sees it.

    Example:
        >>> Attention(16, 4, causal=True)(torch.randn(2, 5, 16)).shape
        torch.Size([2, 5, 16])

    Source: Vaswani et al. (2017), section 3.2, https://arxiv.org/abs/1706.03762; sub-LN: Wang et al. (2022,
    Magneto), https://arxiv.org/abs/2210.06423
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        *,
        dropout: float = 0.0,
        bias: bool = True,
        causal: bool = False,
        norm: Norm | None = None,
    ) -> None:
        super().__init__()
        if count("d_model", d_model) % count("num_heads", num_heads):
            raise ValueError(f"d_model must be a multiple of num_heads, got {d_model} and {num_heads}")
        self.num_heads = num_heads
        self.dropout = fraction("dropout", dropout)
        self.causal = causal
        self.q_proj = nn.Linear(d_model, d_model, bias=bias)
        self.k_proj = nn.Linear(d_model, d_model, bias=bias)
        self.v_proj = nn.Linear(d_model, d_model, bias=bias)
        self.norm = None if norm is None else norm(d_model)
        self.out_proj = nn.Linear(d_model, d_model, bias=bias)

    def forward(
        self, input: Tensor, memory: Tensor | None = None, *, key_padding_mask: Tensor | None = None
    ) -> Tensor:
        source = input if memory is None else memory
        q, k, v = (
            projection(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, heads, T, d_h)
            for projection, x in ((self.q_proj, input), (self.k_proj, source), (self.v_proj, source))
        )
        seen = None
        if key_padding_mask is not None:
            if key_padding_mask.dtype != torch.bool:
                raise TypeError(
                    f"key_padding_mask must be bool, True at keys to leave out, got {key_padding_mask.dtype}"
                )
            seen = ~key_padding_mask[:, None, None, :]
            if self.causal:
                seen = seen & torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
        mixed = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=seen,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=self.causal and seen is None,
        )
        heads = mixed.transpose(1, 2).flatten(2)
        return self.out_proj(heads if self.norm is None else self.norm(heads))

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, dropout={self.dropout}, causal={self.causal}"
