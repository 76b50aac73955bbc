"""The parameters that a norm adds to a recurrent cell, beside torch's own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def suffixes(layer: nn.RNNBase) -> list[str]:
    """``_l0``, ``_l0_reverse``, ``_l1``, ... of a layer's parameters."""
    ends = ("", "_reverse") if layer.bidirectional else ("",)
    return [f"_l{i}{end}" for i in range(layer.num_layers) for end in ends]


def add_norms(
    module: nn.Module, gates: int, cell: int, bias: bool, suffix: str, device: Any, dtype: Any
) -> None:
    """The gains of the norms, and the bias of the cell's; ``cell`` is 0 for a GRU, which has none."""

    def parameter(size: int) -> nn.Parameter:
        return nn.Parameter(torch.empty(size, device=device, dtype=dtype))

    module.register_parameter(f"norm_weight_ih{suffix}", parameter(gates))
    module.register_parameter(f"norm_weight_hh{suffix}", parameter(gates))
    if cell:
        module.register_parameter(f"norm_weight_c{suffix}", parameter(cell))
        module.register_parameter(f"norm_bias_c{suffix}", parameter(cell) if bias else None)


def reset_norms(module: nn.Module, gain: float = 1.0) -> None:
    """Gains to ``gain``, all biases to 0: they are the biases of norms."""
    with torch.no_grad():
        for name, parameter in module.named_parameters(recurse=False):
            if name.startswith("norm_weight"):
                parameter.fill_(gain)
            elif name.startswith(("bias", "norm_bias")):
                parameter.zero_()


def check_cell_input(input: Tensor, input_size: int) -> None:
    if input.dim() not in (1, 2) or input.shape[-1] != input_size:
        raise ValueError(f"input must be (B, {input_size}) or ({input_size},), got {tuple(input.shape)}")


def checked_eps(eps: float) -> float:
    if not 0 < eps < float("inf"):
        raise ValueError(f"eps must be positive and finite, got {eps}")
    return eps


def check_wide_enough(hidden_size: int) -> None:
    if hidden_size < 2:
        raise ValueError(
            f"hidden_size must be at least 2, got {hidden_size}: the layer norm of a single number is always 0"
        )
