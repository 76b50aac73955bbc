"""Stochastic depth: leave out the residual branch of single examples in training."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from steadygrad._check import count, fraction


def drop_path(input: Tensor, p: float, training: bool = True, batch_dim: int = 0) -> Tensor:
    """Set the residual branch of each example to zero with probability p, and scale up the others.

        y_i = b_i x_i / (1 - p),        b_i ~ Bernoulli(1 - p), one for each example i

    so that E[y] = x. With p = 1 everything is zero.

    When to use it: inside a residual block of your own, on the branch, before the sum. `DropPath` is the
    same as a module, ``Residual(drop_path=p)`` has it built in.

    Values in use: see `DropPath`.

    Cost: one number drawn for each example, one product. The branch is computed also where it is dropped.

    Args:
        input: the output of a branch, of any shape with at least one dimension, floating.
        p: probability of a drop, 0 <= p <= 1.
        training: False returns the input itself.
        batch_dim: dimension along which the examples lie; 1 for sequences of shape (T, B, D).

    Returns a tensor of the input's shape and dtype; the input itself if nothing can be dropped. The factor
    is rounded to the input's dtype, as in `torch.nn.Dropout`.

    Empty, zero, nan: an empty input gives an empty one. An inf or nan is never hidden: times a drop's 0 it
    is nan.

    Example:
        >>> x = torch.ones(4, 3)
        >>> drop_path(x, p=0.5).unique().tolist() in ([0.0], [2.0], [0.0, 2.0])
        True
        >>> drop_path(x, p=0.5, training=False) is x
        True

    Source: Huang, Sun, Liu, Sedra & Weinberger (2016), section 3, https://arxiv.org/abs/1603.09382. There the
    draw is for the batch, and the branch is scaled by 1 - p at test time; drawing for each example and
    scaling in training is how timm and torchvision do it.
    """
    fraction("p", p)
    if not training or p == 0.0:
        return input
    if not -input.dim() <= batch_dim < input.dim():
        raise ValueError(f"batch_dim must be a dimension of the input, got {batch_dim} for {input.dim()}")
    shape = [1] * input.dim()
    shape[batch_dim] = input.shape[batch_dim]
    keep = torch.empty(shape, dtype=input.dtype, device=input.device).bernoulli_(1.0 - p)
    if p < 1.0:
        keep = keep / (1.0 - p)
    return input * keep


class DropPath(nn.Module):
    """Stochastic depth as a module: in training each example skips the branch with probability p.

        y_i = b_i x_i / (1 - p),        b_i ~ Bernoulli(1 - p), one for each example i

    When to use it: deep residual nets and Transformers that overfit; and very deep ones, whose gradient
    then takes a shorter way in training. It goes at the end of the branch, before the sum.

    Values in use: rates that rise linearly with the depth (`drop_path_rates`) to 0.5 at the last block
    (Huang, ResNets of 50 blocks and more), 0.1 (DeiT-S, DeiT-B), 0.1 to 0.5 (ConvNeXt-T to -L).

    Cost: one number drawn for each example, one product. The branch is computed also where it is dropped.

    Args:
        p: probability of a drop, 0 <= p <= 1.
        batch_dim: dimension along which the examples lie; 1 for sequences of shape (T, B, D).

    Called with the output of a branch it returns the same with some examples at zero; in eval mode the
    output itself.

    Empty, zero, nan: an empty input gives an empty one. An inf or nan is never hidden.

    Example:
        >>> layer = DropPath(0.2)
        >>> x = torch.ones(1000, 1)
        >>> 0.8 < layer(x).mean().item() < 1.2, layer.eval()(x) is x
        (True, True)

    Source: Huang, Sun, Liu, Sedra & Weinberger (2016), section 3, https://arxiv.org/abs/1603.09382
    """

    def __init__(self, p: float = 0.0, batch_dim: int = 0) -> None:
        super().__init__()
        self.p = fraction("p", p)
        self.batch_dim = batch_dim

    def forward(self, input: Tensor) -> Tensor:
        return drop_path(input, self.p, self.training, self.batch_dim)

    def extra_repr(self) -> str:
        return f"p={self.p}" + (f", batch_dim={self.batch_dim}" if self.batch_dim else "")


def drop_path_rates(num_blocks: int, p: float) -> list[float]:
    """The linear rule: the drop rate of each of L blocks rises from p / L to p.

        p_l = (l / L) p,        l = 1 .. L

    When to use it: to choose the rate of each block. Early blocks extract what all later ones use, and are
    dropped seldom.

    Values in use: p 0.5 (Huang), with a quarter less of the forward and backward pass if dropped branches
    were left out. timm starts at 0 instead: ``torch.linspace(0, p, L)``.

    Cost: none.

    Args:
        num_blocks: L, at least 0.
        p: rate of the last block, 0 <= p <= 1.

    Returns a list of L numbers; an empty one for no blocks.

    Example:
        >>> drop_path_rates(4, 0.5)
        [0.125, 0.25, 0.375, 0.5]

    Source: Huang, Sun, Liu, Sedra & Weinberger (2016), section 3 (the linear decay rule),
    https://arxiv.org/abs/1603.09382
    """
    count("num_blocks", num_blocks, least=0)
    fraction("p", p)
    return [p * block / num_blocks for block in range(1, num_blocks + 1)]
