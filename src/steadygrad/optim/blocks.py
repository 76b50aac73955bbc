"""What stands in one parameter: gates of a recurrent layer, projections of attention, groups of a convolution."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

CONVOLUTIONS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)


def parameter_blocks(model: nn.Module, stacked: Mapping[str, int] | None = None) -> dict[str, int]:
    """Say of every trained weight how many matrices stand in it, one above the other along its first dimension.

    4 in the weights of an LSTM and 3 in those of a GRU (any module with a ``hidden_size`` and weights called
    ``weight_ih...`` or ``weight_hh...``), 3 in ``in_proj_weight`` of nn.MultiheadAttention, as many as it has groups
    in a grouped convolution. 1 in all others.

    Args:
        model: any module.
        stacked: number by name of a module or parameter, for what cannot be seen: 3 for a Linear that makes queries,
            keys and values at once. Of a module it counts for its weights, not for its biases.

    Returns:
        Number by name, in the order of ``model.named_parameters()``, without parameters of fewer than two dimensions
        and those without ``requires_grad``.

    Raises:
        ValueError: a name that no module or parameter has; a number that does not divide the rows of its weight.

    Example:
        >>> model = nn.ModuleDict({"lstm": nn.LSTM(3, 5), "depthwise": nn.Conv1d(4, 4, 3, groups=4)})
        >>> parameter_blocks(model)
        {'lstm.weight_ih_l0': 4, 'lstm.weight_hh_l0': 4, 'depthwise.weight': 4}
    """
    given = dict(stacked or {})
    found: dict[str, int] = {}
    for prefix, module in model.named_modules():
        for name, p in module.named_parameters(prefix, recurse=False):
            if p.ndim < 2 or not p.requires_grad:
                continue
            own = name.removeprefix(f"{prefix}.")
            found[name] = given.get(name, given.get(prefix, _blocks_of(module, own, p)))
            if found[name] < 1 or p.shape[0] % found[name]:
                raise ValueError(
                    f"stacked says that {name} holds {found[name]} matrices, and it has {p.shape[0]} rows"
                )
    modules = dict(model.named_modules())
    for name in given:
        if name not in modules and name not in found:
            raise ValueError(f'stacked names "{name}", and the model has no such module or weight')
    order = [name for name, _ in model.named_parameters()]
    return {name: found[name] for name in order if name in found}


def _blocks_of(module: nn.Module, name: str, weight: Tensor) -> int:
    if isinstance(module, CONVOLUTIONS) and name == "weight":
        return module.groups
    if isinstance(module, nn.MultiheadAttention) and name == "in_proj_weight":
        return 3
    size = getattr(module, "hidden_size", None)
    if isinstance(size, int) and name.startswith(("weight_ih", "weight_hh")) and weight.shape[0] % size == 0:
        return weight.shape[0] // size
    return 1


def block_norms(x: Tensor, blocks: int) -> Tensor:
    """The L2 norm of each block of a tensor."""
    return torch.linalg.vector_norm(x.reshape(blocks, -1), dim=1)
