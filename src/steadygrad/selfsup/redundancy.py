"""Losses without negatives and without a teacher: the dimensions must vary, and not say the same."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from steadygrad._check import number, positive
from steadygrad.probe.embeddings import show
from steadygrad.selfsup._views import views

EPS = 1e-4  # under VICReg's root, as in the paper
NORM_EPS = 1e-5  # torch's batch norm, which Barlow Twins' authors use


def vicreg(
    z1: Tensor, z2: Tensor, invariance: float = 25.0, variance: float = 25.0, covariance: float = 1.0
) -> Tensor:
    """Variance, invariance, covariance: views agree, every dimension varies, no two dimensions say the same.

        invariance * mean (z1 - z2)^2  +  variance * (v(z1) + v(z2)) / 2  +  covariance * (c(z1) + c(z2))

    with v from `variance_term` and c from `covariance_term`.

    When to use it: small batches, two encoders that share nothing, or embeddings that may not be normalised.

    Values in use: 25, 25, 1. Without the variance term every embedding becomes the same (rule E101), without the
    covariance term they fall into few directions. A wide projector of 3 layers (8192 in the paper).

    Cost: N D^2.

    Args:
        z1: (N, D) first views, N at least 2; any float dtype, computed in float32 at least.
        z2: (N, D) second views of the same samples.
        invariance: weight >= 0.
        variance: weight >= 0.
        covariance: weight >= 0.

    Returns:
        A 0-D tensor, at least 0. nan if an entry is nan or inf. Zero embeddings are as any that are all alike.

    Raises:
        ValueError: not two (N, D) of one shape, one sample only, a weight below 0 or not finite.

    Example:
        >>> z = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
        >>> vicreg(z, z).item()  # agrees, varies, and its dimensions are independent
        0.0

    Source: Bardes, Ponce & LeCun (2022), Eq. 1 to 6 with means and halves as in their code,
        https://arxiv.org/abs/2105.04906
    """
    invariance = number("invariance", invariance, 0.0)
    variance = number("variance", variance, 0.0)
    covariance = number("covariance", covariance, 0.0)
    a, b = views(z1, z2, least=2)
    show(z1, z2)
    return (
        invariance * F.mse_loss(a, b)
        + variance * (variance_term(a) + variance_term(b)) / 2
        + covariance * (covariance_term(a) + covariance_term(b))
    )


def variance_term(z: Tensor, target: float = 1.0) -> Tensor:
    """How much is missing until every dimension has the standard deviation ``target`` over the batch.

        mean_j max(0, target - sqrt(Var(z_j) + 1e-4))

    When to use it: added to any loss whose embeddings collapse to one vector (rule E101).

    Values in use: weight 25 beside VICReg's other terms; from 1 beside a cosine loss, on embeddings at unit length
    times sqrt(D).

    Cost: two reads of the embeddings.

    Args:
        z: (N, D), N at least 2; any float dtype.
        target: > 0.

    Returns:
        A 0-D tensor in [0, target]. nan if an entry is nan, or inf.

    Raises:
        ValueError: not (N, D), one sample only, or a target that is not positive and finite.

    Example:
        >>> round(variance_term(torch.zeros(4, 2)).item(), 2)
        0.99

    Source: Bardes, Ponce & LeCun (2022), Eq. 1 and 2, https://arxiv.org/abs/2105.04906
    """
    target = positive("target", target, finite=True)
    z, _ = views(z, z, ("z", "z"), least=2)
    return F.relu(target - (z.var(0) + EPS).sqrt()).mean()


def covariance_term(z: Tensor) -> Tensor:
    """How much the dimensions say the same: squared covariances off the diagonal, over D.

        sum_{i != j} Cov(z)_ij^2 / D

    When to use it: added to any loss whose embeddings fall into few directions (rule E102).

    Values in use: weight 1 beside VICReg's other terms.

    Cost: N D^2.

    Args:
        z: (N, D), N at least 2; any float dtype.

    Returns:
        A 0-D tensor, at least 0; exactly 0 for one dimension. nan if an entry is nan or inf.

    Raises:
        ValueError: not (N, D), or one sample only.

    Example:
        >>> covariance_term(torch.tensor([[1.0, 1.0], [-1.0, -1.0]])).item()
        4.0

    Source: Bardes, Ponce & LeCun (2022), Eq. 3 and 4, https://arxiv.org/abs/2105.04906
    """
    z, _ = views(z, z, ("z", "z"), least=2)
    centred = z - z.mean(0)
    return _off_diagonal(centred.T @ centred / (len(z) - 1)) / z.shape[1]


def barlow_twins(z1: Tensor, z2: Tensor, off_diagonal: float = 5e-3) -> Tensor:
    """The correlation of the dimensions of one view with those of the other is the identity.

        sum_i (1 - C_ii)^2  +  off_diagonal * sum_{i != j} C_ij^2        C = corr(z1, z2), (D, D)

    When to use it: as `vicreg`; one weight to set, and the scale of the embeddings plays no part.

    Values in use: 0.005 at D = 8192, about 1 / D and more for small D. With 0 the dimensions may all say the same,
    and they come to (rule E102). A wide projector of 3 layers.

    Cost: N D^2.

    Args:
        z1: (N, D) first views, N at least 2; any float dtype, computed in float32 at least.
        z2: (N, D) second views of the same samples.
        off_diagonal: the paper's lambda, >= 0.

    Returns:
        A 0-D tensor, at least 0. nan if an entry is nan or inf. A dimension that does not vary adds 1.

    Raises:
        ValueError: not two (N, D) of one shape, one sample only, a weight below 0 or not finite.

    Example:
        >>> z = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
        >>> round(barlow_twins(z, z).item(), 4)
        0.0

    Source: Zbontar et al. (2021), Eq. 1 and 2, https://arxiv.org/abs/2103.03230
    """
    off_diagonal = number("off_diagonal", off_diagonal, 0.0)
    a, b = views(z1, z2, least=2)
    show(z1, z2)
    c = _standard(a).T @ _standard(b) / len(a)
    return (1 - c.diagonal()).square().sum() + off_diagonal * _off_diagonal(c)


def _standard(z: Tensor) -> Tensor:
    """Each dimension at mean 0 and variance 1 over the batch; one that does not vary at 0."""
    return (z - z.mean(0)) * (z.var(0, unbiased=False) + NORM_EPS).rsqrt()


def _off_diagonal(matrix: Tensor) -> Tensor:
    """Sum of squares off the diagonal."""
    itself = torch.eye(len(matrix), dtype=torch.bool, device=matrix.device)
    return matrix.masked_fill(itself, 0.0).square().sum()
