"""Gates in place of the residual sum: the five of the Gated Transformer-XL."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from steadygrad._check import count, number


class _Gate(nn.Module):
    """Square maps of the last dimension, and a bias that starts where the gate lets the skip through."""

    maps: tuple[str, ...]

    def __init__(
        self, d_model: int, bias_init: float = 2.0, *, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__()
        self.d_model = count("d_model", d_model)
        self.bias_init = number("bias_init", bias_init)
        for name in self.maps:
            setattr(self, name, nn.Linear(d_model, d_model, bias=False, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(d_model, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for name in self.maps:
            getattr(self, name).reset_parameters()
        nn.init.constant_(self.bias, self.bias_init)

    def extra_repr(self) -> str:
        return f"{self.d_model}, bias_init={self.bias_init}"


class GRUGate(_Gate):
    """Join skip and branch as a GRU joins its state and its input.

        r = sigmoid(W_r y + U_r x)        z = sigmoid(W_z y + U_z x - b)
        h = tanh(W_h y + U_h (r x))       g(x, y) = (1 - z) x + z h

    With b = 2 the gate starts near the identity: z is about 0.12.

    When to use it: Transformers in reinforcement learning and other noisy training, where a residual sum is
    unstable; ``Residual(gate=GRUGate(d))``. The strongest of the five in the paper, and the dearest.

    Values in use: bias_init 2 (Parisotto). The paper puts a ReLU on the branch before the gate.

    Cost: six square maps of the last dimension: 6 d^2 parameters, as many as half a Transformer layer.

    Args:
        d_model: size of the last dimension, at least 1.
        bias_init: b at the start, finite; the larger, the nearer to the identity.

    Called with the skip x and the branch y, both (..., d_model), it returns g(x, y) of that shape.

    Empty, zero, nan: an empty input gives an empty one. A nan in x or y stays visible; an inf in y becomes a
    nan or saturates the gate, and an inf in x stays visible.

    Example:
        >>> GRUGate(8)(torch.randn(2, 8), torch.randn(2, 8)).shape
        torch.Size([2, 8])

    Source: Parisotto et al. (2019), Gated-Recurrent-Unit-type gating,
    https://arxiv.org/abs/1910.06764
    """

    maps = ("w_r", "u_r", "w_z", "u_z", "w_h", "u_h")
    w_r: nn.Linear
    u_r: nn.Linear
    w_z: nn.Linear
    u_z: nn.Linear
    w_h: nn.Linear
    u_h: nn.Linear

    def forward(self, skip: Tensor, branch: Tensor) -> Tensor:
        r = torch.sigmoid(self.w_r(branch) + self.u_r(skip))
        z = torch.sigmoid(self.w_z(branch) + self.u_z(skip) - self.bias)
        h = torch.tanh(self.w_h(branch) + self.u_h(r * skip))
        return (1 - z) * skip + z * h


class InputGate(_Gate):
    """Gate the skip and add the branch.

        g(x, y) = sigmoid(W x + b) x + y

    When to use it: as the cheap counterpart of `GRUGate` in a study: it can forget the stream, but does not
    hold the branch back.

    Values in use: the paper gives this gate no bias; bias_init 2 opens it at the start, 0 is the paper's.

    Cost: one square map of the last dimension.

    Args:
        d_model: size of the last dimension, at least 1.
        bias_init: b at the start, finite.

    Called with the skip x and the branch y, both (..., d_model), it returns g(x, y) of that shape.

    Empty, zero, nan: an empty input gives an empty one. An inf or nan in x or y stays visible.

    Example:
        >>> InputGate(8)(torch.randn(2, 8), torch.randn(2, 8)).shape
        torch.Size([2, 8])

    Source: Parisotto et al. (2019), Input gating, https://arxiv.org/abs/1910.06764
    """

    maps = ("w",)
    w: nn.Linear

    def forward(self, skip: Tensor, branch: Tensor) -> Tensor:
        return torch.sigmoid(self.w(skip) + self.bias) * skip + branch


class OutputGate(_Gate):
    """Keep the skip and gate the branch by what the skip says.

        g(x, y) = x + sigmoid(W x - b) y

    When to use it: as `GRUGate`, at a sixth of the cost: the stream stays clean and the branch begins small.

    Values in use: bias_init 2: the gate starts at about 0.12 (Parisotto's for the GRU gate).

    Cost: one square map of the last dimension.

    Args:
        d_model: size of the last dimension, at least 1.
        bias_init: b at the start, finite.

    Called with the skip x and the branch y, both (..., d_model), it returns g(x, y) of that shape.

    Empty, zero, nan: an empty input gives an empty one. An inf or nan in x or y stays visible.

    Example:
        >>> OutputGate(8)(torch.randn(2, 8), torch.randn(2, 8)).shape
        torch.Size([2, 8])

    Source: Parisotto et al. (2019), Output gating, https://arxiv.org/abs/1910.06764
    """

    maps = ("w",)
    w: nn.Linear

    def forward(self, skip: Tensor, branch: Tensor) -> Tensor:
        return skip + torch.sigmoid(self.w(skip) - self.bias) * branch


class HighwayGate(_Gate):
    """Move between skip and branch by what the skip says.

        g(x, y) = s x + (1 - s) y,        s = sigmoid(W x + b)

    When to use it: as `GRUGate`, at a sixth of the cost. `Highway` is the same with a gate of any form.

    Values in use: bias_init 2: s starts at about 0.88.

    Cost: one square map of the last dimension.

    Args:
        d_model: size of the last dimension, at least 1.
        bias_init: b at the start, finite; the larger, the nearer to the identity.

    Called with the skip x and the branch y, both (..., d_model), it returns g(x, y) of that shape.

    Empty, zero, nan: an empty input gives an empty one. An inf or nan in x or y stays visible.

    Example:
        >>> HighwayGate(8)(torch.randn(2, 8), torch.randn(2, 8)).shape
        torch.Size([2, 8])

    Source: Parisotto et al. (2019), Highway gating, https://arxiv.org/abs/1910.06764
    """

    maps = ("w",)
    w: nn.Linear

    def forward(self, skip: Tensor, branch: Tensor) -> Tensor:
        opened = torch.sigmoid(self.w(skip) + self.bias)
        return opened * skip + (1 - opened) * branch


class SigmoidTanhGate(_Gate):
    """Keep the skip and add a bounded branch: between -1 and 1 whatever the function puts out.

        g(x, y) = x + sigmoid(W y - b) tanh(U y)

    When to use it: where a branch may run off: what one block adds to the stream cannot pass 1.

    Values in use: bias_init 2: the gate starts at about 0.12 (Parisotto's for the GRU gate).

    Cost: two square maps of the last dimension.

    Args:
        d_model: size of the last dimension, at least 1.
        bias_init: b at the start, finite.

    Called with the skip x and the branch y, both (..., d_model), it returns g(x, y) of that shape.

    Empty, zero, nan: an empty input gives an empty one. A nan in x or y stays visible, an inf in x too; an inf
    in y becomes a nan or saturates.

    Example:
        >>> SigmoidTanhGate(8)(torch.zeros(2, 8), 1e6 * torch.randn(2, 8)).abs().max().item() <= 1
        True

    Source: Parisotto et al. (2019), Sigmoid-Tanh gating, https://arxiv.org/abs/1910.06764
    """

    maps = ("w", "u")
    w: nn.Linear
    u: nn.Linear

    def forward(self, skip: Tensor, branch: Tensor) -> Tensor:
        return skip + torch.sigmoid(self.w(branch) - self.bias) * torch.tanh(self.u(branch))
