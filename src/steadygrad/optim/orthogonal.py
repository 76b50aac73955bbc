"""Newton-Schulz: the nearest matrix with orthonormal rows or columns, from matrix products alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

JORDAN = (3.4445, -4.7750, 2.0315)  # Keller Jordan's: steepest at 0, singular values end in about [0.7, 1.2]


@torch.no_grad()
def orthogonalise(
    matrix: Tensor,
    steps: int = 5,
    coefficients: tuple[float, float, float] = JORDAN,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Set the singular values of a matrix to about 1 and keep its singular vectors.

        X = G / ||G||_F        X <- a X + (b A + c A^2) X   with A = X X^T,   ``steps`` times

    It is what `torch.optim.Muon` does, and differs in three things: it takes stacks of matrices; a matrix of any
    scale gives the same result (torch's lets the step shrink below ||G|| = 1e-7 and vanish from 1e19 on); and
    it works in bfloat16 on a GPU only, in float32 or float64 elsewhere.

    Args:
        matrix: (..., rows, columns), real floating point; not changed.
        steps: iterations, 1 or more. 5 in use.
        coefficients: (a, b, c). (1.5, -0.5, 0) with 20 steps or more converges to singular values of exactly 1.
        dtype: in which to compute; None for bfloat16 on a GPU and the matrix's own, at least float32, elsewhere.

    Returns:
        A tensor of the shape of ``matrix``, at least float32. 0 for a matrix of zeros, nan where one has a nan
        or inf. A singular value that is 0, or less than about 1e-3 of the norm, stays below the others.

    Example:
        >>> x = orthogonalise(1e-20 * torch.randn(4, 8), steps=30, coefficients=(1.5, -0.5, 0.0))
        >>> bool((x @ x.T - torch.eye(4)).abs().max() < 1e-4)
        True

    Source: Jordan et al. (2024), https://kellerjordan.github.io/posts/muon/; Bernstein & Newhouse (2024),
    section on Newton-Schulz, https://arxiv.org/abs/2409.20325
    """
    if matrix.ndim < 2 or matrix.is_complex():
        raise ValueError(
            f"matrix must be real with two dimensions or more, got shape {tuple(matrix.shape)} and dtype "
            f"{matrix.dtype}: flatten a convolution weight with .flatten(1)"
        )
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    a, b, c = coefficients
    wide = torch.promote_types(matrix.dtype, torch.float32)
    if matrix.numel() == 0:
        return matrix.to(wide, copy=True)
    x = matrix.to(wide)
    x = x / _or_one(x.abs().amax(dim=(-2, -1), keepdim=True))  # squares neither overflow nor vanish
    x = x / _or_one(torch.linalg.matrix_norm(x, keepdim=True))
    x = x.to(dtype or (torch.bfloat16 if x.is_cuda else wide)).reshape(-1, *matrix.shape[-2:])
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    for _ in range(steps):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)  # one rounding for the sum
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return (x.mT if tall else x).reshape(matrix.shape).to(wide)


def _or_one(size: Tensor) -> Tensor:
    return torch.where(size == 0, 1.0, size)


def orthogonalise_each(
    updates: Sequence[Tensor],
    steps: int = 5,
    coefficients: tuple[float, float, float] = JORDAN,
    blocks: int = 1,
) -> list[Tensor]:
    """`orthogonalise` for weights of any shapes, (out, everything else) as a matrix; equal shapes in one stack.

    Of each weight ``blocks`` matrices that stand one above the other are made orthogonal one by one.
    """
    matrices = [u.reshape(blocks, u.shape[0] // blocks, math.prod(u.shape[1:])) for u in updates]
    alike: dict[torch.Size, list[int]] = {}
    for i, m in enumerate(matrices):
        alike.setdefault(m.shape, []).append(i)
    found: dict[int, Tensor] = {}
    for members in alike.values():
        stack = orthogonalise(torch.cat([matrices[i] for i in members]), steps, coefficients)
        found.update(zip(members, stack.split(blocks), strict=True))
    return [found[i].reshape(u.shape) for i, u in enumerate(updates)]
