"""Losses without negatives: one view predicts the embedding of the other, which gets no gradient."""

from __future__ import annotations

from torch import Tensor

from steadygrad.probe.embeddings import show, unit
from steadygrad.selfsup._views import views


def simsiam(p1: Tensor, p2: Tensor, z1: Tensor, z2: Tensor) -> Tensor:
    """SimSiam: the predictor's output of each view points where the other view's embedding does, at a standstill.

        -( cos(p1, stopgrad(z2)) + cos(p2, stopgrad(z1)) ) / 2

    When to use it: small batches, and no memory for a second net. The stop-gradient, which is taken here, and the
    predictor keep it from collapse: leave out either and every embedding becomes the same (rule E101).

    Values in use: a projector of 2 to 3 layers with a norm after the last, a predictor of 2 with a bottleneck of a
    quarter of D (`mlp_head`); SGD with a cosine rate; no decay of the predictor's rate.

    Cost: one read of each.

    Args:
        p1: (N, D) predictor's output for the first views; any float dtype, computed in float32 at least.
        p2: (N, D) for the second views.
        z1: (N, D) projector's output for the first views; detached here.
        z2: (N, D) for the second views.

    Returns:
        A 0-D tensor in [-1, 1]. nan if an entry is nan or inf. A zero embedding has cosine 0, and no gradient.

    Raises:
        ValueError: a prediction and its target are not (N, D) of one shape.

    Example:
        >>> import torch
        >>> simsiam(torch.eye(2), torch.eye(2), torch.eye(2), torch.eye(2)).item()
        -1.0

    Source: Chen & He (2021), Eq. 3 and 4, https://arxiv.org/abs/2011.10566
    """
    a, b = views(p1, z2, ("p1", "z2"))
    c, d = views(p2, z1, ("p2", "z1"))
    show(z1, z2)
    return -(_cosine(a, b.detach()) + _cosine(c, d.detach())) / 2


def byol(p1: Tensor, p2: Tensor, target1: Tensor, target2: Tensor) -> Tensor:
    """BYOL: the predictor's output of each view points where the teacher's embedding of the other view does.

        ( 2 - 2 cos(p1, stopgrad(target2)) ) + ( 2 - 2 cos(p2, stopgrad(target1)) )

    When to use it: as `simsiam`, with an `EMATeacher` for the targets: steadier, at the memory of a second net.

    Values in use: teacher's momentum 0.996, rising to 1 (`ema_momentum`); 0.99 for runs of some thousand steps.
    Without the predictor every embedding becomes the same (rule E101).

    Cost: one read of each; the teacher's forward passes.

    Args:
        p1: (N, D) predictor's output for the first views; any float dtype, computed in float32 at least.
        p2: (N, D) for the second views.
        target1: (N, D) teacher's embeddings of the first views; detached here.
        target2: (N, D) of the second views.

    Returns:
        A 0-D tensor in [0, 8]. nan if an entry is nan or inf. A zero embedding has cosine 0, and no gradient.

    Raises:
        ValueError: a prediction and its target are not (N, D) of one shape.

    Example:
        >>> import torch
        >>> byol(torch.eye(2), torch.eye(2), torch.eye(2), torch.eye(2)).item()
        0.0

    Source: Grill et al. (2020), Eq. 2 and both orders of the views, https://arxiv.org/abs/2006.07733
    """
    a, b = views(p1, target2, ("p1", "target2"))
    c, d = views(p2, target1, ("p2", "target1"))
    show(target1, target2)
    return 4 - 2 * (_cosine(a, b.detach()) + _cosine(c, d.detach()))


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    """Mean over rows."""
    return (unit(a) * unit(b)).sum(1).mean()
