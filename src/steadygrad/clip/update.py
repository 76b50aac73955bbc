"""Update clipping (StableAdamW): a shorter update for a tensor whose gradient outran its second moment."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam, AdamW, Optimizer

from steadygrad._check import positive
from steadygrad.clip._tensors import checked, match, refuse_sparse, scale_each_
from steadygrad.clip.stats import ClipStats, clip_stats, nothing_to_clip


@torch.no_grad()
def update_rms(grad: Tensor, second_moment: Tensor, eps: float = 1e-8) -> Tensor:
    """How far a gradient has outrun Adam's second moment: 1 is healthy, far above 1 says that V is stale.

        RMS_t = sqrt(mean(g_t^2 / max(u_t, eps^2)))

    Args:
        grad: g_t.
        second_moment: u_t, with bias correction, g_t already in it.
        eps: Adam's epsilon, > 0.

    Returns:
        A 0-D tensor of at least float32; nan or inf where the gradient is.

    Example:
        >>> update_rms(torch.tensor([3.0, 3.0]), torch.tensor([1.0, 1.0])).item()
        3.0

    Source: Wortsman et al. (2023), Algorithm 2, https://arxiv.org/abs/2304.13013
    """
    dtype = torch.promote_types(grad.dtype, torch.float32)
    return (grad.to(dtype).square() / second_moment.to(dtype).clamp(min=_floor(eps))).mean().sqrt()


def _floor(eps: float) -> float:
    """eps^2, and not 0: an entry that never had a gradient is 0 / 0 otherwise."""
    return max(eps**2, torch.finfo(torch.float32).tiny)


@torch.no_grad()
def clip_update_(
    updates: Sequence[Tensor | None],
    grads: Sequence[Tensor | None],
    second_moments: Sequence[Tensor | None],
    max_rms: float = 1.0,
    eps: float = 1e-8,
) -> ClipStats:
    """Shorten each update in place by how far its gradient has outrun the second moment.

        U_i <- U_i / max(1, RMS_t / d)        RMS_t = sqrt(mean(g_t^2 / max(u_t, eps^2)))

    When to use it: in an optimizer of your own. With torch's Adam and AdamW take `clipped_updates`; to
    bound the RMS of the update itself, as Adafactor does, `clip_by_block_rms_` on the updates.

    Values in use: d = 1 (Adafactor, StableAdamW).

    Cost: two reads of the gradients, one of the second moments, one read and write of the updates.

    Args:
        updates: the steps about to be taken, weight decay included. Changed in place.
        grads: the gradients behind them, not changed.
        second_moments: u_t with bias correction, g_t already in it.
        max_rms: d, > 0.
        eps: Adam's epsilon, > 0.

    Returns:
        ``norm`` is the largest RMS_t, ``scale`` the smallest factor, ``limit`` is d, ``clipped`` the share
        of tensors.

    Empty, zero, nan: an empty list and a zero gradient are left alone. With a nan or inf in any RMS_t
    nothing is changed and ``finite`` is False.

    Raises:
        TypeError: a sparse gradient.

    Example:
        >>> update = torch.tensor([1.0, 1.0])
        >>> stats = clip_update_([update], [torch.tensor([4.0, 4.0])], [torch.tensor([1.0, 1.0])])
        >>> update.tolist(), stats.norm.item()
        ([0.25, 0.25], 4.0)

    Source: Wortsman et al. (2023), Algorithm 2, https://arxiv.org/abs/2304.13013
    """
    max_rms, eps = positive("max_rms", max_rms), positive("eps", eps)
    match(updates, grads, "grads")
    match(updates, second_moments, "second_moments")
    refuse_sparse([*updates, *grads], "clip_update_", "needs a second moment for each entry")
    values = checked(updates)
    if not values:
        return nothing_to_clip(max_rms)
    rms = []
    for i in values:
        g, u = grads[i], second_moments[i]
        if g is None or u is None:
            raise ValueError(
                f"updates[{i}] has no gradient or no second moment: pass None for its update too"
            )
        rms.append(update_rms(g, u, eps))
    found = _stack(rms)
    scales = _scales(found, max_rms)
    scale_each_(values, scales)
    return clip_stats(found.amax(), scales, max_rms)


@contextmanager
def clipped_updates(optimizer: Optimizer, max_rms: float = 1.0) -> Iterator[ClipStats]:
    """Make the step taken inside by Adam or AdamW a StableAdamW step: shorter for a tensor that outran V.

        lr_i = lr / max(1, RMS_t / d)        for each tensor i

    The optimizer is as before afterwards: its learning rates and groups are put back, whatever happens
    inside.

    When to use it: Adam or AdamW whose loss spikes although the gradient norm is clipped: the early layers'
    gradient rose faster than V could follow (a high beta2, low precision). It takes the place of gradient
    clipping.

    Values in use: d = 1 (the paper, CLIP ViT-Huge); pytorch_optimizer's StableAdamW has beta2 0.99.

    Cost: one read of the gradients and one of V, two temporaries of the size of the largest tensor, one read by
    the host; four times the global norm on one CPU core. Tensors that are not clipped keep the optimizer's
    grouped step.

    Args:
        optimizer: torch's Adam or AdamW. Unscale the gradients before (GradScaler).
        max_rms: d, > 0.

    Yields:
        `ClipStats`: ``norm`` is the largest RMS_t, ``scale`` the smallest factor on a learning rate.

    Empty, zero, nan: without gradients nothing happens. With a nan or inf in any gradient no learning rate
    is changed and ``finite`` is False: look at it and do not step.

    Raises:
        TypeError: another optimizer, a sparse gradient.

    Example:
        >>> w = torch.nn.Parameter(torch.zeros(2))
        >>> opt = torch.optim.AdamW([w], lr=0.1)
        >>> for size in (1e-3, 1.0):
        ...     w.grad = torch.full((2,), size)
        ...     with clipped_updates(opt) as stats:
        ...         opt.step()
        >>> round(stats.norm.item(), 2), opt.param_groups[0]["lr"]
        (1.41, 0.1)

    Source: Wortsman et al. (2023), Algorithm 2 (StableAdamW), https://arxiv.org/abs/2304.13013
    """
    max_rms = positive("max_rms", max_rms)
    if not isinstance(optimizer, (Adam, AdamW)):
        raise TypeError(
            f"clipped_updates knows Adam and AdamW, got {type(optimizer).__name__}: "
            "call clip_update_ in the optimizer's own step"
        )
    members = [(g, p) for g in optimizer.param_groups for p in g["params"] if p.grad is not None]
    refuse_sparse([p.grad for _, p in members], "clipped_updates", "needs a second moment for each entry")
    members = [members[i] for i in checked([p.grad for _, p in members])]
    if not members:
        yield nothing_to_clip(max_rms)
        return
    rms = _stack([_next_rms(optimizer, group, p) for group, p in members])
    scales = _scales(rms, max_rms)
    factors = {p: f for (_, p), f in zip(members, scales.tolist(), strict=True) if f != 1}  # host sync
    groups = optimizer.param_groups
    try:
        optimizer.param_groups = [part for group in groups for part in _split(group, factors)]
        yield clip_stats(rms.amax(), scales, max_rms)
    finally:
        optimizer.param_groups = groups


def _stack(rms: list[Tensor]) -> Tensor:
    return torch.stack([r.to(rms[0]) for r in rms])


def _scales(rms: Tensor, max_rms: float) -> Tensor:
    return torch.where(rms.isfinite().all(), (max_rms / rms).clamp(max=1.0), 1.0)


@torch.no_grad()
def _next_rms(optimizer: Optimizer, group: dict[str, Any], param: Tensor) -> Tensor:
    """RMS_t with the second moment that the coming step will have."""
    grad = param.grad
    assert grad is not None
    if group["weight_decay"] and not _decoupled(optimizer, group):
        grad = grad.add(param, alpha=group["weight_decay"])  # Adam's L2 term is part of its gradient
    state, beta2 = optimizer.state.get(param, {}), group["betas"][1]
    g2 = grad.to(torch.promote_types(grad.dtype, torch.float32)).square()
    if not state:
        return (g2 / g2.clamp(min=_floor(group["eps"]))).mean().sqrt()  # v_1 = g^2, bias correction included
    v = torch.lerp(state["exp_avg_sq"].to(g2.dtype), g2, 1 - beta2)
    step = state["step"]
    if step.device.type == "cpu":
        step = step.double()  # 1 - beta2^t is off by 3e-5 in float32 at the start
    correction = (1 - beta2 ** (step + 1)).to(g2)
    # g^2 / max(v / correction, eps^2) in place: the temporaries are as large as the tensor
    return (g2.div_(v.clamp_(min=correction * _floor(group["eps"]))).mean() * correction).sqrt()


def _decoupled(optimizer: Optimizer, group: dict[str, Any]) -> bool:
    return isinstance(optimizer, AdamW) or bool(group.get("decoupled_weight_decay"))


def _split(group: dict[str, Any], factors: dict[Tensor, float]) -> list[dict[str, Any]]:
    """The group without its clipped tensors, and one group for each of those with its own learning rate."""
    rest = [p for p in group["params"] if p not in factors]
    alone = [p for p in group["params"] if p in factors]
    own = [{**group, "params": [p], "lr": group["lr"] * factors[p]} for p in alone]
    return [{**group, "params": rest}, *own] if own else [group]
