"""Noise that a recurrence stands: zoneout on its state, and dropout with one mask for all steps."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def zoneout(previous: Tensor, new: Tensor, p: float, training: bool = True) -> Tensor:
    """Keep some units of the state as they were; see ``Zoneout``."""
    _probability(p)
    if previous.shape != new.shape:
        raise ValueError(
            f"previous and new must have one shape, got {tuple(previous.shape)} and {tuple(new.shape)}"
        )
    if not training:
        return torch.lerp(new, previous.to(new.dtype), p)
    return torch.where(torch.rand_like(new, dtype=torch.float32) < p, previous.to(new.dtype), new)


class Zoneout(nn.Module):
    """Let each unit of a recurrent state keep its old value with probability p, instead of setting it to 0.

        h_t = d * h_{t-1} + (1 - d) * h'_t,   d ~ Bernoulli(p)        in evaluation with p in place of d

    The units that keep their value hand the gradient on as it is, so that it neither shrinks nor grows there.

    When to use it: against overfitting in recurrences written with cells; torch's own dropout acts between
    layers only, and on the state it would erase the memory.

    Values in use: 0.05 for h and 0.5 for c of an LSTM on characters of Penn Treebank, 0.15 for both on permuted
    MNIST (Krueger et al.).

    Cost: a random number and a selection for each unit.

    Args:
        p: probability of keeping the old value, 0 to 1.

    Called with the state before and the state that the cell gives, of one shape; returns the mixture.

    Empty, zero, nan: an empty state stays empty; a nan in either stays where it is taken from, in evaluation
    always.

    Example:
        >>> cell, keep_h, keep_c = nn.LSTMCell(3, 4), Zoneout(0.05), Zoneout(0.5)
        >>> h, c = torch.zeros(2, 4), torch.zeros(2, 4)
        >>> for x in torch.randn(5, 2, 3):
        ...     new_h, new_c = cell(x, (h, c))
        ...     h, c = keep_h(h, new_h), keep_c(c, new_c)

    Source: Krueger et al. (2017), section 3, https://arxiv.org/abs/1606.01305
    """

    def __init__(self, p: float = 0.1) -> None:
        super().__init__()
        self.p = _probability(p)

    def forward(self, previous: Tensor, new: Tensor) -> Tensor:
        return zoneout(previous, new, self.p, self.training)

    def extra_repr(self) -> str:
        return f"p={self.p}"


class VariationalDropout(nn.Module):
    """Dropout whose mask is drawn once for a sequence and used at every step.

        y_t = x_t * m / (1 - p),   m ~ Bernoulli(1 - p),   the same m for all t

    When to use it: on the input or the output of a recurrent layer; a mask of its own for each step, as
    ``nn.Dropout`` draws it, is noise that the recurrence adds up.

    Values in use: on Penn Treebank 0.4 on the embedded input and 0.25 between the layers, on WikiText-2 0.2
    between them (the code of AWD-LSTM).

    Cost: one product, and random numbers for one step.

    Args:
        p: probability of dropping, 0 <= p < 1.
        dim: dimension of time: 0 for (T, B, D), 1 with batch_first.

    Takes and returns a tensor of any shape; in evaluation it is handed through.

    Empty, zero, nan: an empty tensor stays empty; a nan or inf under a dropped unit stays visible as nan.

    Example:
        >>> drop = VariationalDropout(0.5)
        >>> y = drop(torch.ones(7, 2, 3))
        >>> bool((y == y[0]).all())
        True

    Source: Gal & Ghahramani (2016), section 4, https://arxiv.org/abs/1512.05287
    """

    def __init__(self, p: float = 0.5, dim: int = 0) -> None:
        super().__init__()
        if _probability(p) == 1:
            raise ValueError("p must be below 1: at 1 nothing would be left to scale up")
        self.p, self.dim = float(p), dim

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        if not -x.dim() <= self.dim < x.dim():
            raise ValueError(f"x has no dimension {self.dim}: its shape is {tuple(x.shape)}")
        shape = list(x.shape)
        shape[self.dim] = 1
        kept = torch.rand(shape, device=x.device) >= self.p  # in float32, whatever x is
        return x * (kept.to(x.dtype) / (1 - self.p))

    def extra_repr(self) -> str:
        return f"p={self.p}, dim={self.dim}"


def _probability(p: float) -> float:
    if not isinstance(p, (int, float)) or not 0 <= p <= 1:
        raise ValueError(f"p must be a probability between 0 and 1, got {p!r}")
    return float(p)
