"""Hyper-connections: several residual streams with learned ways into and out of each layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from steadygrad._check import count, number


def expand_streams(input: Tensor, num_streams: int) -> Tensor:
    """Copy the residual stream n times: the input of the first `HyperConnection`.

        H_0 = (h_0, .., h_0)^T

    When to use it: once, after the embedding or the stem.

    Values in use: num_streams 4 (Zhu), 2 and 8 in the ablations.

    Cost: none; the copies are a view.

    Args:
        input: (..., d).
        num_streams: n, at least 1.

    Returns (..., n, d). Empty, zero, nan: copied as they are.

    Example:
        >>> expand_streams(torch.zeros(2, 8), 4).shape
        torch.Size([2, 4, 8])

    Source: Zhu et al. (2024), section 2.1, https://arxiv.org/abs/2409.19606
    """
    count("num_streams", num_streams)
    return input.unsqueeze(-2).expand(*input.shape[:-1], num_streams, input.shape[-1])


def reduce_streams(streams: Tensor) -> Tensor:
    """Sum the streams: what follows the last `HyperConnection`. A norm should come next.

        h = sum_j H_j

    At the start of training it is n times the plain residual stream, which a norm makes the same.

    When to use it: once, before the final norm and the head.

    Values in use: the sum (Zhu).

    Cost: one sum.

    Args:
        streams: (..., n, d).

    Returns (..., d). Empty, zero, nan: an inf or nan stays visible.

    Example:
        >>> reduce_streams(torch.ones(2, 4, 8)).unique().item()
        4.0

    Source: Zhu et al. (2024), section 2.1, https://arxiv.org/abs/2409.19606
    """
    return streams.sum(-2)


class HyperConnection(nn.Module):
    """A residual block on n streams: learned weights say what the layer reads, what it writes, how streams mix.

        h = A_m^T H,        H' = B^T f(N(h)) + A_r^T H,        H = (h_1, .., h_n)^T

        dynamic:  A_m(H) = s_a tanh(N'(H) W_m) + A_m         A_r(H) = s_a tanh(N'(H) W_r) + A_r
                  B(H)   = s_b tanh(N'(H) W_b)^T + B

    At the start A_m = e_(k mod n) for the k-th layer, A_r = I, B = (1, .., 1), W = 0, s_a = s_b = 0.01: every
    stream is the stream of a plain pre-norm residual net, whose function the net starts with.

    When to use it: deep Transformers, where pre-norm makes the last layers alike; between pre and post, the
    net then learns how strongly neighbouring layers are connected. Mixing streams freely can make the signal
    grow over many layers: watch it beyond some tens of layers.

    Values in use: n = 4 dynamic (Zhu, 1B and 7B language models); n = 2 and 8, and static, in the ablations.

    Cost: n times the memory of the stream; about n (n + 2) d operations for each position, n (n + 2)
    parameters, and (n + 4) d + 2 more when dynamic. No further matrix products with the width.

    Args:
        fn: f, any module; called as ``fn(h, *args, **kwargs)`` with h (..., d). If it returns a tuple its
            first entry is taken.
        d_model: d, at least 1.
        num_streams: n, at least 1.
        layer_index: k, at least 0: the number of this block in the net.
        dynamic: whether the weights depend on the input.
        norm: makes the norm N from ``d_model``; None for none. (N' is a layer norm.)
        scale_init: s_a and s_b at the start, finite.

    Called with H (..., n, d) it returns H' of that shape: `expand_streams` before the first block,
    `reduce_streams` after the last.

    ``init.initialise`` takes what multiplies the streams for weights: name it in its ``keep``
    (``[n for n, _ in net.named_parameters() if ".mix_" in n]``), or the net does not start as a plain one.

    Empty, zero, nan: an empty batch gives an empty one. An inf or nan in one stream spreads to all.

    Raises:
        ValueError: H of another width or number of streams.

    Example:
        >>> block = HyperConnection(nn.Linear(8, 8), 8, num_streams=4)
        >>> x = torch.randn(2, 8)
        >>> streams = block(expand_streams(x, 4))
        >>> torch.allclose(streams[:, 3], x + block.fn(block.norm(x)), atol=1e-6)
        True

    Source: Zhu et al. (2024), sections 2.1 to 2.3, https://arxiv.org/abs/2409.19606
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        d_model: int,
        *,
        num_streams: int = 4,
        layer_index: int = 0,
        dynamic: bool = True,
        norm: Callable[..., nn.Module] | None = nn.LayerNorm,
        scale_init: float = 0.01,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if not callable(fn):
            raise TypeError(f"fn must be a module or a function, got {type(fn).__name__}")
        self.d_model = count("d_model", d_model)
        self.num_streams = n = count("num_streams", num_streams)
        self.layer_index = count("layer_index", layer_index, least=0)
        self.dynamic = dynamic
        self.scale_init = number("scale_init", scale_init)
        factory = {"device": device, "dtype": dtype}
        self.norm = (
            None if norm is None else norm(d_model, **{k: v for k, v in factory.items() if v is not None})
        )
        self.fn = fn
        self.mix_in = nn.Parameter(torch.empty(n, **factory))  # A_m
        self.mix_streams = nn.Parameter(
            torch.empty(n, n, **factory)
        )  # A_r, from the first index to the second
        self.mix_out = nn.Parameter(torch.empty(n, **factory))  # B
        if dynamic:
            self.stream_norm = nn.LayerNorm(d_model, **factory)
            self.mix_weight = nn.Parameter(torch.empty(n + 2, d_model, **factory))  # rows of W_m, W_r, W_b
            self.scale_in = nn.Parameter(torch.empty((), **factory))
            self.scale_out = nn.Parameter(torch.empty((), **factory))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The start that makes it a plain pre-norm residual block; ``fn`` and the norms stay."""
        with torch.no_grad():
            self.mix_in.zero_()
            self.mix_in[self.layer_index % self.num_streams] = 1.0
            nn.init.eye_(self.mix_streams)
            self.mix_out.fill_(1.0)
            if self.dynamic:
                self.mix_weight.zero_()
                self.scale_in.fill_(self.scale_init)
                self.scale_out.fill_(self.scale_init)

    def forward(self, streams: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if streams.dim() < 2 or streams.shape[-2:] != (self.num_streams, self.d_model):
            raise ValueError(
                f"the streams must have shape (..., {self.num_streams}, {self.d_model}), got "
                f"{tuple(streams.shape)}: put expand_streams(x, {self.num_streams}) before the first block"
            )
        read, mix, write = self.weights(streams)
        h = (read.unsqueeze(-2) @ streams).squeeze(-2)
        out = self.fn(h if self.norm is None else self.norm(h), *args, **kwargs)
        branch = out[0] if isinstance(out, tuple) else out
        return write.unsqueeze(-1) * branch.unsqueeze(-2) + mix.transpose(-1, -2) @ streams

    def weights(self, streams: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A_m (..., n), A_r (..., n, n) and B (..., n) for these streams; without leading dimensions if static."""
        if not self.dynamic:
            return self.mix_in, self.mix_streams, self.mix_out
        moved = torch.tanh(
            nn.functional.linear(self.stream_norm(streams), self.mix_weight)
        )  # (..., n, n + 2)
        return (
            self.mix_in + self.scale_in * moved[..., 0],
            self.mix_streams + self.scale_in * moved[..., 1:-1],
            self.mix_out + self.scale_out * moved[..., -1],
        )

    def extra_repr(self) -> str:
        return (
            f"{self.d_model}, num_streams={self.num_streams}, layer_index={self.layer_index}, "
            f"dynamic={self.dynamic}"
        )
