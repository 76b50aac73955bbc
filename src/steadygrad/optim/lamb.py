"""LAMB: Adam whose step in each layer is a fixed fraction of the layer's weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from steadygrad._check import positive
from steadygrad.optim._adam import adam_directions, check_betas, fresh_moments
from steadygrad.optim._norms import norms, on, ratio, scale_, weight_norms
from steadygrad.optim._step import Batch, Group, LayerwiseOptimizer, at_least_zero


def trust_ratios(
    params: Sequence[Tensor],
    updates: Sequence[Tensor],
    min_rms: float = 1e-3,
    max_norm: float = float("inf"),
) -> Tensor:
    """How much longer each layer's step must be to be as long as its weights.

        phi(||w_l||) / ||u_l||        phi(z) = min(max(z, min_rms sqrt(n_l)), max_norm)

    Args:
        params: w_l, any shapes, not empty.
        updates: u_l, one for each parameter, weight decay included.
        min_rms: weights are counted as at least this large (RMS), at least 0.
        max_norm: weights are counted as at most this large (L2), > 0.

    Returns:
        A tensor with one number for each layer; 1 where the update is 0, nan where it has one.

    Example:
        >>> trust_ratios([torch.tensor([3.0, 4.0])], [torch.tensor([0.0, 10.0])]).tolist()
        [0.5]

    Source: You et al. (2020), section 3, https://arxiv.org/abs/1904.00962
    """
    return ratio(weight_norms(params, min_rms).clamp(max=max_norm), norms(updates))


class LAMB(LayerwiseOptimizer):
    """Adam that moves each layer by the same fraction of its weights in every step.

        u_l = m_hat_l / (sqrt(v_hat_l) + eps) + lambda w_l
        w_l <- w_l - lr phi(||w_l||) / ||u_l|| u_l        phi(z) = min(max(z, min_rms sqrt(n_l)), max_norm)

    with the bias-corrected moments of Adam, so that ||dw_l|| / ||w_l|| is lr exactly, in the first step as
    in all others.

    When to use it: attention models at batches of thousands of sequences, or whenever Adam's step is too
    large for some layers and too small for others: the learning rate *is* the update ratio.

    Limits: every adapted layer moves by lr of its weights however small its gradient is, noise included:
    the learning rate must decay for the weights to come to rest. Tensors of fewer than two dimensions
    (biases, gains) take Adam's own step, as in its authors' code; ``adapt_vectors=True`` adapts them.

    Values in use: betas (0.9, 0.999), eps 1e-6, weight_decay 0.01, lr 6e-4 at batch 512 up to 5e-3 at
    32 k, with warm-up (the paper, BERT). ``max_norm`` 10 is the clamp of pytorch_optimizer;
    NVIDIA's has none. min_rms 1e-3 is Adafactor's floor.

    Cost: two buffers and one temporary; Adam's traffic and one read of the weights and of the updates.

    Args:
        params: parameters or groups, as in torch.optim.
        lr: update ratio of a step, at least 0; a number or a tensor.
        betas: decay of the moments, each at least 0 and below 1.
        eps: added to sqrt(v_hat), > 0.
        weight_decay: lambda, inside the trust ratio as in the paper, at least 0.
        min_rms: weights are counted as at least this large (RMS), at least 0.
        max_norm: weights are counted as at most this large (L2), > 0.
        adapt_vectors: also adapt tensors of fewer than two dimensions.
        maximize: climb instead of descend.

    A gradient of None leaves its parameter and state alone. A zero gradient takes the moments' step. A nan
    or inf in a gradient reaches the weights and the moments of its tensor, as in torch.optim: look before
    the step (the guard, GradScaler and `ClipStats.finite` do).

    Raises:
        TypeError: a sparse gradient (before anything is changed).

    Example:
        >>> w = torch.nn.Parameter(torch.full((2, 2), 3.0))
        >>> optimizer = LAMB([w], lr=0.01, weight_decay=0.0)
        >>> w.grad = torch.full((2, 2), 1e6)
        >>> optimizer.step()
        >>> round(w[0, 0].item(), 4)  # 1 % of 3
        2.97

    Source: You et al. (2020), Algorithm 2, https://arxiv.org/abs/1904.00962
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        min_rms: float = 1e-3,
        max_norm: float = float("inf"),
        adapt_vectors: bool = False,
        maximize: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "min_rms": min_rms,
            "max_norm": max_norm,
            "adapt_vectors": adapt_vectors,
            "maximize": maximize,
        }
        super().__init__(params, defaults)

    def _check(self, group: Group) -> None:
        check_betas(group["betas"])
        positive("eps", group["eps"], finite=True)
        at_least_zero("weight_decay", group["weight_decay"])
        at_least_zero("min_rms", group["min_rms"])
        positive("max_norm", group["max_norm"])

    def _fresh(self, param: Tensor, group: Group) -> dict[str, Tensor]:
        return fresh_moments(param)

    def _update(self, batch: Batch, group: Group) -> None:
        updates = adam_directions(batch, group["betas"], group["eps"])
        if group["weight_decay"]:
            torch._foreach_add_(updates, batch.params, alpha=group["weight_decay"])
        ratios = trust_ratios(batch.params, updates, group["min_rms"], group["max_norm"])
        if not group["adapt_vectors"]:
            one = torch.ones_like(ratios[0])
            pairs = zip(ratios.unbind(), batch.members, strict=True)
            ratios = torch.stack([r if p.ndim > 1 else one for r, p in pairs])
        scale_(updates, ratios * on(group["lr"], ratios))
        torch._foreach_sub_(batch.params, updates)
