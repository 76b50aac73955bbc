"""Bound the update ratio ||dw|| / ||w|| of every tensor, under any optimizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from steadygrad._check import positive
from steadygrad.clip import ClipStats
from steadygrad.clip._tensors import _local
from steadygrad.clip.stats import clip_stats, nothing_to_clip
from steadygrad.optim._norms import norms, weight_norms
from steadygrad.optim._step import working_dtype


@torch.no_grad()
def clip_update_ratio_(
    params: Sequence[Tensor], before: Sequence[Tensor], max_ratio: float = 0.01, min_rms: float = 1e-3
) -> ClipStats:
    """Take back part of the step of each tensor, in place, where it moved by more than a share of its weights.

        w <- w_0 + (w - w_0) min(1, r max(||w_0||, min_rms sqrt(n)) / ||w - w_0||)

    When to use it: in a loop that keeps its own copy of the weights; `BoundedUpdates` does it for an optimizer.

    Values in use: 1e-3 is the ratio of a healthy step (Karpathy's lecture notes: "somewhere around"); 0.01 stops
    what is ten times that. min_rms 1e-3 is Adafactor's floor.

    Cost: two reads of the weights and of the copy; one read and write of them.

    Args:
        params: weights after the step. Changed in place.
        before: the same weights before it, one for each; not changed.
        max_ratio: r, > 0.
        min_rms: weights are counted as at least this large (RMS), > 0.

    Returns:
        `ClipStats`: ``norm`` is the largest ratio found, ``scale`` the smallest factor, ``limit`` is r, ``clipped`` the
        share of tensors that were shortened.

    Empty, zero, nan: an empty list and a tensor that did not move are left alone; a step within the bound keeps
    every bit. With a nan or inf in any step nothing is changed and ``finite`` is False.

    Example:
        >>> w = torch.tensor([4.0, 4.0])
        >>> stats = clip_update_ratio_([w], [torch.tensor([3.0, 4.0])], max_ratio=0.1)
        >>> w.tolist(), round(stats.norm.item(), 3)
        ([3.5, 4.0], 0.2)

    Source: the ratio: Karpathy (2016), CS231n, "ratio of weights:updates", https://cs231n.github.io/neural-networks-3/;
    the bound: Bernstein et al. (2020), https://arxiv.org/abs/2002.03432, as an upper limit
    """
    max_ratio, min_rms = positive("max_ratio", max_ratio), positive("min_rms", min_rms, finite=True)
    if len(params) != len(before):
        raise ValueError(
            f"before must have one entry for each of the {len(params)} params, got {len(before)}"
        )
    for i, (p, b) in enumerate(zip(params, before, strict=True)):
        if p.shape != b.shape:
            raise ValueError(f"before[{i}] has shape {tuple(b.shape)}, and its parameter {tuple(p.shape)}")
    kept = [(_real(p), _real(b)) for p, b in zip(params, before, strict=True) if p.numel()]
    if not kept:
        return nothing_to_clip(max_ratio)
    old = [b for _, b in kept]
    ratios = norms([p - b for p, b in kept]) / weight_norms(old, min_rms)
    scales = torch.where(ratios.isfinite().all(), (max_ratio / ratios).clamp(max=1.0), 1.0)
    here = [(_local(p), _local(b)) for p, b in kept]
    for (p, b), scale in zip(here, scales.unbind(), strict=True):
        wide = working_dtype(p.dtype)
        p.copy_(
            torch.lerp(b.to(wide), p.to(wide), scale.to(p.device, wide))
        )  # exactly p where the scale is 1
    return clip_stats(ratios.amax(), scales, max_ratio)


def _real(x: Tensor) -> Tensor:
    x = x.detach()
    return torch.view_as_real(x) if x.is_complex() else x


class BoundedUpdates:
    """Let no step of an optimizer move a tensor by more than a share of its weights.

        w <- w_0 + dw min(1, r max(||w_0||, min_rms sqrt(n)) / ||dw||)

    for the step dw that the optimizer took, with its momentum, weight decay and all.

    When to use it: with any optimizer, torch's or others', whose steps are usually right and now and then far too
    long for a layer: after a spike, at the start, for a new layer. To make every step of a layer the same share
    of its weights take `LAMB` or `Fromage`.

    Values in use: max_ratio 0.01, ten times what is healthy. min_rms 1e-3 is Adafactor's floor: a bias that starts
    at 0 can grow by 1e-5 a step under the defaults, so leave vectors out (``vectors=False``) where they must move.

    Cost: a copy of the weights while the step runs, three reads and one write of them.

    Args:
        optimizer: any torch.optim.Optimizer; its hooks are used. The bound is no part of its state_dict.
        max_ratio: r, > 0.
        min_rms: weights are counted as at least this large (RMS), > 0.
        vectors: also bound tensors of fewer than two dimensions.

    It works from its creation until `remove`, or as a context manager. ``stats`` is the `ClipStats` of the last
    step: ``norm`` the largest ratio before the bound. The state of the optimizer (momentum, moments) is not touched.

    Empty, zero, nan: parameters without a gradient are not looked at; with a nan or inf in any step nothing is
    changed and ``stats.finite`` is False. A GradScaler that skips the step skips this too.

    Example:
        >>> w = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
        >>> optimizer = torch.optim.SGD([w], lr=1.0)
        >>> with BoundedUpdates(optimizer, max_ratio=0.01, vectors=True) as bound:
        ...     w.grad = torch.tensor([1e6, 0.0])
        ...     optimizer.step()
        >>> [round(x, 4) for x in w.tolist()], bool(bound.stats.clipped)
        ([2.95, 4.0], True)

    Source: the ratio: Karpathy (2016), CS231n, "ratio of weights:updates", https://cs231n.github.io/neural-networks-3/;
    the bound: Bernstein et al. (2020), https://arxiv.org/abs/2002.03432, as an upper limit
    """

    def __init__(
        self, optimizer: Optimizer, max_ratio: float = 0.01, min_rms: float = 1e-3, vectors: bool = False
    ) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
        self.max_ratio = positive("max_ratio", max_ratio)
        self.min_rms = positive("min_rms", min_rms, finite=True)
        self.vectors = vectors
        self.stats = nothing_to_clip(self.max_ratio)
        self._before: list[tuple[Tensor, Tensor]] = []
        self._handles = [
            optimizer.register_step_pre_hook(self._remember),
            optimizer.register_step_post_hook(self._bound),
        ]

    def _remember(self, optimizer: Optimizer, *_: Any) -> None:
        params = [p for group in optimizer.param_groups for p in group["params"]]
        params = [p for p in params if p.requires_grad and (self.vectors or p.ndim > 1)]
        self._before = [(p, p.detach().clone()) for p in params]

    def _bound(self, optimizer: Optimizer, *_: Any) -> None:
        taken, self._before = self._before, []
        params = [p for p, _ in taken if p.grad is not None]
        before = [b for p, b in taken if p.grad is not None]
        self.stats = clip_update_ratio_(params, before, self.max_ratio, self.min_rms)

    def remove(self) -> None:
        """Leave the optimizer as it was."""
        for handle in self._handles:
            handle.remove()

    def __enter__(self) -> BoundedUpdates:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def __repr__(self) -> str:
        return f"BoundedUpdates(max_ratio={self.max_ratio}, min_rms={self.min_rms}, vectors={self.vectors})"
