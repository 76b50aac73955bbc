"""Shrink and perturb: a trained net that can learn again."""

from __future__ import annotations

import torch
from torch import nn

from steadygrad import _check


@torch.no_grad()
def shrink_and_perturb_(model: nn.Module, shrink: float = 0.6, std: float = 0.01, seed: int = 0) -> None:
    """Shrink the weights of a trained net and add noise, so that it trains on new data as a fresh one does. In place.

        W <- shrink W + N(0, std^2)        every parameter of two dimensions or more

    When to use it: before training on from a converged net with more or other data, where it would otherwise generalise
    worse than a fresh one.

    Values in use: shrink 0.4 to 0.9, std 0.01; the smaller ``shrink``, the more is forgotten (ours).

    Cost: one read and write of the weights.

    Args:
        model: changed in place; biases and the parameters of norms are not, nor is what is frozen.
        shrink: factor, 0 to 1.
        std: of the noise, at least 0.
        seed: of the noise; the global random stream is not touched.

    inf and nan in a weight stay. Build the optimizer anew, or clear its state: its moments are of the net before.

    Raises ValueError on values out of range, RuntimeError in evaluation mode; nothing is changed then.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> _ = nn.init.ones_(layer.weight)
        >>> shrink_and_perturb_(layer, shrink=0.5, std=0.0)
        >>> layer.weight.tolist()
        [[0.5, 0.5], [0.5, 0.5]]

    Source: Ash & Adams (2020), https://arxiv.org/abs/1910.08475
    """
    _check.fraction("shrink", shrink)
    _check.number("std", std, 0.0)
    generator = torch.Generator().manual_seed(_check.count("seed", seed, 0))
    _check.training_mode(model, "shrink_and_perturb_")
    for parameter in model.parameters():
        if parameter.dim() >= 2 and parameter.requires_grad:
            parameter.mul_(shrink).add_(
                torch.randn(parameter.shape, generator=generator).to(parameter), alpha=std
            )
