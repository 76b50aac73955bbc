"""A multi-layer RNN, LSTM or GRU of torch, taken apart into layers with residual connections between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from steadygrad._check import fraction

Sequences = Tensor | PackedSequence


class ResidualRecurrence(nn.Module):
    """Give each layer of an RNN, LSTM or GRU a norm before it and a skip around it; the call stays torch's.

        h_l = h_(l-1) + D(cell_l(N(h_(l-1)))),        y = N(h_L)

    for every layer whose input is as wide as its output. Another first layer stands without norm and skip:
    h_1 = D(cell_1(x)).

    When to use it: an ``nn.LSTM(num_layers=...)`` of 3 layers and more in a model that exists. For a new net
    `nn.models.residual_lstm` and its kin.

    Values in use: 8 layers with residual connections from the third on, without norms (Wu 2016); dropout 0.1
    to 0.3.

    Cost: a norm and a sum for each layer; on a GPU also what cuDNN gains from fusing the layers.

    Args:
        rnn: an `nn.RNN`, `nn.LSTM` or `nn.GRU` with any options. Its weights are copied, layer by layer; with
            the norms and skips the function is another one, so this belongs before training.
        dropout: probability at the end of each layer, 0 to 1; None for that of ``rnn``.

    Called as ``rnn`` is, with a `PackedSequence` too, it returns ``(output, state)`` of the same shapes. The
    state holds what each layer puts out before dropout, norm and sum.

    Empty, zero, nan: as for ``rnn``; a nan stays visible in its sequence from its step on.

    Example:
        >>> lstm = ResidualRecurrence(nn.LSTM(4, 8, num_layers=6, batch_first=True))
        >>> output, (h, c) = lstm(torch.zeros(2, 5, 4))
        >>> output.shape, h.shape
        (torch.Size([2, 5, 8]), torch.Size([6, 2, 8]))

    Source: Wu et al. (2016), section 3.1, https://arxiv.org/abs/1609.08144; the norm before the layer:
    Xiong et al. (2020), section 3, https://arxiv.org/abs/2002.04745
    """

    def __init__(self, rnn: nn.RNNBase, dropout: float | None = None) -> None:
        super().__init__()
        if type(rnn) not in (nn.RNN, nn.LSTM, nn.GRU):
            raise TypeError(
                f"rnn must be torch's nn.RNN, nn.LSTM or nn.GRU, got {type(rnn).__name__}: "
                "for another recurrent layer put each one into a Residual"
            )
        self.input_size, self.hidden_size, self.proj_size = rnn.input_size, rnn.hidden_size, rnn.proj_size
        self.num_layers, self.batch_first, self.bidirectional = (
            rnn.num_layers,
            rnn.batch_first,
            rnn.bidirectional,
        )
        self.bias, self.mode = rnn.bias, rnn.mode
        self.dropout = rnn.dropout if dropout is None else fraction("dropout", dropout)
        self.layers = nn.ModuleList(_layer(rnn, index) for index in range(rnn.num_layers))
        width = (rnn.proj_size or rnn.hidden_size) * (2 if rnn.bidirectional else 1)
        like: dict[str, Any] = {"device": rnn.weight_ih_l0.device, "dtype": rnn.weight_ih_l0.dtype}
        self.norms = nn.ModuleList(
            nn.LayerNorm(width, **like) if layer.input_size == width else nn.Identity()
            for layer in self.layers
        )
        self.norm = nn.LayerNorm(width, **like)
        self.train(rnn.training)

    def forward(self, input: Sequences, hx: Any = None) -> tuple[Sequences, Any]:
        x, states = input, []
        for index, (norm, layer) in enumerate(zip(self.norms, self.layers, strict=True)):
            normed = _with(x, norm(_data(x)))
            out, state = layer(normed, self._state_of(hx, index))
            states.append(state)
            branch = nn.functional.dropout(_data(out), self.dropout, self.training)
            x = _with(out, branch if isinstance(norm, nn.Identity) else _data(x) + branch)
        return _with(x, self.norm(_data(x))), _joined(states)

    def _state_of(self, hx: Any, index: int) -> Any:
        if hx is None:
            return None
        if isinstance(hx, tuple):
            return tuple(self._state_of(h, index) for h in hx)
        directions = 2 if self.bidirectional else 1
        if hx.shape[0] != self.num_layers * directions:
            raise ValueError(
                f"the state has {hx.shape[0]} layers and directions, this net {self.num_layers * directions}"
            )
        return hx[index * directions : (index + 1) * directions]

    def flatten_parameters(self) -> None:
        """As torch's, for code that calls it."""
        for layer in self.layers:
            layer.flatten_parameters()  # type: ignore[operator]

    def extra_repr(self) -> str:
        return f"dropout={self.dropout}" if self.dropout else ""


def _layer(rnn: nn.RNNBase, index: int) -> nn.RNNBase:
    """One layer of a multi-layer net, with its weights."""
    width = (rnn.proj_size or rnn.hidden_size) * (2 if rnn.bidirectional else 1)
    options: dict[str, Any] = {
        "bias": rnn.bias,
        "batch_first": rnn.batch_first,
        "bidirectional": rnn.bidirectional,
    }
    if isinstance(rnn, nn.RNN):
        options["nonlinearity"] = rnn.nonlinearity
    if rnn.proj_size:
        options["proj_size"] = rnn.proj_size
    weight = getattr(rnn, f"weight_ih_l{index}")
    kind: Any = type(rnn)
    size = width if index else rnn.input_size
    layer = kind(size, rnn.hidden_size, device=weight.device, dtype=weight.dtype, **options)
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            old = getattr(rnn, name.replace("_l0", f"_l{index}"))
            parameter.copy_(old).requires_grad_(old.requires_grad)
    return layer


def _data(x: Sequences) -> Tensor:
    return x.data if isinstance(x, PackedSequence) else x


def _with(x: Sequences, data: Tensor) -> Sequences:
    return x._replace(data=data) if isinstance(x, PackedSequence) else data


def _joined(states: Sequence[Any]) -> Any:
    if isinstance(states[0], tuple):
        return tuple(_joined(part) for part in zip(*states, strict=True))
    return torch.cat(list(states))
