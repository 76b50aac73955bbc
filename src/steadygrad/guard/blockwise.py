"""Copying tensors and looking whether they are finite, in one pass over the memory."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from steadygrad._foreach import copy_grouped_, nonfinite

BLOCK = (
    4 << 20
)  # bytes; what was read for the check is still in the cache when it is copied: 0.87 of two passes
_WITH_NORM = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def copy_checked_(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> list[int]:
    """Copy every source into its target, block by block, and look at each block just before it is copied.

    Args:
        targets: changed in place; each of the shape and dtype of its source.
        sources: as many as ``targets``; any dtypes, strided, on the CPU.

    Returns:
        Positions of the sources that hold a NaN or an infinity. They are copied like the others.

    Raises:
        RuntimeError: a pair whose shapes differ. What came before it has been copied then.

    Example:
        >>> kept = [torch.zeros(2), torch.zeros(2)]
        >>> copy_checked_(kept, [torch.ones(2), torch.tensor([1.0, float("inf")])])
        [1]
        >>> kept[1].tolist()
        [1.0, inf]
    """
    groups: dict[torch.dtype, list[int]] = defaultdict(list)
    others: list[int] = []
    for position, source in enumerate(sources):
        (groups[source.dtype] if source.dtype in _WITH_NORM else others).append(position)
    copy_grouped_([targets[i] for i in others], [sources[i] for i in others])
    looked_at = set(others)
    for dtype, positions in groups.items():
        looked_at |= _copy_group_(dtype, positions, targets, sources)
    suspects = sorted(looked_at)
    return [suspects[i] for i in nonfinite([sources[i] for i in suspects])]


def _copy_group_(
    dtype: torch.dtype, positions: list[int], targets: Sequence[Tensor], sources: Sequence[Tensor]
) -> set[int]:
    """Positions of those of one dtype whose norm is not finite: it may have overflowed."""
    accumulate = torch.float64 if dtype == torch.float64 else torch.float32
    copied: list[int] = []
    norms: list[Tensor] = []
    for block in _blocks(positions, targets, sources):
        where, to, of = zip(*block, strict=True)
        norms += torch._foreach_norm(of, 2, dtype=accumulate)
        torch._foreach_copy_(to, of)
        copied += where
    finite = map(math.isfinite, torch.stack(norms).tolist())
    return {position for position, fine in zip(copied, finite, strict=True) if not fine}


def _blocks(
    positions: list[int], targets: Sequence[Tensor], sources: Sequence[Tensor]
) -> Iterator[list[tuple[int, Tensor, Tensor]]]:
    block: list[tuple[int, Tensor, Tensor]] = []
    size = 0
    for position in positions:
        for to, of in _pieces(targets[position], sources[position]):
            block.append((position, to, of))
            size += of.nbytes
            if size >= BLOCK:
                yield block
                block, size = [], 0
    if block:
        yield block


def _pieces(target: Tensor, source: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The pair, cut into views of a block each where it is larger and its memory has no gaps."""
    if source.nbytes <= BLOCK or not (target.is_contiguous() and source.is_contiguous()):
        return [(target, source)]
    size = BLOCK // source.element_size()
    return list(zip(target.view(-1).split(size), source.view(-1).split(size), strict=True))
