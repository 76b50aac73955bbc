"""Learned scales of a residual branch: one number (SkipInit, ReZero), or one for each channel (LayerScale)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from steadygrad._check import count, number


class SkipInit(nn.Module):
    """Multiply a residual branch by one learned number that starts at 0, so that the net starts as its skips.

        y = alpha x,        alpha = 0 at the start

    When to use it: residual nets without normalisation, of tens to thousands of blocks. At the first step
    only the scales get a gradient; the branches wake up as the scales leave 0. SkipInit and ReZero are this
    one rule under two names.

    Values in use: 0 (De & Smith, ResNets without batch norm; Bachlechner, Transformers and nets of 10,000
    layers); up to about 1 / sqrt(L) for L blocks it still trains (De & Smith).

    Cost: one product; one parameter.

    Args:
        init_value: alpha at the start, finite.

    Called with the output of a branch it returns a tensor of the same shape.

    Empty, zero, nan: an empty input gives an empty one. An inf or nan stays visible: 0 times it is nan.

    Example:
        >>> SkipInit()(torch.ones(2)).tolist()
        [0.0, 0.0]

    Source: De & Smith (2020), the definition of SkipInit, https://arxiv.org/abs/2002.10444; ReZero:
    Bachlechner et al. (2020), section 3, https://arxiv.org/abs/2003.04887
    """

    def __init__(self, init_value: float = 0.0, *, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.init_value = number("init_value", init_value)
        self.alpha = nn.Parameter(torch.empty((), device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.constant_(self.alpha, self.init_value)

    def forward(self, input: Tensor) -> Tensor:
        return input * self.alpha

    def extra_repr(self) -> str:
        return f"init_value={self.init_value}"


class LayerScale(nn.Module):
    """Multiply each channel of a residual branch by a learned number that starts small.

        y = diag(lambda_1, .., lambda_C) x,        lambda_c = init_value at the start

    When to use it: deep Transformers and ConvNets, in most cases beside pre-normalisation; it lets each
    channel of a branch grow at its own pace.

    Values in use: 0.1 up to 18 layers, 1e-5 up to 24, 1e-6 beyond (Touvron, CaiT); 1e-6 (ConvNeXt); 1e-5
    (timm, DINOv2).

    Cost: one product; C parameters.

    Args:
        num_channels: C, at least 1.
        init_value: every lambda at the start, finite.
        dim: the dimension of the channels: -1 for (B, T, C) and (B, C), 1 for images (B, C, H, W).

    Called with the output of a branch it returns a tensor of the same shape.

    Empty, zero, nan: an empty input gives an empty one. An inf or nan stays visible.

    Raises:
        ValueError: the input has another size in ``dim``.

    Example:
        >>> LayerScale(3, init_value=0.1)(torch.ones(2, 3)).unique().tolist() == [torch.tensor(0.1).item()]
        True

    Source: Touvron, Cord, Sablayrolles, Synnaeve & Jégou (2021), section 2, https://arxiv.org/abs/2103.17239
    """

    def __init__(
        self,
        num_channels: int,
        init_value: float = 1e-5,
        dim: int = -1,
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.num_channels = count("num_channels", num_channels)
        self.init_value = number("init_value", init_value)
        self.dim = dim
        self.weight = nn.Parameter(torch.empty(num_channels, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.constant_(self.weight, self.init_value)

    def forward(self, input: Tensor) -> Tensor:
        if not -input.dim() <= self.dim < input.dim() or input.shape[self.dim] != self.num_channels:
            raise ValueError(
                f"the input must have {self.num_channels} channels in dimension {self.dim}, got shape "
                f"{tuple(input.shape)}: set dim= to where the channels lie"
            )
        behind = (input.dim() - 1 - self.dim) if self.dim >= 0 else -1 - self.dim
        return input * self.weight.view(-1, *[1] * behind)

    def extra_repr(self) -> str:
        return f"{self.num_channels}, init_value={self.init_value}, dim={self.dim}"
