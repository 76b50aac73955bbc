"""Filter response normalisation: each channel of each image by its own mean square."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from steadygrad.nn.norm._parameters import checked_eps

LEARNED_EPS = 1e-4  # where the learned part of eps starts: the paper's


class FilterResponseNorm(nn.Module):
    """A norm and an activation for convolutional nets that never look at the rest of the batch.

        nu^2 = mean of x^2 over the positions of one channel of one example
        z = max(weight * x / sqrt(nu^2 + eps) + bias, tau)        tau learned, one for each channel

    The maximum is the activation (the paper's thresholded linear unit): put no other behind it.

    When to use it: convolutional nets with batches of one or a few images, in the place of batch norm and ReLU
    together.

    Limits: with one position to a channel, x / sqrt(x^2 + eps) is the sign of x: set ``learn_eps`` there, or leave such
    layers out. Its authors warm the learning rate up, for some nets cannot do without.

    Values in use: eps 1e-6; learned eps from 1e-4 (the paper); weight 1, bias and tau 0 at the start.

    Cost: one read for the mean square, one read and write; three numbers for each channel.

    Args:
        num_features: channels.
        eps: added to the mean square, > 0.
        learn_eps: add the absolute value of a learned scalar to eps.
        device, dtype: of the parameters.

    Called with (N, num_features, *positions), one dimension of positions at least, it returns the same shape and dtype.
    The mean square is taken in float32 at least.

    Empty, zero, inf, nan: an empty batch gives an empty batch, a channel of zeros max(bias, tau). An inf or nan
    makes its channel of its example nan and nothing else. Where squares leave float32 (entries of 1e20) what is
    normalised is 0, as in torch's norms.

    Example:
        >>> norm = FilterResponseNorm(1)
        >>> [round(v, 3) for v in norm(torch.tensor([[[3.0, -3.0, 0.0, 3.0]]])).flatten().tolist()]
        [1.155, 0.0, 0.0, 1.155]

    Source: Singh & Krishnan (2020), section 3, https://arxiv.org/abs/1911.09737
    """

    weight: Tensor
    bias: Tensor
    tau: Tensor
    learned_eps: Tensor | None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-6,
        learn_eps: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if num_features < 0:
            raise ValueError(f"num_features must be 0 or more, got {num_features}")
        self.num_features, self.eps = num_features, checked_eps(eps)
        for name in ("weight", "bias", "tau"):
            value = nn.Parameter(torch.empty(num_features, device=device, dtype=dtype))
            self.register_parameter(name, value)
        learned = nn.Parameter(torch.empty((), device=device, dtype=dtype)) if learn_eps else None
        self.register_parameter("learned_eps", learned)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """weight 1, bias and tau 0, the learned part of eps 1e-4."""
        for name, parameter in self.named_parameters():
            nn.init.constant_(parameter, {"weight": 1.0, "learned_eps": LEARNED_EPS}.get(name, 0.0))

    def forward(self, input: Tensor) -> Tensor:
        if input.dim() < 3 or input.shape[1] != self.num_features:
            raise ValueError(
                f"input must be (N, {self.num_features}, *positions) with one dimension of positions or more, got "
                f"shape {tuple(input.shape)}"
            )
        values = input.to(torch.promote_types(input.dtype, torch.float32))
        eps = self.eps if self.learned_eps is None else self.eps + self.learned_eps.abs()
        nu2 = values.square().mean(tuple(range(2, input.dim())), keepdim=True)
        shape = (-1, *[1] * (input.dim() - 2))
        y = values * (nu2 + eps).rsqrt() * self.weight.view(shape) + self.bias.view(shape)
        return y.maximum(self.tau.view(shape)).to(input.dtype)

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}, learn_eps={self.learned_eps is not None}"
