"""The linear recurrent unit: a diagonal complex recurrence that is stable whatever its parameters are."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steadygrad._check import count, number
from steadygrad.nn.recurrent._stack import Recurrence, RecurrentStack


def linear_scan(lam: Tensor, inputs: Tensor, state: Tensor) -> Tensor:
    """All states of a diagonal linear recurrence, in log2(T) passes instead of T steps.

        x_k = lambda * x_{k-1} + v_k,   k = 1..T

    by doubling: after the pass with distance d = 1, 2, 4, .. every entry holds the sum of the last 2 d inputs,
    each times its power of lambda. That is log2(T) times the additions of a loop, and the fewest passes.

    When to use it: any linear recurrence with a constant diagonal matrix; on a GPU, where T small steps are
    T launches.

    Values in use: none to set.

    Cost: log2(T) passes over (T, B, N), each kept for the backward pass; a loop takes T steps over (B, N).

    Args:
        lam: (N,), real or complex, of size at most 1 (beyond it powers may overflow).
        inputs: v of shape (T, B, N), of the dtype of ``lam``.
        state: x_0 of shape (B, N).

    Returns x_1..x_T, (T, B, N).

    Empty, zero, nan: T = 0 gives an empty result; a nan or inf at a step stays in its own entry, from that step on.

    Example:
        >>> linear_scan(torch.tensor([0.5]), torch.ones(4, 1, 1), torch.zeros(1, 1)).flatten().tolist()
        [1.0, 1.5, 1.75, 1.875]

    Source: Kogge & Stone (1973), for doubling, https://doi.org/10.1109/TC.1973.5009159; Martin & Cundy (2018),
    section 2, for recurrences in networks, https://arxiv.org/abs/1709.04057
    """
    steps = inputs.shape[0]
    if steps == 0:
        return inputs
    x = torch.cat((inputs[:1] + lam * state, inputs[1:]))
    distance, power = 1, lam
    while distance < steps:
        x = torch.cat((x[:distance], x[distance:] + power * x[:-distance]))
        distance, power = 2 * distance, power * power
    return x


class LRU(RecurrentStack):
    """A linear recurrent unit: a diagonal complex recurrence inside the unit circle; called as ``nn.RNN``.

        x_k = lambda * x_{k-1} + gamma * (B u_k),   y_k = Re(C x_k) + D u_k
        lambda_j = exp(-exp(nu_j) + i exp(theta_j)),        |lambda_j| < 1 for every nu_j

    so that neither a step of the optimizer nor a rate too high can make it unstable: ||dL/dx_0|| <= max
    |lambda|^T ||dL/dx_T||. It starts with lambda uniform on the ring r_min <= |lambda| <= r_max of phase at most
    max_phase, and gamma_j = sqrt(1 - |lambda_j|^2), which gives the state the variance of its input however
    near to 1 |lambda| is; gamma is then learned. (In float32, |lambda| rounds to 1 at nu below -17.3.)

    When to use it: very long sequences (thousands of steps), as a layer of a residual block with a norm before
    it and a nonlinearity behind it: it is linear itself, and has one layer for that reason. For recall over a
    length T take r_min near to 1 - 1/T.

    Values in use: the ring near to the unit circle and, for the longest tasks, max_phase a small part of pi: PathX
    r_min 0.999, r_max 0.9999; a smaller rate for nu, theta, gamma and B than for the rest, and no weight decay on
    them (Orvieto et al.). D is diagonal in their code and a matrix here, as input and output may differ in width.

    Cost: O(T N) for the recurrence in log2(T) passes, see ``linear_scan``; five real matrix products per step,
    all steps at once. Complex states take two float32 each.

    Args:
        input_size: features of u.
        hidden_size: features of y.
        state_size: complex numbers in the state; None for ``hidden_size``.
        r_min, r_max: ring of |lambda| at the start, 0 <= r_min < r_max <= 1.
        max_phase: largest phase of lambda at the start, in radians, > 0.
        batch_first, bidirectional: as in ``nn.RNN``.

    Called with input (T, B, input_size), or (B, T, input_size) with batch_first, or (T, input_size), or a
    PackedSequence, and hx (directions, B, state_size) complex or None for zeros, it returns output
    (T, B, hidden_size * directions) and h_n, complex, of the shape of hx.

    Empty, zero, nan: no steps give an empty output and h_n = hx; an empty batch an empty one. A nan or inf stays
    in its own sequence, from its step on. In bf16 and fp16, and under autocast, the state is float32.

    Example:
        >>> lru = LRU(3, 4, r_min=0.9, r_max=0.999)
        >>> output, h_n = lru(torch.randn(1000, 2, 3))
        >>> output.shape, h_n.shape, h_n.dtype
        (torch.Size([1000, 2, 4]), torch.Size([1, 2, 4]), torch.complex64)

    Source: Orvieto et al. (2023), sections 3.2 to 3.4 and lemma 3.2, https://arxiv.org/abs/2303.06349
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        state_size: int | None = None,
        r_min: float = 0.0,
        r_max: float = 0.999,
        max_phase: float = 2 * math.pi,
        batch_first: bool = False,
        bidirectional: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        count("hidden_size", hidden_size)
        size = hidden_size if state_size is None else count("state_size", state_size)
        if not 0 <= number("r_min", r_min) < number("r_max", r_max) <= 1:
            raise ValueError(f"r_min and r_max must satisfy 0 <= r_min < r_max <= 1, got {r_min} and {r_max}")
        number("max_phase", max_phase, 0.0, above=True)
        super().__init__(
            lambda width: _LRULayer(width, hidden_size, size, r_min, r_max, max_phase, device, dtype),
            input_size,
            1,
            batch_first,
            0.0,
            bidirectional,
        )
        self.hidden_size, self.r_min, self.r_max, self.max_phase = hidden_size, r_min, r_max, max_phase

    def extra_repr(self) -> str:
        ring = f"r_min={self.r_min}, r_max={self.r_max}, max_phase={self.max_phase:.4g}"
        return f"{super().extra_repr()}, state_size={self.state_size}, {ring}"


class _LRULayer(Recurrence):
    def __init__(
        self,
        input_size: int,
        output_size: int,
        state_size: int,
        r_min: float,
        r_max: float,
        max_phase: float,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.state_size, self.output_size = state_size, output_size
        self.ring = (r_min, r_max, max_phase)

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape, device=device, dtype=dtype))

        self.nu_log, self.theta_log, self.gamma_log = (parameter(state_size) for _ in range(3))
        # real and imaginary parts apart, because a module moved to bf16 cannot hold complex numbers
        self.b_real, self.b_imag = parameter(state_size, input_size), parameter(state_size, input_size)
        self.c_real, self.c_imag = parameter(output_size, state_size), parameter(output_size, state_size)
        self.d = parameter(output_size, input_size)

    def state_dtype(self, dtype: torch.dtype) -> torch.dtype:
        return torch.promote_types(dtype, torch.complex64)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        r_min, r_max, max_phase = self.ring
        wide = torch.promote_types(self.nu_log.dtype, torch.float32)
        u1, u2 = (torch.rand(self.state_size, device=self.d.device, dtype=wide) for _ in range(2))
        squared = u1 * (r_max**2 - r_min**2) + r_min**2
        squared = squared.clamp(torch.finfo(wide).tiny, 1 - 1e-7)  # log 0 at both ends
        self.nu_log.copy_((-0.5 * squared.log()).log())
        self.theta_log.copy_((max_phase * u2).clamp_min(torch.finfo(wide).tiny).log())
        # of the nu that is stored, which in bf16 is a rounded one
        decay = self.nu_log.to(wide).exp()
        self.gamma_log.copy_(0.5 * (-torch.expm1(-2 * decay)).log())
        fan_in, state = self.d.shape[1], self.state_size
        for part in (self.b_real, self.b_imag):
            nn.init.normal_(part, std=(2 * fan_in) ** -0.5)
        for part in (self.c_real, self.c_imag):
            nn.init.normal_(part, std=state**-0.5)
        nn.init.normal_(self.d, std=fan_in**-0.5)

    def eigenvalues(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """lambda, (state_size,) complex, inside the unit circle."""
        decay, phase = self.nu_log.to(dtype).exp(), self.theta_log.to(dtype).exp()
        return torch.polar((-decay).exp(), phase)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        dtype = torch.promote_types(x.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            u = x.to(dtype)
            gain = self.gamma_log.to(dtype).exp()[:, None]
            inputs = torch.complex(
                F.linear(u, gain * self.b_real.to(dtype)), F.linear(u, gain * self.b_imag.to(dtype))
            )
            states = linear_scan(self.eigenvalues(dtype), inputs, state)
            y = F.linear(states.real, self.c_real.to(dtype)) - F.linear(states.imag, self.c_imag.to(dtype))
            return (y + F.linear(u, self.d.to(dtype))).to(x.dtype), states
