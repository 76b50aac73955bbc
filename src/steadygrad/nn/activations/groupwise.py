"""Activations that compare the features of a group: MaxMin and GroupSort permute them, Maxout takes the largest."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from steadygrad.nn.activations._check import at_least_two, dimension, groups_of


def max_min(x: Tensor, dim: int = -1) -> Tensor:
    """Put the larger of each two neighbours along ``dim`` first; see ``MaxMin``."""
    count = groups_of(x, 2, dim)
    first, second = x.unflatten(dim, (count, 2)).unbind(dim if dim < 0 else dim + 1)
    swap = first < second  # false for equal ones and for nan: always a permutation, so norms are kept exactly
    larger, smaller = torch.where(swap, second, first), torch.where(swap, first, second)
    return torch.stack((larger, smaller), dim if dim < 0 else dim + 1).flatten(*_pair(dim))


def group_sort(x: Tensor, size: int, *, dim: int = -1) -> Tensor:
    """Sort each group of ``size`` neighbours along ``dim``, largest first; see ``GroupSort``."""
    count = groups_of(x, at_least_two(size), dim)
    inner = dim if dim < 0 else dim + 1
    groups = x.unflatten(dim, (count, size))
    return groups.sort(dim=inner, descending=True, stable=True).values.flatten(*_pair(dim))


def maxout(x: Tensor, size: int, *, dim: int = -1) -> Tensor:
    """The largest of each ``size`` neighbours along ``dim``; see ``Maxout``."""
    count = groups_of(x, at_least_two(size), dim)
    return x.unflatten(dim, (count, size)).max(dim if dim < 0 else dim + 1).values


def _pair(dim: int) -> tuple[int, int]:
    """The two dimensions that ``dim`` became by unflattening."""
    return (dim - 1, dim) if dim < 0 else (dim, dim + 1)


class MaxMin(nn.Module):
    """Sort features in pairs: a nonlinearity that keeps the norm of signal and gradient exactly.

        f(a, b) = (max(a, b), min(a, b)),        ||f(x)|| = ||x||,        J^T J = I

    When to use it: with orthogonal weights, where every layer shall keep the norm of the gradient (a net of
    any depth neither explodes nor vanishes), or where the net shall be 1-Lipschitz: such nets with MaxMin can
    come near to any 1-Lipschitz function, those with ReLU cannot.

    Values in use: none to set; gain 1 for the weights before and after it.

    Cost: a comparison, two selections and a copy.

    Args:
        dim: dimension of the features: -1 for (B, D), 1 for the channels of images. Neighbours are paired.

    Takes a tensor whose dimension ``dim`` is even; returns the same shape.

    Empty, zero, nan: an empty tensor stays empty; equal features stay where they are, each with its
    gradient; inf is sorted as any number; a pair with a nan is left as it is.

    Example:
        >>> MaxMin()(torch.tensor([1.0, 5.0, 4.0, 2.0]))
        tensor([5., 1., 4., 2.])

    Source: Anil, Lucas & Grosse (2019), section 4.1 (GroupSort; MaxMin is group size 2),
    https://arxiv.org/abs/1811.05381
    """

    def __init__(self, dim: int = -1) -> None:
        super().__init__()
        self.dim = dimension(dim)

    def forward(self, x: Tensor) -> Tensor:
        return max_min(x, self.dim)

    def extra_repr(self) -> str:
        return f"dim={self.dim}"


class GroupSort(nn.Module):
    """Sort features in groups: MaxMin for groups of more than two.

        f(x_1, .., x_k) = (x_(1) >= .. >= x_(k)),        ||f(x)|| = ||x||,        J^T J = I

    When to use it: as ``MaxMin``, which is faster for groups of two. Larger groups bend the function more per
    layer; the paper finds the same functions reachable with 2.

    Values in use: group size 2 (there is MaxMin), 4 to 8, or the whole width (FullSort, Anil et al.).

    Cost: a sort of each group; its backward pass is a scatter.

    Args:
        group_size: features in a group, at least 2.
        dim: dimension of the features, as in ``MaxMin``. By name only.

    Takes a tensor whose dimension ``dim`` is a multiple of ``group_size``; returns the same shape.

    Empty, zero, nan: an empty tensor stays empty; equal features keep their order; inf is sorted as any
    number; a nan comes first in its group.

    Example:
        >>> GroupSort(3)(torch.tensor([1.0, 5.0, 2.0, 0.0, -1.0, 7.0]))
        tensor([ 5.,  2.,  1.,  7.,  0., -1.])

    Source: Anil, Lucas & Grosse (2019), section 4.1, https://arxiv.org/abs/1811.05381
    """

    def __init__(self, group_size: int, *, dim: int = -1) -> None:
        super().__init__()
        self.group_size, self.dim = at_least_two(group_size), dimension(dim)

    def forward(self, x: Tensor) -> Tensor:
        return group_sort(x, self.group_size, dim=self.dim)

    def extra_repr(self) -> str:
        return f"group_size={self.group_size}, dim={self.dim}"


class Maxout(nn.Module):
    """Take the largest of each group of features.

        f(x_1, .., x_k) = max_i x_i

    When to use it: where a unit shall learn its own convex activation from k linear pieces. Its slope is 1
    everywhere, so that at gain 1 the gradient neither grows nor shrinks; for groups of two the signal keeps
    its mean square too.

    Values in use: groups of 2 in convolutions and of 5 in dense layers (MNIST and CIFAR-10), with dropout
    (Goodfellow et al.).

    Cost: k times the weights before it, for one feature.

    Args:
        group_size: features in a group, at least 2.
        dim: dimension of the features, as in ``MaxMin``. By name only.

    Takes a tensor whose dimension ``dim`` is a multiple of ``group_size``; returns it shorter by that factor.

    Empty, zero, nan: an empty tensor stays empty; of equal features one gets the gradient; a nan makes its
    group nan; inf is the largest, -inf the smallest number.

    Example:
        >>> Maxout(2)(torch.tensor([1.0, 5.0, 4.0, 2.0]))
        tensor([5., 4.])

    Source: Goodfellow et al. (2013), section 3, https://arxiv.org/abs/1302.4389
    """

    def __init__(self, group_size: int, *, dim: int = -1) -> None:
        super().__init__()
        self.group_size, self.dim = at_least_two(group_size), dimension(dim)

    def forward(self, x: Tensor) -> Tensor:
        return maxout(x, self.group_size, dim=self.dim)

    def extra_repr(self) -> str:
        return f"group_size={self.group_size}, dim={self.dim}"
