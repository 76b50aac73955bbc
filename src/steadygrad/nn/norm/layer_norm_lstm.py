"""LSTM with layer normalisation inside its recurrence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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
from steadygrad.nn.norm._sequence import SequenceLayer, State, lstm_state, unroll


def layer_norm_lstm_step(
    x_gates: Tensor, state: State, weight_hh: Tensor, norm_hh: Callable, norm_c: Callable
) -> tuple[Tensor, Tensor]:
    """One step from ``x_gates = LN(W_ih x_t) + b_ih``: the new h and c.

    i, f, g, o = x_gates + norm_hh(W_hh h)        c <- s(f) c + s(i) tanh(g)        h <- s(o) tanh(norm_c(c))
    """
    h, c = state
    out, c = lstm_state(x_gates + norm_hh(F.linear(h, weight_hh)), c)
    return out * norm_c(c).tanh(), c


class LayerNormLSTMCell(nn.LSTMCell):
    """One step of an LSTM whose sums are layer-normalised: ``nn.LSTMCell`` with steady gates.

        (i, f, g, o) = LN(W_ih x; a_ih) + b_ih + LN(W_hh h; a_hh) + b_hh
        c' = sigmoid(f) * c + sigmoid(i) * tanh(g)
        h' = sigmoid(o) * tanh(LN(c'; a_c) + b_c)

    with LN over all four gates jointly, as the paper's equation has it (TensorFlow's layer-norm LSTM takes
    each gate by itself), and a gain ``a`` for every number. torch's biases serve as the biases of the norms; the
    paper's third one would only be added to them. c itself is carried on unnormalised, so that the gradient
    passes from step to step as in a plain LSTM.

    When to use it: `LayerNormLSTM` over a whole sequence; the cell where a step needs the output of the last.

    Values in use: gains 1, biases 0, eps 1e-5 (the paper's scaling; torch's eps).

    Cost: see `LayerNormLSTM`.

    Args:
        input_size: width of x, >= 1.
        hidden_size: width of h and c, >= 2: the norm of a single number is 0.
        bias: False leaves out b_ih, b_hh and b_c.
        eps: added to the variance under the root, > 0.

    Called with (B, input_size) or (input_size,) and optionally ``(h, c)`` it returns ``(h', c')``, as
    ``nn.LSTMCell`` does.

    Empty, zero, inf, nan: a batch of 0 gives a batch of 0. Where all sums are 0, the norm gives its bias, and
    its derivative is 1 / sqrt(eps). An inf or nan in a row makes that row nan and no other.

    Example:
        >>> import torch
        >>> cell = LayerNormLSTMCell(3, 4)
        >>> h, c = cell(torch.randn(2, 3))
        >>> tuple(h.shape), bool((h.abs() < 1).all())
        ((2, 4), True)

    Source: Ba, Kiros & Hinton (2016), supplementary material, the layer-normalised LSTM,
    https://arxiv.org/abs/1607.06450
    """

    norm_weight_ih: Tensor
    norm_weight_hh: Tensor
    norm_weight_c: Tensor
    norm_bias_c: Tensor | None

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
        add_norms(self, 4 * hidden_size, hidden_size, bias, "", device, dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weights as torch draws them, gains 1, biases 0."""
        super().reset_parameters()
        reset_norms(self)

    def _norm(self, x: Tensor, gain: Tensor, bias: Tensor | None) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], gain, bias, self.eps)

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        check_cell_input(input, self.input_size)
        if hx is None:
            zeros = input.new_zeros(*input.shape[:-1], self.hidden_size)
            hx = (zeros, zeros)
        x_gates = self._norm(F.linear(input, self.weight_ih), self.norm_weight_ih, self.bias_ih)
        return layer_norm_lstm_step(
            x_gates,
            hx,
            self.weight_hh,
            lambda s: self._norm(s, self.norm_weight_hh, self.bias_hh),
            lambda c: self._norm(c, self.norm_weight_c, self.norm_bias_c),
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, eps={self.eps}"


class LayerNormLSTM(SequenceLayer):
    """An LSTM whose sums are layer-normalised at every step: ``nn.LSTM``, call for call, with steady gates.

        (i, f, g, o)_t = LN(W_ih x_t; a_ih) + b_ih + LN(W_hh h_(t-1); a_hh) + b_hh
        c_t = sigmoid(f_t) * c_(t-1) + sigmoid(i_t) * tanh(g_t)
        h_t = sigmoid(o_t) * tanh(LN(c_t; a_c) + b_c)

    LN runs over the four gates jointly, as in the paper's equation; see `LayerNormLSTMCell`. A growing W_hh
    can then no longer drive the gates: the sums keep unit variance whatever its scale.

    When to use it: an LSTM over long sequences whose loss or gradient runs away, or whose gates saturate; small
    or changing batches, where `BatchNormLSTM` has no statistics.

    Values in use: gains 1, biases 0 (the paper; three layers of 400 for handwriting).

    Cost: three norms a step, and a loop in Python instead of torch's fused kernel: twice the time of ``nn.LSTM``
    on one CPU core (100 steps, batch 32, width 128); on a GPU, not measured, more. torch.compile unrolls the
    loop. The input's part is done for all steps at once.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size, device,
            dtype: as in ``nn.LSTM``; hidden_size >= 2.
        eps: added to the variance under the root, > 0.

    Parameters have torch's names (``weight_ih_l0``, ``bias_hh_l1_reverse``); the norms add ``norm_weight_ih_l0``,
    ``norm_weight_hh_l0``, ``norm_weight_c_l0`` and ``norm_bias_c_l0``. Called with (T, B, input_size),
    (B, T, input_size) if batch_first, (T, input_size) or a PackedSequence, and optionally ``(h_0, c_0)``, it
    returns ``output, (h_n, c_n)`` as ``nn.LSTM`` does.

    Empty, zero, inf, nan: a batch of 0 gives a batch of 0; no time step is a ValueError. Where all sums are 0 the
    norm gives its bias, and its derivative is 1 / sqrt(eps). An inf or nan in one sequence makes it nan
    from there on, and no other.

    Example:
        >>> import torch
        >>> lstm = LayerNormLSTM(3, 4, num_layers=2, bidirectional=True)
        >>> output, (h, c) = lstm(torch.randn(5, 2, 3))
        >>> tuple(output.shape), tuple(h.shape)
        ((5, 2, 8), (4, 2, 4))

    Source: Ba, Kiros & Hinton (2016), supplementary material, the layer-normalised LSTM,
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
        proj_size: int = 0,
        device: Any = None,
        dtype: Any = None,
        *,
        eps: float = 1e-5,
    ) -> None:
        super().__init__(
            "LSTM",
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            proj_size,
            device=device,
            dtype=dtype,
        )
        check_wide_enough(hidden_size)
        self.eps = checked_eps(eps)
        for suffix in suffixes(self):
            add_norms(self, 4 * hidden_size, hidden_size, bias, suffix, device, dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weights as torch draws them, gains 1, biases 0."""
        super().reset_parameters()
        reset_norms(self)

    def _norm(self, x: Tensor, gain: Tensor, bias: Tensor | None) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], gain, bias, self.eps)

    def _run(self, x: Tensor, sizes: list[int], state: State, suffix: str) -> tuple[Tensor, State]:
        weight_ih, weight_hh, bias_ih, bias_hh, weight_hr = self._named(
            suffix, "weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr"
        )
        gain_ih, gain_hh, gain_c, bias_c = self._named(
            suffix, "norm_weight_ih", "norm_weight_hh", "norm_weight_c", "norm_bias_c"
        )

        def step(x_gates: Tensor, state: State, t: int) -> State:
            h, c = layer_norm_lstm_step(
                x_gates,
                state,
                weight_hh,
                lambda s: self._norm(s, gain_hh, bias_hh),
                lambda c: self._norm(c, gain_c, bias_c),
            )
            return (h if weight_hr is None else F.linear(h, weight_hr)), c

        x_gates = self._norm(F.linear(x, weight_ih), gain_ih, bias_ih)
        return unroll(step, x_gates.split(sizes), state)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, eps={self.eps}"
