"""A weight seen as a matrix: one row for each output of its layer."""

from __future__ import annotations

from torch import Tensor, nn

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def weight_of(module: nn.Module, name: str) -> Tensor:
    """The weight of a module, checked: a float tensor of two dimensions or more."""
    weight = getattr(module, name, None)
    if not isinstance(weight, Tensor):
        raise ValueError(
            f"{type(module).__name__} has no tensor {name!r}: give its name as name=, and of a model take each "
            "layer by itself"
        )
    if weight.dim() < 2 or not weight.is_floating_point():
        raise ValueError(
            f"{name} must be a float tensor of two dimensions or more, got {weight.dtype} of shape "
            f"{tuple(weight.shape)}"
        )
    return weight


def output_dim(module: nn.Module) -> int:
    """The dimension of the weight that counts the outputs: 0, and 1 of a transposed convolution."""
    return 1 if isinstance(module, TRANSPOSED) else 0


def checked_dim(dim: int, weight: Tensor) -> int:
    if not -weight.dim() <= dim < weight.dim():
        raise ValueError(f"dim must lie within the {weight.dim()} dimensions of the weight, got {dim}")
    return dim % weight.dim()
