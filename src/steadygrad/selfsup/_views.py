"""What the losses have in common: two views of a batch as matrices, checked."""

from __future__ import annotations

from torch import Tensor

from steadygrad.probe.embeddings import embeddings_dtype


def views(
    first: Tensor, second: Tensor, names: tuple[str, str] = ("z1", "z2"), least: int = 1
) -> tuple[Tensor, Tensor]:
    """Both in float32 at least.

    Raises:
        ValueError: they are not (N, D) of one shape, or have fewer samples than the loss needs.
    """
    for name, z in zip(names, (first, second), strict=True):
        if z.dim() != 2 or not z.shape[1]:
            raise ValueError(f"{name} must be (N, D), got {tuple(z.shape)}: flatten or pool it first")
        if not z.is_floating_point():
            raise ValueError(f"{name} must have a float dtype, got {z.dtype}")
    if first.shape != second.shape:
        raise ValueError(
            f"{names[0]} and {names[1]} must have one shape, got {tuple(first.shape)} and {tuple(second.shape)}"
        )
    if len(first) < least:
        raise ValueError(
            f"this loss compares samples of a batch: it needs at least {least}, got {len(first)}; "
            "give the DataLoader drop_last=True"
        )
    return first.to(embeddings_dtype(first)), second.to(embeddings_dtype(second))
