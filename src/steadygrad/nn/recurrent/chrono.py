"""Chrono initialisation: gates that start with the memory that the task needs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from steadygrad._check import number
from steadygrad.init.recurrent import num_gates


@torch.no_grad()
def chrono_bias_(
    module: nn.LSTM | nn.GRU | nn.LSTMCell | nn.GRUCell,
    t_max: float,
    generator: torch.Generator | None = None,
) -> None:
    """Start the gates of an LSTM or GRU with memories spread between 1 and ``t_max`` steps. In place.

        b_f ~ log(U(1, t_max - 1)),   b_i = -b_f        (LSTM; in torch's GRU the update gate gets b_f)

    A gate with bias log(T - 1) forgets a 1/T of the state at each step. torch adds two biases: the input one gets
    these values, the hidden one 0; other gates keep theirs.

    When to use it: dependencies whose range is known or can be bounded; ``init.forget_bias_`` opens all forget
    gates alike.

    Values in use: t_max near the length of the longest dependency: 1 to 1.5 times the delay in copying tasks
    (Tallec & Ollivier).

    Cost: none.

    Args:
        module: ``nn.LSTM``, ``nn.GRU`` or one of their cells, with biases.
        t_max: longest dependency in steps, above 2.
        generator: source of the random numbers; None uses the global one.

    Raises TypeError for other modules and ValueError without biases, before anything is changed.

    Empty, zero, nan: what was in the biases plays no part; t_max of inf or nan is refused.

    Example:
        >>> lstm = nn.LSTM(2, 3)
        >>> chrono_bias_(lstm, t_max=100)
        >>> forget = (lstm.bias_ih_l0 + lstm.bias_hh_l0)[3:6]
        >>> bool((forget >= 0).all() and (forget <= 4.6).all())
        True

    Source: Tallec & Ollivier (2018), section 2, https://arxiv.org/abs/1804.11188
    """
    gates = num_gates(module)
    if gates == 1:
        raise TypeError(
            f"module must be an LSTM or GRU of torch, got {type(module).__name__}, which has no gates"
        )
    if not module.bias:
        raise ValueError("this module has no biases: build it with bias=True")
    number("t_max", t_max, 2.0, above=True)
    biases = dict(module.named_parameters(recurse=False))
    for name in [n for n in biases if n.startswith("bias_ih")]:
        size = biases[name].shape[0] // gates
        drawn = torch.rand(size, generator=generator, device=generator.device if generator else None)
        value = (1 + (t_max - 2) * drawn).log()
        # torch stacks input, forget, cell, output of LSTM, and reset, update, new of GRU; forget and update keep
        _set(biases[name], size, 1, value)
        _set(biases[name.replace("_ih", "_hh")], size, 1, torch.zeros_like(value))
        if gates == 4:
            _set(biases[name], size, 0, -value)
            _set(biases[name.replace("_ih", "_hh")], size, 0, torch.zeros_like(value))


def _set(bias: Tensor, size: int, gate: int, value: Tensor) -> None:
    bias[gate * size : (gate + 1) * size].copy_(value)
