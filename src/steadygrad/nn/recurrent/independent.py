"""IndRNN: each unit has one recurrent weight, so that how a gradient grows through time can be read off and bounded."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steadygrad._check import count, number, one_of
from steadygrad.nn.recurrent._stack import Recurrence, RecurrentStack, unroll


def recurrent_bound(num_steps: int, gamma: float = 2.0) -> float:
    """The largest recurrent weight for which a gradient grows at most ``gamma`` times over ``num_steps``.

        |u| <= gamma^(1/T)

    When to use it: for ``IndRNN(bound=...)`` with ReLU, given the longest sequence.

    Values in use: gamma 2 (the code of Li et al.).

    Cost: none.

    Args:
        num_steps: T, at least 1.
        gamma: growth allowed over all steps, > 0.

    Returns the bound. Raises on 0, inf and nan.

    Example:
        >>> round(recurrent_bound(784), 6)
        1.000885

    Source: Li et al. (2018), section 3.1, https://arxiv.org/abs/1803.04831
    """
    return number("gamma", gamma, 0.0, above=True) ** (1 / count("num_steps", num_steps))


class IndRNN(RecurrentStack):
    """An RNN whose units do not feed each other, so that each gradient through time has a bound; called as ``nn.RNN``.

        h_t = f(W x_t + u * h_{t-1} + b),        dh_T / dh_t = u^(T - t) prod f'

    unit by unit. With |u| <= bound nothing grows faster than bound^T; ``clamp_()`` after each step of the
    optimizer holds it.

    When to use it: long sequences with ReLU, in several layers, through which the units mix.

    Values in use: ReLU, bound ``recurrent_bound(T)``, u uniform in [0, bound] at the start; 2 to 21 layers (Li et
    al.). Where only the last output counts they start u of the last layer in [gamma^-(1/T), bound], so that it
    remembers; here every layer starts in [0, bound].

    Cost: a vector product in place of a matrix product a step; a loop in Python, three kernels a step.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional: as in ``nn.RNN``.
        nonlinearity: "relu" or "tanh".
        bound: largest |u|, > 0; None for 1.

    Called with input (T, B, input_size), or (B, T, input_size) with batch_first, or (T, input_size), or a
    PackedSequence, and hx (num_layers * directions, B, hidden_size) or None for zeros, it returns output
    (T, B, hidden_size * directions) and h_n of the shape of hx.

    Empty, zero, nan: no steps give an empty output and h_n = hx; an empty batch an empty one. A nan stays in its
    own sequence, from its step on. ``clamp_()`` leaves a nan weight, so that it is seen.

    Example:
        >>> rnn = IndRNN(3, 8, num_layers=2, bound=recurrent_bound(100))
        >>> output, h_n = rnn(torch.randn(100, 2, 3))
        >>> rnn.clamp_()
        >>> output.shape, h_n.shape
        (torch.Size([100, 2, 8]), torch.Size([2, 2, 8]))

    Source: Li, Li, Cook, Zhu & Gao (2018), section 3, https://arxiv.org/abs/1803.04831
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "relu",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        bound: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        count("hidden_size", hidden_size)
        one_of("nonlinearity", nonlinearity, ("relu", "tanh"))
        limit = 1.0 if bound is None else number("bound", bound, 0.0, above=True)
        super().__init__(
            lambda width: _IndependentLayer(width, hidden_size, nonlinearity, bias, limit, device, dtype),
            input_size,
            num_layers,
            batch_first,
            dropout,
            bidirectional,
        )
        self.hidden_size, self.nonlinearity, self.bound = hidden_size, nonlinearity, limit

    @torch.no_grad()
    def clamp_(self) -> None:
        """Bring every recurrent weight back to -bound .. bound. Call it after each step of the optimizer."""
        for layer in self.layers:
            layer.weight_hh.clamp_(-self.bound, self.bound)  # type: ignore[operator,union-attr]

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, nonlinearity={self.nonlinearity}, bound={self.bound:.6g}"


class _IndependentLayer(Recurrence):
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        nonlinearity: str,
        bias: bool,
        bound: float,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.state_size = self.output_size = hidden_size
        self.bound = bound
        self.weight_ih = nn.Parameter(torch.empty(hidden_size, input_size, device=device, dtype=dtype))
        self.weight_hh = nn.Parameter(torch.empty(hidden_size, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(hidden_size, device=device, dtype=dtype)) if bias else None
        self.activation = nn.ReLU() if nonlinearity == "relu" else nn.Tanh()

    def reset_parameters(self) -> None:
        nn.init.xavier_uniform_(self.weight_ih)
        nn.init.uniform_(self.weight_hh, 0.0, self.bound)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        inputs = F.linear(x, self.weight_ih, self.bias)
        states = unroll(lambda u, h: self.activation(u + self.weight_hh * h), inputs, state)
        return states, states
