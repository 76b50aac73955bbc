"""Orthogonal weights: block by block, and as the centre tap of a convolution."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def orthogonal_blocks_(
    weight: Tensor, num_blocks: int = 1, gain: float = 1.0, generator: torch.Generator | None = None
) -> Tensor:
    """Fill a weight in place with blocks of orthogonal rows: the gates of an LSTM, the groups of a convolution.

        W = [W_1; ...; W_k],   W_i W_i^T = gain^2 I   (W_i^T W_i = gain^2 I if a block is taller than wide)

    With one block this is ``torch.nn.init.orthogonal_``, to which it adds the blocks, half precision, and
    that the random numbers may come from a generator of another device.

    Args:
        weight: two dimensions or more; all but the first are taken as columns. Changed in place.
        num_blocks: 4 for LSTM, 3 for GRU, the groups of a convolution; must divide ``weight.shape[0]``.
        gain: scale, finite; ``critical_point(...).sigma_w`` for a deep net.
        generator: source of the random numbers; None uses the global one.

    A zero-size weight is returned as it is. What was in the weight before, non-finite included, plays no
    part.

    When to use it: recurrent weights, and deep plain nets, whose singular values it keeps together.

    Values in use: gain 1 for recurrent weights (Henaff), the critical gain for deep nets (Pennington).

    Cost: one QR decomposition a block, O(n^3).

    Example:
        >>> w = orthogonal_blocks_(torch.empty(8, 2), num_blocks=4)
        >>> bool((w[2:4] @ w[2:4].T - torch.eye(2)).abs().max() < 1e-6)
        True

    Source: Saxe, McClelland & Ganguli (2014), section 3, https://arxiv.org/abs/1312.6120; Pennington et al.
    (2017), https://arxiv.org/abs/1711.04735
    """
    if weight.dim() < 2:
        raise ValueError(f"weight must have two dimensions or more, got shape {tuple(weight.shape)}")
    if num_blocks < 1 or weight.shape[0] % num_blocks:
        raise ValueError(f"num_blocks must divide the {weight.shape[0]} rows of the weight, got {num_blocks}")
    check_finite("gain", gain)
    if weight.numel() == 0:
        return weight
    fresh = scratch(weight, generator)
    for block in fresh.chunk(num_blocks):
        nn.init.orthogonal_(block, gain, generator=generator)
    with torch.no_grad():
        return weight.copy_(fresh)


def delta_orthogonal_(
    weight: Tensor,
    gain: float = 1.0,
    groups: int = 1,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Fill a convolution weight in place so that it acts as one orthogonal matrix on the channels at each position.

        W[:, :, centre] = gain * H,   H^T H = I,   W = 0 elsewhere

    so that ``||conv(x)|| = gain ||x||`` at stride 1, for any padding that keeps the size.

    Args:
        weight: (out, in / groups, *kernel) of ``nn.ConvNd``, or (in, out / groups, *kernel) of
            ``nn.ConvTransposeNd``. Changed in place. For an even kernel the centre is at ``size // 2``.
        gain: scale, finite.
        groups: groups of the convolution; each gets a matrix of its own.
        generator: source of the random numbers; None uses the global one.

    The paper asks for no more inputs than outputs per group. With more, H has orthonormal rows: the norm is
    kept on their span only. A zero-size weight is returned as it is.

    When to use it: plain convolutional nets of hundreds of layers. In residual nets with batch norm it gives
    nothing.

    Values in use: the critical gain of the activation; Xiao trained 10,000 tanh layers.

    Cost: one QR decomposition.

    Example:
        >>> conv = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        >>> _ = delta_orthogonal_(conv.weight)
        >>> x = torch.randn(1, 4, 5, 5)
        >>> bool((conv(x).norm() / x.norm() - 1).abs() < 1e-5)
        True

    Source: Xiao et al. (2018), algorithm 2, https://arxiv.org/abs/1806.05393
    """
    if not 3 <= weight.dim() <= 5:
        raise ValueError(
            f"weight must be that of a 1d, 2d or 3d convolution, got shape {tuple(weight.shape)}"
        )
    if groups < 1 or weight.shape[0] % groups:
        raise ValueError(f"groups must divide the {weight.shape[0]} rows of the weight, got {groups}")
    check_finite("gain", gain)
    if weight.numel() == 0:
        return weight
    fresh = scratch(weight, generator)
    fresh.zero_()
    centre = tuple(size // 2 for size in weight.shape[2:])
    for block in fresh.chunk(groups):
        # the map is out x in; a transposed convolution stores it as in x out, orthogonal either way
        matrix = torch.empty(block.shape[:2], dtype=fresh.dtype, device=fresh.device)
        tap = block
        for index in reversed(centre):
            tap = tap.select(-1, index)
        tap.copy_(nn.init.orthogonal_(matrix, gain, generator=generator))
    with torch.no_grad():
        return weight.copy_(fresh)


def scratch(weight: Tensor, generator: torch.Generator | None) -> Tensor:
    """An empty tensor of a weight's shape to draw into: float32 at least, as QR needs, on the generator's device."""
    dtype = torch.promote_types(weight.dtype, torch.float32)
    device = weight.device if generator is None else generator.device
    return torch.empty(weight.shape, dtype=dtype, device=device)


def check_finite(name: str, value: float) -> None:
    if not abs(value) < float("inf"):
        raise ValueError(f"{name} must be finite, got {value}")
