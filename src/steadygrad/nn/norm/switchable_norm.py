"""Switchable normalisation: each layer learns which statistics to normalise by."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from steadygrad import _check
from steadygrad.nn.norm._statistics import all_finite, batch_statistics, learn_, snapshot


class SwitchableNorm2d(nn.Module):
    """Normalise images by a learned mix of the statistics of channel, example and batch.

        y = (x - sum_k w_k m_k) / sqrt(sum_k w'_k v_k + eps) * weight + bias       k: instance, layer, batch
        w = softmax(mean_mix),    w' = softmax(var_mix)

    When to use it: convolutional nets for which it is not known which norm fits, or whose batches are small: the weight
    of the batch falls by itself. `AdaptiveNorm` moves its mix by the gradient's growth and is not trained.

    Values in use: momentum 0.1, eps 1e-5; in the paper's models the batch's share falls with the size of the batch.

    Cost: one set of statistics a channel and example; the others follow from it. Not fused; six more parameters.

    Args:
        num_features: channels, at least 1.
        eps: above 0.
        momentum: weight of a new batch in the running statistics, 0 to 1.
        affine: weight and bias.

    Called with (N, C, H, W). In evaluation the batch's statistics are the running ones.

    Empty, inf, nan: an empty batch gives an empty batch. An inf or nan makes its channel in every example and its own
    whole example nan, and leaves the running statistics as they were.

    Example:
        >>> norm = SwitchableNorm2d(3)
        >>> tuple(norm(torch.randn(2, 3, 4, 4)).shape)
        (2, 3, 4, 4)

    Source: Luo et al. (2019), https://arxiv.org/abs/1806.10779
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        like = {"device": device, "dtype": dtype}
        self.num_features = _check.count("num_features", num_features)
        self.eps = _check.positive("eps", eps, finite=True)
        self.momentum = _check.fraction("momentum", momentum)
        self.weight = nn.Parameter(torch.empty(num_features, **like)) if affine else None
        self.bias = nn.Parameter(torch.empty(num_features, **like)) if affine else None
        self.mean_mix = nn.Parameter(torch.empty(3, **like))
        self.var_mix = nn.Parameter(torch.empty(3, **like))
        self.register_buffer("running_mean", torch.empty(num_features, **like))
        self.register_buffer("running_var", torch.empty(num_features, **like))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weight 1, bias 0, all statistics in equal parts, the running ones 0 and 1."""
        for tensor, value in (
            (self.weight, 1.0),
            (self.bias, 0.0),
            (self.mean_mix, 1.0),
            (self.var_mix, 1.0),
            (self.running_mean, 0.0),
            (self.running_var, 1.0),
        ):
            if tensor is not None:
                nn.init.constant_(tensor, value)

    def forward(self, input: Tensor) -> Tensor:
        if input.dim() != 4 or input.shape[1] != self.num_features:
            raise ValueError(f"input must be (N, {self.num_features}, H, W), got shape {tuple(input.shape)}")
        if input.numel() == 0:
            return input.clone()
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        mean_i, var_i = batch_statistics(x, (2, 3))
        mean_l, var_l = _joined(mean_i, var_i, 1)
        if self.training:
            mean_b, var_b = _joined(mean_i, var_i, 0)
            learn = all_finite([mean_b, var_b])
            learn_(self.running_mean, mean_b.detach().flatten(), self.momentum, learn)
            learn_(self.running_var, var_b.detach().flatten(), self.momentum, learn)
        else:
            running = snapshot(self.running_mean, self.running_var)
            mean_b, var_b = (t.to(x.dtype).view(1, -1, 1, 1) for t in running)
        mean_mix, var_mix = (m.to(x.dtype).softmax(0) for m in (self.mean_mix, self.var_mix))
        mean = mean_mix[0] * mean_i + mean_mix[1] * mean_l + mean_mix[2] * mean_b
        var = var_mix[0] * var_i + var_mix[1] * var_l + var_mix[2] * var_b
        out = (x - mean) * (var + self.eps).rsqrt()
        if self.weight is not None and self.bias is not None:
            out = out * self.weight.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)
        return out.to(input.dtype)

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.weight is not None}"
        )


def _joined(mean: Tensor, var: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Statistics of several groups of one size together: the spread of their means adds to their variance."""
    between, joined = torch.var_mean(mean, dim=dim, correction=0, keepdim=True)
    return joined, var.mean(dim, keepdim=True) + between
