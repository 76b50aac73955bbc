"""Batch renormalisation: batch norm for small batches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from steadygrad.nn.norm._statistics import all_finite, batch_statistics, learn_, snapshot, unbiased


def renorm_bounds(
    step: Tensor, r_max: float, d_max: float, warmup_steps: int, r_steps: int, d_steps: int
) -> tuple[Tensor, Tensor]:
    """The bounds on r and d at a step: 1 and 0 up to ``warmup_steps``, then on a line to r_max and d_max.

    Example:
        >>> bounds = renorm_bounds(torch.tensor(22_500), 3.0, 5.0, 5_000, 40_000, 25_000)
        >>> [b.item() for b in bounds]
        [2.0, 4.375]
    """

    def share(end: int) -> Tensor:
        line = ((step - warmup_steps) / max(end - warmup_steps, 1)).clamp(0, 1)
        return torch.where(step >= end, 1.0, line)

    return 1 + (r_max - 1) * share(r_steps), d_max * share(d_steps)


class _BatchRenorm(nn.modules.batchnorm._BatchNorm):
    """What the three have in common; see `BatchRenorm1d`."""

    num_batches_tracked: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.01,
        affine: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        r_max: float = 3.0,
        d_max: float = 5.0,
        warmup_steps: int = 5_000,
        r_steps: int = 40_000,
        d_steps: int = 25_000,
    ) -> None:
        if not 1 <= r_max < float("inf"):
            raise ValueError(f"r_max must be at least 1 (no correction) and finite, got {r_max}")
        if not 0 <= d_max < float("inf"):
            raise ValueError(f"d_max must be at least 0 (no correction) and finite, got {d_max}")
        if not 0 <= warmup_steps <= min(r_steps, d_steps):
            raise ValueError(
                f"warmup_steps must lie between 0 and r_steps = {r_steps} and d_steps = {d_steps}, got {warmup_steps}"
            )
        if momentum is not None and not 0 <= momentum <= 1:
            raise ValueError(f"momentum must be between 0 and 1, or None for the average, got {momentum}")
        super().__init__(num_features, eps, momentum, affine, True, device=device, dtype=dtype)
        self.r_max, self.d_max = r_max, d_max
        self.warmup_steps, self.r_steps, self.d_steps = warmup_steps, r_steps, d_steps

    def forward(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)
        if not self.training:
            mean, var = snapshot(self.running_mean, self.running_var)
            return F.batch_norm(input, mean, var, self.weight, self.bias, eps=self.eps)
        if input.numel() == 0:
            return input.clone()
        dims = [0, *range(2, input.dim())]
        shape = [1, -1, *[1] * (input.dim() - 2)]
        count = input.numel() // input.shape[1]
        mean, var = batch_statistics(input, dims)
        running_mean = self.running_mean.to(mean.dtype).view(shape)
        running_std = (self.running_var.to(mean.dtype).view(shape) + self.eps).sqrt()
        std = (var + self.eps).sqrt()
        r_max, d_max = renorm_bounds(
            self.num_batches_tracked, self.r_max, self.d_max, self.warmup_steps, self.r_steps, self.d_steps
        )
        with torch.no_grad():  # the corrections are constants to the gradient
            r = (std / running_std).clamp(1 / r_max, r_max)
            d = ((mean - running_mean) / running_std).clamp(-d_max, d_max)
            r, d = snapshot(r, d)
        out = (input - mean) / std * r + d
        if self.weight is not None:
            out = out * self.weight.view(shape) + self.bias.view(shape)
        self._learn(mean.detach().flatten(), var.detach().flatten(), count)
        return out.to(input.dtype)

    @torch.no_grad()
    def _learn(self, mean: Tensor, var: Tensor, count: int) -> None:
        learn = all_finite([mean, var])
        momentum = 1 / (self.num_batches_tracked + 1.0) if self.momentum is None else self.momentum
        learn_(self.running_mean, mean, momentum, learn)
        if count > 1:  # a single value has no variance
            learn_(self.running_var, unbiased(var, count), momentum, learn)
        self.num_batches_tracked.add_(learn)

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, "
            f"r_max={self.r_max}, d_max={self.d_max}, warmup_steps={self.warmup_steps}, r_steps={self.r_steps}, "
            f"d_steps={self.d_steps}"
        )


class BatchRenorm1d(_BatchRenorm, nn.BatchNorm1d):
    """Batch norm that works with small batches: training normalises as evaluation will.

        r = clip(s_B / s, 1/r_max, r_max)        d = clip((m_B - m) / s, -d_max, d_max)
        y = ((x - m_B) / s_B * r + d) * weight + bias

    with mean m_B and standard deviation s_B of the batch, the running m and s, and no gradient through r and d.
    Within the bounds this is (x - m) / s, what evaluation computes. The bounds are 1 and 0, plain batch norm,
    for ``warmup_steps``; then they grow on a line to r_max at ``r_steps`` and d_max at ``d_steps``.

    When to use it: batch norm in batches of a few examples, or of examples that are not drawn independently
    (pairs, several crops of an image), where the batch's statistics are noise. With large batches it is batch norm.

    Limits: ``nn.SyncBatchNorm.convert_sync_batchnorm`` takes it for a batch norm and replaces it. With a single
    value per channel, x - m_B is 0: the output is d, and no gradient passes to the input.

    Values in use: r_max 3, d_max 5, reached at 40,000 and 25,000 steps after 5,000 of batch norm, momentum 0.01 (the
    paper, Inception-v3). torch's batch norm has momentum 0.1.

    Cost: that of batch norm and a few operations per channel; not fused.

    Args:
        num_features, eps, affine, device, dtype: as in ``nn.BatchNorm1d``.
        momentum: weight of a new batch in the running statistics, 0 to 1; None for the plain average.
        r_max: largest ratio of the batch's deviation to the running one, >= 1.
        d_max: largest shift, in running deviations, >= 0.
        warmup_steps: training steps of plain batch norm.
        r_steps, d_steps: training steps after which r_max and d_max are reached, >= warmup_steps.

    The state has the names of ``nn.BatchNorm1d``, and either loads the other's; steps are counted in
    ``num_batches_tracked``. The running statistics are a mean and an unbiased variance, as torch's, where the paper
    averages the biased deviation of the batches.

    Empty, zero, inf, nan: an empty batch gives an empty batch and teaches nothing. A constant channel gives d. An inf
    or nan makes its channel nan and leaves the running statistics and the step count bit for bit as they were.

    Example:
        >>> norm = BatchRenorm1d(3, warmup_steps=0, r_steps=0, d_steps=0)
        >>> x = torch.randn(32, 3)
        >>> bool(torch.allclose(norm(x), x, atol=1e-4))  # as the fresh running mean 0 and variance 1 have it
        True

    Source: Ioffe (2017), Algorithm 1, https://arxiv.org/abs/1702.03275
    """

    def _check_input_dim(self, input: Tensor) -> None:
        _check_dims(self, input, (2, 3))


class BatchRenorm2d(_BatchRenorm, nn.BatchNorm2d):
    """`BatchRenorm1d` for images: input (N, C, H, W), statistics over N, H and W.

    When to use it: convolutional nets trained in batches of a few images: detection, segmentation, video.

    Values in use: see `BatchRenorm1d`.

    Cost: see `BatchRenorm1d`.

    Example:
        >>> norm = BatchRenorm2d(3)
        >>> tuple(norm(torch.randn(1, 3, 4, 4)).shape)
        (1, 3, 4, 4)

    Source: Ioffe (2017), Algorithm 1, https://arxiv.org/abs/1702.03275
    """

    def _check_input_dim(self, input: Tensor) -> None:
        _check_dims(self, input, (4,))


class BatchRenorm3d(_BatchRenorm, nn.BatchNorm3d):
    """`BatchRenorm1d` for volumes: input (N, C, D, H, W), statistics over all but C.

    When to use it: volumes and video, whose size leaves room for a few examples a batch.

    Values in use: see `BatchRenorm1d`.

    Cost: see `BatchRenorm1d`.

    Example:
        >>> norm = BatchRenorm3d(3)
        >>> tuple(norm(torch.randn(1, 3, 2, 4, 4)).shape)
        (1, 3, 2, 4, 4)

    Source: Ioffe (2017), Algorithm 1, https://arxiv.org/abs/1702.03275
    """

    def _check_input_dim(self, input: Tensor) -> None:
        _check_dims(self, input, (5,))


def _check_dims(norm: _BatchRenorm, input: Tensor, dims: tuple[int, ...]) -> None:
    if input.dim() not in dims or input.shape[1] != norm.num_features:
        raise ValueError(
            f"{type(norm).__name__}({norm.num_features}) takes {' or '.join(map(str, dims))} dimensions of which the "
            f"second is {norm.num_features}, got shape {tuple(input.shape)}"
        )
