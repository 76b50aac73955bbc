"""Synaptic scaling as functions: gains measured in a run to factors on weights, and the nearest orthogonal weight."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from steadygrad import _check

BOUND = 1.4  # of one factor, up and down
TOO_LARGE = 3.0  # rms of a recurrent state


def synaptic_factor(forward: float, backward: float, rate: float = 0.3, bound: float = BOUND) -> float:
    """The factor that brings a layer's gain nearer to 1, from what it does to signal and gradient.

        c = (1 / sqrt(f b))^rate,  within [1 / bound, bound]
        f = rms(output) / rms(input)        b = |dL/d input| / |dL/d output|

    When to use it: in a controller of your own; `Homeostasis` measures and applies it.

    Values in use: rate 0.3; bound 1.4.

    Cost: none.

    Args:
        forward: f, with what follows the layer, such as its activation.
        backward: b.
        rate: share of the way, in logarithms; above 0, at most 1.
        bound: largest factor, above 1.

    Returns the factor; 1, no change, where a gain is 0, inf or nan.

    Example:
        >>> synaptic_factor(4.0, 4.0, rate=0.5, bound=10.0)
        0.5

    Source: scaling all synapses of a neuron by one factor towards a target activity: Turrigiano (2008),
    https://doi.org/10.1016/j.cell.2008.10.008; this rule over both passes is ours.
    """
    _check.fraction("rate", rate, zero=False)
    _check.number("bound", bound, 1.0, above=True)
    gain = forward * backward
    if not 0 < gain < math.inf:  # nan fails too
        return 1.0
    return min(bound, max(1 / bound, gain ** (-rate / 2)))


def recurrent_factor(
    forward: float, backward: float, state_rms: float, rate: float = 0.3, bound: float = BOUND
) -> float:
    """The factor that stops a recurrence from growing: below 1 while state or gradient grow from step to step.

        growth = max(forward, backward)             decades a step
        c = 10^(-growth),  at least 1 / bound       if growth > 0 or rms(state) > 3, else 1

    A state that is too large without growing shrinks by ``bound^-rate``. It never raises the weights: a recurrence
    that forgets is no danger.

    When to use it: in a controller of your own; `Homeostasis` measures and applies it.

    Values in use: bound 1.4, rate 0.3.

    Cost: none.

    Args:
        forward: slope of log10 rms(h_t) over t.
        backward: slope of log10 |dL/dx_t| back over t.
        state_rms: of all h_t.
        rate: share of the bound for a state that is too large, above 0, at most 1.
        bound: largest reduction, above 1.

    Returns a factor of at most 1; an overflow (inf or nan in a reading) gives the strongest, 1 / bound.

    Example:
        >>> recurrent_factor(0.0, 0.1, 0.5, bound=10.0), recurrent_factor(-0.1, -0.2, 0.5)
        (0.7943282347242815, 1.0)

    Source: ours; the growth it looks at: Pascanu, Mikolov & Bengio (2013), https://arxiv.org/abs/1211.5063
    """
    _check.fraction("rate", rate, zero=False)
    _check.number("bound", bound, 1.0, above=True)
    growth = max(forward, backward)
    if not (math.isfinite(forward) and math.isfinite(backward) and math.isfinite(state_rms)):
        return 1 / bound
    if growth > 0:
        return max(1 / bound, 10**-growth)
    return bound**-rate if state_rms > TOO_LARGE else 1.0


@torch.no_grad()
def nearest_orthogonal_(weight: Tensor, num_blocks: int = 1) -> Tensor:
    """Replace a weight in place by the orthogonal matrix nearest to it: its directions stay, its gains become 1.

        W = U S V^T   ->   U V^T            each block of rows for itself

    When to use it: on square weights of a plain deep net or a recurrence whose gain is wrong, before training or
    early in it. Unlike a fresh orthogonal matrix it keeps what of the weight it can.

    Values in use: none to choose.

    Cost: a singular value decomposition a block, O(n^3), in float64.

    Args:
        weight: (rows, ...) of a floating dtype; all but the first dimension are taken as columns. A block that is
            not square gets orthonormal rows or columns.
        num_blocks: 4 for LSTM, 3 for GRU; divides the rows.

    Returns the weight. One without entries is returned as it is; inf or nan in it raises ValueError and changes
    nothing.

    Example:
        >>> w = nearest_orthogonal_(torch.tensor([[3.0, 0.0], [0.0, 0.5]]))
        >>> (w - torch.eye(2)).abs().max().item() < 1e-6
        True

    Source: the unitary polar factor: Higham (1986), https://doi.org/10.1137/0907079
    """
    if weight.dim() < 2:
        raise ValueError(f"weight must have two dimensions or more, got shape {tuple(weight.shape)}")
    if _check.count("num_blocks", num_blocks) and weight.shape[0] % num_blocks:
        raise ValueError(f"num_blocks must divide the {weight.shape[0]} rows of the weight, got {num_blocks}")
    if weight.numel() == 0:
        return weight
    if not weight.isfinite().all():  # host sync
        raise ValueError(
            "weight has inf or nan entries, which no orthogonal matrix is near: initialise it anew"
        )
    blocks = weight.double().flatten(1).unflatten(0, (num_blocks, -1))
    left, _, right = torch.linalg.svd(blocks, full_matrices=False)
    return weight.copy_((left @ right).reshape(weight.shape))
