"""Kin of ReLU: its square, and the one that keeps both signs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steadygrad.init.gain import squared_relu
from steadygrad.nn.activations._check import dimension, groups_of


class SquaredReLU(nn.Module):
    """Square what ReLU lets through.

        f(x) = max(x, 0)^2,        f'(x) = 2 max(x, 0)

    When to use it: in the feed-forward part of a transformer, in place of GELU, behind a norm. Not in a plain
    net: its variance map repels (slope 2 at every fixed point), so that signals run off doubly exponentially;
    ``gain_table(["squared_relu"])`` says at which depth.

    Values in use: none to set. Primer (So et al.), Nemotron-4.

    Cost: two elementwise operations.

    Takes and returns a tensor of any shape.

    Empty, zero, nan: an empty tensor stays empty, 0 gives 0 with slope 0, inf gives inf, -inf gives 0, nan
    stays nan. In float16 everything above 255.9 overflows to inf.

    Example:
        >>> SquaredReLU()(torch.tensor([-2.0, 0.5, 3.0]))
        tensor([0.0000, 0.2500, 9.0000])

    Source: So et al. (2021), Primer, section 3, https://arxiv.org/abs/2109.08668
    """

    def forward(self, x: Tensor) -> Tensor:
        return squared_relu(x)


def crelu(x: Tensor, dim: int = 1) -> Tensor:
    """``[max(x, 0), max(-x, 0)]`` side by side along ``dim``; see ``CReLU``."""
    groups_of(x, 1, dim)
    return F.relu(torch.cat((x, -x), dim))


class CReLU(nn.Module):
    """ReLU of x and of -x side by side: twice as wide, nothing lost.

        f(x) = [max(x, 0), max(-x, 0)],        ||f(x)|| = ||x||

    When to use it: where half of the units of a ReLU net are copies of the other half with the sign turned,
    as in the first layers of convolutional nets; and where the norm must be kept: with weights of gain
    sqrt(2) on the doubled fan-in, orthogonal or not, it neither explodes nor vanishes.

    Values in use: none to set. Shang et al. put it into the lower convolutions with half the filters.

    Cost: one copy and one elementwise operation; the next layer has twice the inputs.

    Args:
        dim: dimension to double, 1 for the channels of images, -1 for features.

    Takes a tensor with a dimension ``dim``; returns one with that dimension twice as long.

    Empty, zero, nan: an empty tensor stays empty; 0 gives two 0 with slope 0; inf gives inf and 0; nan gives
    two nan.

    Example:
        >>> CReLU(dim=-1)(torch.tensor([1.0, -2.0]))
        tensor([1., 0., 0., 2.])

    Source: Shang et al. (2016), definition 2.1, https://arxiv.org/abs/1603.05201
    """

    def __init__(self, dim: int = 1) -> None:
        super().__init__()
        self.dim = dimension(dim)

    def forward(self, x: Tensor) -> Tensor:
        return crelu(x, self.dim)

    def extra_repr(self) -> str:
        return f"dim={self.dim}"
