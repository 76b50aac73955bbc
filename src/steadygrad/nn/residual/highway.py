"""The highway connection: a learned gate between what a layer computes and its input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from steadygrad._check import count, number


def highway(input: Tensor, transform: Tensor, gate: Tensor) -> Tensor:
    """Mix a layer's output with its input by a gate between 0 and 1.

        y = H T + x (1 - T),        T = sigmoid(gate)

    When to use it: in a layer of your own; `Highway` is the same around any two modules.

    Values in use: see `Highway`.

    Cost: one sigmoid and four elementwise operations.

    Args:
        input: x.
        transform: H, what the layer computes from x; the shape of x.
        gate: the gate before the sigmoid; the shape of x, or one that broadcasts to it.

    Returns y. Empty, zero, nan: an empty input gives an empty one; an inf or nan in x or H stays visible, also
    behind a closed gate.

    Example:
        >>> highway(torch.tensor([1.0]), torch.tensor([5.0]), torch.tensor([0.0])).item()
        3.0

    Source: Srivastava, Greff & Schmidhuber (2015), section 2, https://arxiv.org/abs/1507.06228
    """
    if input.shape != transform.shape:
        raise ValueError(
            f"input and transform must have one shape, got {tuple(input.shape)} and {tuple(transform.shape)}: "
            "a highway keeps the width; put a plain layer where it changes"
        )
    opened = torch.sigmoid(gate)
    return transform * opened + input * (1 - opened)


class Highway(nn.Module):
    """A layer with a learned gate that decides, unit by unit, between what it computes and its input.

        y = H(x) T(x) + x (1 - T(x)),        T(x) = sigmoid(G(x))

    The bias of G starts negative: the net begins by carrying its input through, which is what lets hundreds
    of layers train by plain SGD.

    When to use it: deep nets where a unit should be able to forget its input, which a residual sum cannot;
    stacks on top of embeddings or recurrent layers. For depth alone a residual block costs half.

    Values in use: gate_bias -1 to -4: the deeper the net, the more negative (Srivastava names -1 and -3); -2
    in character-aware language models (Kim 2016).

    Cost: a second layer of the size of the first for the gate, one sigmoid, four elementwise operations.

    Args:
        transform: H, any module that keeps the shape, its nonlinearity included.
        gate: G, any module from x to the gate before the sigmoid. The last ``bias`` among its submodules is
            set to ``gate_bias``.
        gate_bias: the gate's bias at the start, finite; None leaves it as it is.

    Called with x it returns y of the same shape. `highway_linear` and `highway_conv2d` make the usual two.

    Empty, zero, nan: an empty input gives an empty one; an inf or nan in x or H(x) stays visible, also behind
    a closed gate.

    Raises:
        ValueError: a gate without a bias and a gate_bias; H(x) of another shape than x.

    Example:
        >>> layer = Highway(nn.Sequential(nn.Linear(8, 8), nn.Tanh()), nn.Linear(8, 8), gate_bias=-20.0)
        >>> x = torch.randn(2, 8)
        >>> torch.allclose(layer(x), x, atol=1e-4)
        True

    Source: Srivastava, Greff & Schmidhuber (2015), section 2, https://arxiv.org/abs/1507.06228; Kim et al.
    (2016), https://arxiv.org/abs/1508.06615
    """

    def __init__(self, transform: nn.Module, gate: nn.Module, gate_bias: float | None = -2.0) -> None:
        super().__init__()
        self.transform = transform
        self.gate = gate
        self.gate_bias = None if gate_bias is None else number("gate_bias", gate_bias)
        self.reset_gate_bias()

    def reset_gate_bias(self) -> None:
        """Set the gate's bias to ``gate_bias`` again; nothing else."""
        if self.gate_bias is None:
            return
        biases = [getattr(m, "bias", None) for m in self.gate.modules()]
        found = [b for b in biases if isinstance(b, nn.Parameter)]
        if not found:
            raise ValueError("the gate has no bias to set: build it with bias=True, or pass gate_bias=None")
        nn.init.constant_(found[-1], self.gate_bias)

    def forward(self, input: Tensor) -> Tensor:
        return highway(input, self.transform(input), self.gate(input))

    def extra_repr(self) -> str:
        return "" if self.gate_bias is None else f"gate_bias={self.gate_bias}"


def highway_linear(
    features: int,
    *,
    activation: Callable[[], nn.Module] = nn.ReLU,
    gate_bias: float = -2.0,
    device: Any = None,
    dtype: Any = None,
) -> Highway:
    """A fully connected highway layer.

        y = a(W_H x + b_H) T + x (1 - T),        T = sigmoid(W_T x + b_T)

    When to use it: as `Highway`, around a linear layer.

    Values in use: gate_bias -1 to -4, the deeper the net, the more negative.

    Cost: two linear layers.

    Args:
        features: width of input and output, at least 1.
        activation: makes a.
        gate_bias: b_T at the start.

    Returns a `Highway` from (..., features) to (..., features). Empty, zero, nan: as `Highway`.

    Example:
        >>> highway_linear(16)(torch.randn(2, 16)).shape
        torch.Size([2, 16])

    Source: Srivastava, Greff & Schmidhuber (2015), section 2, https://arxiv.org/abs/1507.06228
    """
    count("features", features)
    transform = nn.Sequential(nn.Linear(features, features, device=device, dtype=dtype), activation())
    return Highway(transform, nn.Linear(features, features, device=device, dtype=dtype), gate_bias)


def highway_conv2d(
    channels: int,
    kernel_size: int = 3,
    *,
    activation: Callable[[], nn.Module] = nn.ReLU,
    gate_bias: float = -2.0,
    device: Any = None,
    dtype: Any = None,
) -> Highway:
    """A convolutional highway layer that keeps the size of the image.

        y = a(W_H * x + b_H) T + x (1 - T),        T = sigmoid(W_T * x + b_T)

    When to use it: as `Highway`, around a convolution.

    Values in use: gate_bias -1 to -4, the deeper the net, the more negative; kernel_size 3.

    Cost: two convolutions.

    Args:
        channels: of input and output, at least 1.
        kernel_size: odd, at least 1.
        activation: makes a.
        gate_bias: b_T at the start.

    Returns a `Highway` from (B, channels, H, W) to the same. Empty, zero, nan: as `Highway`.

    Example:
        >>> highway_conv2d(4)(torch.randn(2, 4, 8, 8)).shape
        torch.Size([2, 4, 8, 8])

    Source: Srivastava, Greff & Schmidhuber (2015), section 2, https://arxiv.org/abs/1507.06228
    """
    count("channels", channels)
    if count("kernel_size", kernel_size) % 2 == 0:
        raise ValueError(f"kernel_size must be odd to keep the size of the image, got {kernel_size}")

    def conv() -> nn.Conv2d:
        return nn.Conv2d(
            channels, channels, kernel_size, padding=kernel_size // 2, device=device, dtype=dtype
        )

    return Highway(nn.Sequential(conv(), activation()), conv(), gate_bias)
