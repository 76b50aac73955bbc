"""GRU with layer normalisation inside its recurrence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from steadygrad.nn.norm._parameters import (
    add_norms,
    check_cell_input,
    check_wide_enough,
    checked_eps,
    reset_norms,
    suffixes,
)
from steadygrad.nn.norm._sequence import SequenceLayer, State, unroll


def layer_norm_gru_step(x_gates: Tensor, h: Tensor, weight_hh: Tensor, norm_hh: Callable) -> Tensor:
    """One step from the normalised input part ``x_gates``: the new h.

    r, z = s(x_rz + norm_hh(W_hh h)_rz)        n = tanh(x_n + r norm_hh(W_hh h)_n)        h <- (1 - z) n + z h
    """
    x_r, x_z, x_n = x_gates.chunk(3, -1)
    h_r, h_z, h_n = norm_hh(F.linear(h, weight_hh)).chunk(3, -1)
    r, z = (x_r + h_r).sigmoid(), (x_z + h_z).sigmoid()
    n = (x_n + r * h_n).tanh()
    return n + z * (h - n)


def gru_norm(x: Tensor, gain: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """Layer norm of the two gates jointly, and of the candidate by itself."""
    gates = 2 * x.shape[-1] // 3
    parts = ((0, gates), (gates, x.shape[-1]))
    return torch.cat(
        [
            F.layer_norm(x[..., a:b], (b - a,), gain[a:b], None if bias is None else bias[a:b], eps)
            for a, b in parts
        ],
        -1,
    )


class LayerNormGRUCell(nn.GRUCell):
    """One step of a GRU whose sums are layer-normalised: ``nn.GRUCell`` with steady gates.

        (r, z) = sigmoid(LN(W_ih x; a_ih) + b_ih + LN(W_hh h; a_hh) + b_hh)
        n = tanh(LN(W_in x; a_in) + b_in + r * (LN(W_hn h; a_hn) + b_hn))
        h' = (1 - z) * n + z * h

    with LN over the two gates jointly and over the candidate by itself, as the paper's equations have it, and
    a gain ``a`` for every number. torch's biases serve as the biases of the norms; z and 1 - z are torch's way
    round.

    When to use it: `LayerNormGRU` over a whole sequence; the cell where a step needs the output of the last.

    Values in use: gains 1, biases 0, eps 1e-5 (the paper's scaling; torch's eps).

    Cost: see `LayerNormGRU`.

    Args:
        input_size: width of x, >= 1.
        hidden_size: width of h, >= 2: the norm of a single number is 0.
        bias: False leaves out b_ih and b_hh.
        eps: added to the variance under the root, > 0.

    Called with (B, input_size) or (input_size,) and optionally ``h`` it returns ``h'``, as ``nn.GRUCell`` does.

    Empty, zero, inf, nan: a batch of 0 gives a batch of 0. Where all sums are 0, the norm gives its bias, and
    its derivative is 1 / sqrt(eps). An inf or nan in a row makes that row nan and no other.

    Example:
        >>> cell = LayerNormGRUCell(3, 4)
        >>> tuple(cell(torch.randn(2, 3)).shape)
        (2, 4)

    Source: Ba, Kiros & Hinton (2016), supplementary material, the layer-normalised GRU,
    https://arxiv.org/abs/1607.06450
    """

    norm_weight_ih: Tensor
    norm_weight_hh: Tensor

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        eps: float = 1e-5,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, device=device, dtype=dtype)
        check_wide_enough(hidden_size)
        self.eps = checked_eps(eps)
        add_norms(self, 3 * hidden_size, 0, bias, "", device, dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weights as torch draws them, gains 1, biases 0."""
        super().reset_parameters()
        reset_norms(self)

    def _norm(self, x: Tensor, gain: Tensor, bias: Tensor | None) -> Tensor:
        return gru_norm(x, gain, bias, self.eps)

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        check_cell_input(input, self.input_size)
        if hx is None:
            hx = input.new_zeros(*input.shape[:-1], self.hidden_size)
        x_gates = self._norm(F.linear(input, self.weight_ih), self.norm_weight_ih, self.bias_ih)
        return layer_norm_gru_step(
            x_gates, hx, self.weight_hh, lambda s: self._norm(s, self.norm_weight_hh, self.bias_hh)
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, eps={self.eps}"


class LayerNormGRU(SequenceLayer):
    """A GRU whose sums are layer-normalised at every step: ``nn.GRU``, call for call, with steady gates.

        (r, z)_t = sigmoid(LN(W_ih x_t; a_ih) + b_ih + LN(W_hh h_(t-1); a_hh) + b_hh)
        n_t = tanh(LN(W_in x_t; a_in) + b_in + r_t * (LN(W_hn h_(t-1); a_hn) + b_hn))
        h_t = (1 - z_t) * n_t + z_t * h_(t-1)

    LN runs over the two gates jointly and over the candidate by itself, as in the paper's equations; see
    `LayerNormGRUCell`. A growing W_hh can then no longer drive the gates.

    When to use it: a GRU over long sequences whose loss or gradient runs away, or whose gates saturate; small
    or changing batches.

    Values in use: gains 1, biases 0 (the paper; skip-thoughts with hidden size 2400).

    Cost: four norms a step, and a loop in Python instead of torch's fused kernel: twice the time of ``nn.GRU``
    on one CPU core (100 steps, batch 32, width 128); on a GPU, not measured, more. torch.compile unrolls the
    loop. The input's part is done for all steps at once.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, device, dtype: as in
            ``nn.GRU``; hidden_size >= 2.
        eps: added to the variance under the root, > 0.

    Parameters have torch's names (``weight_ih_l0``, ``bias_hh_l1_reverse``); the norms add ``norm_weight_ih_l0``
    and ``norm_weight_hh_l0``. Called with (T, B, input_size), (B, T, input_size) if batch_first,
    (T, input_size) or a PackedSequence, and optionally ``h_0``, it returns ``output, h_n`` as ``nn.GRU`` does.

    Empty, zero, inf, nan: a batch of 0 gives a batch of 0; no time step is a ValueError. Where all sums are 0 the
    norm gives its bias, and its derivative is 1 / sqrt(eps). An inf or nan in one sequence makes it nan
    from there on, and no other.

    Example:
        >>> gru = LayerNormGRU(3, 4, batch_first=True)
        >>> output, h = gru(torch.randn(2, 5, 3))
        >>> tuple(output.shape), bool((output[:, -1] == h[0]).all())
        ((2, 5, 4), True)

    Source: Ba, Kiros & Hinton (2016), supplementary material, the layer-normalised GRU,
    https://arxiv.org/abs/1607.06450
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
        device: Any = None,
        dtype: Any = None,
        *,
        eps: float = 1e-5,
    ) -> None:
        super().__init__(
            "GRU",
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            device=device,
            dtype=dtype,
        )
        check_wide_enough(hidden_size)
        self.eps = checked_eps(eps)
        for suffix in suffixes(self):
            add_norms(self, 3 * hidden_size, 0, bias, suffix, device, dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weights as torch draws them, gains 1, biases 0."""
        super().reset_parameters()
        reset_norms(self)

    def _norm(self, x: Tensor, gain: Tensor, bias: Tensor | None) -> Tensor:
        return gru_norm(x, gain, bias, self.eps)

    def _run(self, x: Tensor, sizes: list[int], state: State, suffix: str) -> tuple[Tensor, State]:
        weight_ih, weight_hh, bias_ih, bias_hh, gain_ih, gain_hh = self._named(
            suffix, "weight_ih", "weight_hh", "bias_ih", "bias_hh", "norm_weight_ih", "norm_weight_hh"
        )

        def step(x_gates: Tensor, state: State, t: int) -> State:
            return (
                layer_norm_gru_step(x_gates, state[0], weight_hh, lambda s: self._norm(s, gain_hh, bias_hh)),
            )

        x_gates = self._norm(F.linear(x, weight_ih), gain_ih, bias_ih)
        return unroll(step, x_gates.split(sizes), state)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, eps={self.eps}"
