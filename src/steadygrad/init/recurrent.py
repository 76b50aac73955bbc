"""Weights that keep a recurrent net's state through time: orthogonal, identity, and the forget gate open."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from steadygrad.init.orthogonal import check_finite, orthogonal_blocks_

_GATES = {"LSTM": 4, "GRU": 3, "RNN_TANH": 1, "RNN_RELU": 1}  # by the mode of an nn.RNNBase
_GATES_OF_CELLS = {"LSTMCell": 4, "GRUCell": 3, "RNNCell": 1}


def orthogonal_recurrent_(
    module: nn.RNNBase | nn.RNNCellBase, gain: float = 1.0, generator: torch.Generator | None = None
) -> None:
    """Make every hidden-to-hidden matrix of an RNN, LSTM or GRU orthogonal, gate by gate. In place.

        W_hh = [Q_1; ...; Q_k] gain,   Q_i^T Q_i = I      (k = 4 gates for LSTM, 3 for GRU, 1 for RNN)

    Args:
        module: ``nn.RNN``, ``nn.LSTM``, ``nn.GRU`` or one of their cells, of any number of layers and
            directions.
        gain: 1 keeps the norm of the state from step to step; finite.
        generator: source of the random numbers; None uses the global one.

    When to use it: the default for recurrent weights.

    Values in use: gain 1 (Henaff; Keras, as its default for recurrent weights).

    Cost: a QR decomposition a gate, O(n^3).

    Example:
        >>> lstm = nn.LSTM(2, 4)
        >>> orthogonal_recurrent_(lstm)
        >>> forget = lstm.weight_hh_l0[4:8]
        >>> bool((forget @ forget.T - torch.eye(4)).abs().max() < 1e-6)
        True

    Source: Saxe et al. (2014), https://arxiv.org/abs/1312.6120; Henaff, Szlam & LeCun (2016),
    https://arxiv.org/abs/1602.06662
    """
    gates = num_gates(module)
    check_finite("gain", gain)
    for weight in _hidden_weights(module):
        orthogonal_blocks_(weight, gates, gain, generator)


def identity_recurrent_(module: nn.RNNBase | nn.RNNCellBase, scale: float = 1.0) -> None:
    """Make every hidden-to-hidden matrix the identity, gate by gate. In place.

        W_hh = scale I

    With ReLU and biases at 0 the state is then copied from step to step (IRNN); the paper draws the input
    weights from N(0, 0.001^2) and takes a scale of 0.01 where long memory is unwanted.

    Args:
        module: ``nn.RNN``, ``nn.LSTM``, ``nn.GRU`` or one of their cells.
        scale: factor of the identity, finite.

    With a projection (``proj_size``) the blocks are not square and the identity is cut off.

    When to use it: ReLU RNNs over long sequences.

    Values in use: scale 1 for long sequences, 0.01 for speech (Le).

    Cost: none.

    Example:
        >>> rnn = nn.RNN(2, 3, nonlinearity="relu")
        >>> identity_recurrent_(rnn)
        >>> bool((rnn.weight_hh_l0 == torch.eye(3)).all())
        True

    Source: Le, Jaitly & Hinton (2015), https://arxiv.org/abs/1504.00941
    """
    gates = num_gates(module)
    check_finite("scale", scale)
    for weight in _hidden_weights(module):
        identity_blocks_(weight, gates, scale)


def identity_blocks_(weight: Tensor, num_blocks: int = 1, scale: float = 1.0) -> Tensor:
    """Fill a matrix in place with identity blocks below each other; see ``identity_recurrent_``."""
    if weight.dim() != 2 or num_blocks < 1 or weight.shape[0] % num_blocks:
        raise ValueError(
            f"num_blocks must divide the rows of a matrix, got {num_blocks} for {tuple(weight.shape)}"
        )
    rows, columns = weight.shape[0] // num_blocks, weight.shape[1]
    block = torch.eye(rows, columns, dtype=weight.dtype, device=weight.device) * scale
    with torch.no_grad():
        return weight.copy_(block.repeat(num_blocks, 1))


def forget_bias_(module: nn.RNNBase | nn.LSTMCell, value: float = 1.0) -> None:
    """Open the forget gate of an LSTM: its bias becomes ``value``, the other gates keep theirs. In place.

        b_f = value        (torch adds two biases: the input one gets the value, the hidden one 0)

    Args:
        module: ``nn.LSTM``, ``nn.LSTMCell`` or a layer with their weights (``nn.LayerNormLSTM``), with biases.
        value: finite.

    When to use it: always; with 0 the cell forgets half at each step.

    Values in use: 1 (Jozefowicz) up to about log of the sequence length (Tallec & Ollivier 2018).

    Cost: none.

    Raises TypeError if it is no LSTM, ValueError if it has no biases.

    Example:
        >>> lstm = nn.LSTM(2, 3)
        >>> forget_bias_(lstm)
        >>> (lstm.bias_ih_l0 + lstm.bias_hh_l0)[3:6].tolist()
        [1.0, 1.0, 1.0]

    Source: Gers, Schmidhuber & Cummins (2000); Jozefowicz, Zaremba & Sutskever (2015),
    http://proceedings.mlr.press/v37/jozefowicz15.html
    """
    if not (isinstance(module, nn.LSTMCell) or isinstance(module, nn.RNNBase) and module.mode == "LSTM"):
        raise TypeError(f"module must be nn.LSTM or nn.LSTMCell, got {type(module).__name__}")
    if not module.bias:
        raise ValueError("this LSTM has no biases: build it with bias=True")
    check_finite("value", value)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.startswith("bias"):
                forget = forget_block(parameter)
                forget.fill_(value if name.startswith("bias_ih") else 0.0)


def forget_block(bias: Tensor) -> Tensor:
    """The forget gate's part of an LSTM bias, a view: torch stacks input, forget, cell, output."""
    size = bias.shape[0] // 4
    return bias[size : 2 * size]


def num_gates(module: nn.Module) -> int:
    """Blocks stacked in the weights of a recurrent module of torch, or of one built on ``nn.RNNBase``."""
    if isinstance(module, nn.RNNBase) and module.mode in _GATES:
        return _GATES[module.mode]
    for kind in type(module).__mro__:
        if kind.__name__ in _GATES_OF_CELLS and kind.__module__.startswith("torch."):
            return _GATES_OF_CELLS[kind.__name__]
    raise TypeError(
        f"module must be an RNN, LSTM or GRU of torch.nn or one of their cells, got {type(module).__name__}"
    )


def _hidden_weights(module: nn.Module) -> list[Tensor]:
    return [p for name, p in module.named_parameters() if name.startswith("weight_hh")]
