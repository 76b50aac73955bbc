"""AntisymmetricRNN: a residual recurrence whose flow neither grows nor dies, with or without a gate."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steadygrad._check import count, number
from steadygrad.nn.recurrent._stack import Recurrence, RecurrentStack, unroll


class AntisymmetricRNN(RecurrentStack):
    """An RNN as a small step along a stable flow, so that its Jacobian stays near to orthogonal; called as ``nn.RNN``.

        h_t = h_{t-1} + eps tanh(M h_{t-1} + V_h x_t + b_h),        M = W - W^T - gamma I

    and with a gate, which shares M,

        z_t = sigmoid(M h_{t-1} + V_z x_t + b_z)
        h_t = h_{t-1} + eps z_t * tanh(M h_{t-1} + V_h x_t + b_h)

    The eigenvalues of W - W^T are imaginary: the flow turns and does not grow. A step of size eps does, a little:
    by sqrt((1 - eps gamma)^2 + (eps w)^2) for an eigenvalue i w, which the diffusion gamma makes up for.
    ``step_growth()`` gives the largest, which T steps raise to the power T.

    When to use it: long sequences of noisy inputs, with as few parameters as a plain RNN; the state changes
    slowly, so that it suits dense signals better than single events.

    Values in use: V from N(0, 1 / input_size) and W from N(0, sigma_w^2 / hidden_size), as here; eps, gamma and
    sigma_w are found by search, eps among 0.01, 0.1 and 1, sigma_w among 0, 1, 2, 4, 8 and 16 (Chang et al.). In a
    stack the input of a layer is the output of the one below.

    Cost: a plain RNN as a loop in Python, five kernels a step; the gate one matrix product more for all steps
    at once and two kernels a step.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional: as in ``nn.RNN``.
        gated: the variant with the gate.
        eps: step size, > 0.
        gamma: diffusion, >= 0; gamma = eps * w^2 / 2 makes up for an eigenvalue w.
        sigma_w: scale of W at the start, >= 0.

    Called with input (T, B, input_size), or (B, T, input_size) with batch_first, or (T, input_size), or a
    PackedSequence, and hx (num_layers * directions, B, hidden_size) or None for zeros, it returns output
    (T, B, hidden_size * directions) and h_n of the shape of hx.

    Empty, zero, nan: no steps give an empty output and h_n = hx; an empty batch an empty one. A nan stays in its
    own sequence, from its step on; an inf in the input saturates tanh and leaves a finite state. In bf16 and fp16
    the state, and h_n with it, is float32: a small step would be rounded away.

    Example:
        >>> rnn = AntisymmetricRNN(3, 8, gated=True)
        >>> output, h_n = rnn(torch.randn(20, 2, 3))
        >>> output.shape, rnn.step_growth() < 1.01
        (torch.Size([20, 2, 8]), True)

    Source: Chang, Chen, Haber & Chi (2019), section 3, and appendix C for the start,
    https://arxiv.org/abs/1902.09689
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        gated: bool = False,
        eps: float = 0.01,
        gamma: float = 0.01,
        sigma_w: float = 1.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        count("hidden_size", hidden_size)
        number("eps", eps, 0.0, above=True)
        number("gamma", gamma, 0.0)
        number("sigma_w", sigma_w, 0.0)
        super().__init__(
            lambda width: _AntisymmetricLayer(
                width, hidden_size, bias, gated, eps, gamma, sigma_w, device, dtype
            ),
            input_size,
            num_layers,
            batch_first,
            dropout,
            bidirectional,
        )
        self.hidden_size, self.gated, self.eps, self.gamma = hidden_size, gated, eps, gamma

    @torch.no_grad()
    def step_growth(self) -> float:
        """Largest |1 + eps lambda| over the eigenvalues of M of all layers, a host sync.

        Where tanh has slope 1, a step stretches the state by no more than this: below 1 the flow contracts there.
        """
        turns = []
        for layer in self.layers:
            weight: Any = layer.weight_hh
            wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
            turns.append(torch.linalg.matrix_norm(wide - wide.mT, 2))
        largest = torch.stack(turns).max().item()  # host sync
        return ((1 - self.eps * self.gamma) ** 2 + (self.eps * largest) ** 2) ** 0.5

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, gated={self.gated}, eps={self.eps}, gamma={self.gamma}"


class _AntisymmetricLayer(Recurrence):
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool,
        gated: bool,
        eps: float,
        gamma: float,
        sigma_w: float,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.state_size = self.output_size = hidden_size
        self.gated, self.eps, self.gamma, self.sigma_w = gated, eps, gamma, sigma_w
        rows = hidden_size * (2 if gated else 1)  # V_h above V_z
        self.weight_ih = nn.Parameter(torch.empty(rows, input_size, device=device, dtype=dtype))
        self.weight_hh = nn.Parameter(torch.empty(hidden_size, hidden_size, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(rows, device=device, dtype=dtype)) if bias else None

    def state_dtype(self, dtype: torch.dtype) -> torch.dtype:
        return torch.promote_types(dtype, torch.float32)  # in bf16, small steps would be rounded away

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight_ih, std=self.weight_ih.shape[1] ** -0.5)
        nn.init.normal_(self.weight_hh, std=self.sigma_w * self.state_size**-0.5)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        inputs = F.linear(x, self.weight_ih, self.bias)
        matrix = self.weight_hh - self.weight_hh.mT
        matrix = matrix - self.gamma * torch.eye(self.state_size, dtype=matrix.dtype, device=matrix.device)

        def step(u: Tensor, h: Tensor) -> Tensor:
            flow = F.linear(h.to(matrix.dtype), matrix)
            if not self.gated:
                return h + self.eps * torch.tanh(flow + u)
            candidate, gate = u.chunk(2, -1)
            return h + self.eps * torch.sigmoid(flow + gate) * torch.tanh(flow + candidate)

        states = unroll(step, inputs, state)
        return states.to(x.dtype), states
