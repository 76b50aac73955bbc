"""The two moments of Adam, for the optimizers that are built on them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from steadygrad._check import fraction
from steadygrad.optim._step import Batch


def fresh_moments(param: Tensor) -> dict[str, Tensor]:
    return {"exp_avg": torch.zeros_like(param), "exp_avg_sq": torch.zeros_like(param)}


def corrected_moments(batch: Batch, betas: tuple[float, float]) -> tuple[list[Tensor], list[Tensor]]:
    """Put the gradients into both moments; return new tensors m_hat and sqrt(v_hat).

        m <- beta1 m + (1 - beta1) g          m_hat = m / (1 - beta1^t)
        v <- beta2 v + (1 - beta2) g^2        v_hat = v / (1 - beta2^t)

    with t counted for each parameter from its own first gradient.
    """
    beta1, beta2 = betas
    m, v, steps = batch.state("exp_avg"), batch.state("exp_avg_sq"), batch.steps()
    torch._foreach_lerp_(m, batch.grads, 1 - beta1)
    torch._foreach_mul_(v, beta2)
    torch._foreach_addcmul_(v, batch.grads, batch.grads, 1 - beta2)
    m_hat = torch._foreach_div(m, [1 - beta1**t for t in steps])
    root = torch._foreach_sqrt(v)
    torch._foreach_div_(root, [math.sqrt(1 - beta2**t) for t in steps])
    return list(m_hat), list(root)


def adam_directions(batch: Batch, betas: tuple[float, float], eps: float) -> list[Tensor]:
    """Adam's step at learning rate 1: m_hat / (sqrt(v_hat) + eps), as new tensors.

    Source: Kingma & Ba (2015), Algorithm 1, https://arxiv.org/abs/1412.6980
    """
    m_hat, root = corrected_moments(batch, betas)
    torch._foreach_add_(root, eps)
    torch._foreach_div_(m_hat, root)
    return m_hat


def check_betas(betas: Sequence[float]) -> None:
    if not isinstance(betas, (tuple, list)) or len(betas) != 2:
        raise TypeError(f"betas must be two numbers, got {betas!r}")
    for i, beta in enumerate(betas):
        fraction(f"betas[{i}]", beta, one=False)
