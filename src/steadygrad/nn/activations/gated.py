"""SwiGLU on the packed output of one projection, with the clamp that keeps its product in range."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from steadygrad.nn.activations._check import checked_limit, dimension, groups_of


def swiglu(x: Tensor, dim: int = -1, *, limit: float | None = None) -> Tensor:
    """``silu(a) * b`` of the halves a, b of x along ``dim``, each clamped before; see ``SwiGLU``."""
    groups_of(x, 2, dim)
    gate, up = x.chunk(2, dim)
    limit = checked_limit(limit)
    if limit is not None:
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return F.silu(gate) * up


class SwiGLU(nn.Module):
    """Multiply one half of the features by SiLU of the other half, if asked within a limit.

        [a, b] = x,        f(x) = silu(min(a, limit)) * clip(b, -limit, limit)

    The first half is the gate, as in the packed ``gate_up_proj`` of Llama's descendants; torch's GLU gates
    with the second. One ``nn.Linear(d, 2 * h)`` before it holds both projections.

    When to use it: in the feed-forward part of a transformer, behind a norm. With a limit: in bf16, fp16 or
    fp8, where the product of two large features is what overflows first, and single features grow over a
    long training until they are; the limit also bounds the gradient of both projections.

    Values in use: hidden width 2/3 of that of the plain feed-forward, for as many parameters (Shazeer);
    limit 7 (gpt-oss, which also takes sigmoid(1.702 a) in the gate and b + 1); without a limit |f| may reach
    65504 in float16 at features of 256, with a limit L it is at most L^2.

    Cost: half the memory of x for the output; two elementwise operations more with a limit.

    Args:
        dim: dimension that holds the two halves. There are no widths to give.
        limit: bound of the features, > 0; None for none. By name only.

    Takes a tensor whose dimension ``dim`` is even; returns one with that dimension half as long. For the
    gain of the projection before it see ``steadygrad.init.gated_gain("silu")``, 1.2688.

    Empty, zero, nan: an empty tensor stays empty; 0 in either half gives 0; nan in either gives nan. inf:
    without a limit it stays inf or becomes nan (inf * 0, and a gate of -inf); with one, inf in b and +inf in
    a are cut as any large feature is, and only -inf in a gives nan.

    Example:
        >>> import torch
        >>> SwiGLU()(torch.tensor([0.0, 100.0, 5.0, 100.0]))
        tensor([    0., 10000.])
        >>> SwiGLU(limit=7.0)(torch.tensor([0.0, 100.0, 5.0, 100.0])).round()
        tensor([ 0., 49.])

    Source: Shazeer (2020), eq. 5 and 6, https://arxiv.org/abs/2002.05202; limit: OpenAI (2025), gpt-oss
    reference implementation, https://github.com/openai/gpt-oss
    """

    def __init__(self, dim: int = -1, *, limit: float | None = None) -> None:
        super().__init__()
        self.dim, self.limit = dimension(dim), checked_limit(limit)

    def forward(self, x: Tensor) -> Tensor:
        return swiglu(x, self.dim, limit=self.limit)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, limit={self.limit}"
