"""Adam-atan2: Adam without an epsilon, so that the step does not depend on the scale of the gradient."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from steadygrad._check import positive
from steadygrad.optim._adam import check_betas, corrected_moments, fresh_moments
from steadygrad.optim._norms import decay_, on, scale_
from steadygrad.optim._step import Batch, Group, LayerwiseOptimizer, at_least_zero


def atan2_direction(m_hat: Tensor, root_v_hat: Tensor, a: float = 1.27, b: float = 1.0) -> Tensor:
    """Adam's direction without a division: 0 for a zero gradient, never longer than a pi / 2.

        u = a atan2(m_hat, b sqrt(v_hat))

    Args:
        m_hat: first moment, bias-corrected.
        root_v_hat: square root of the second moment, bias-corrected, at least 0.
        a: scale of the result; 4 / pi = 1.27 makes it 1 where m_hat = sqrt(v_hat), as in Adam.
        b: > 0; a larger one makes it more like Adam's quotient, divided by b.

    An overflow of the second moment (gradients beyond 1e19 in float32) gives nan.

    Example:
        >>> u = atan2_direction(torch.tensor([1e-30, 1e30, 0.0]), torch.tensor([1e-30, 1e30, 0.0]))
        >>> [round(x, 2) for x in u.tolist()]
        [1.0, 1.0, 0.0]

    Source: Everett et al. (2024), the section on epsilon, https://arxiv.org/abs/2407.05872
    """
    # atan2 of two infinities is finite: 0 * inf keeps an overflow from being hidden
    return a * torch.atan2(m_hat, b * root_v_hat) + 0.0 * root_v_hat


class AdamAtan2(LayerwiseOptimizer):
    """AdamW without epsilon: the size of the step is the same for gradients of 1e-12 and of 1e12.

        u = a atan2(m_hat, b sqrt(v_hat))
        w <- (1 - lr lambda) w - lr u

    with the bias-corrected moments of Adam.

    When to use it: large models, in which the gradients of some layers (embeddings above all) fall below
    Adam's epsilon, so that those layers stop learning while no curve shows it. Any place of AdamW otherwise.

    Limits: the step is bounded entry by entry, at lr a pi / 2, not relative to the weights (`LAMB`). A layer
    whose gradient is pure rounding noise moves as fast as any other. Gradients below 1e-22 have a second
    moment of 0 in float32: the step then has the length a pi / 2 and the sign of m.

    Values in use: a 1.27 and b 1 with betas (0.9, 0.99) (adam-atan2-pytorch); with a = 4 / pi the learning
    rate of AdamW carries over.

    Cost: two buffers and one temporary; Adam's traffic. The arctangent has no grouped form: one call a tensor.

    Args:
        params: parameters or groups, as in torch.optim.
        lr: at least 0; a number or a tensor.
        betas: decay of the moments, each at least 0 and below 1.
        weight_decay: lambda, decoupled as in AdamW, at least 0.
        a: scale of the step, > 0.
        b: weight of sqrt(v_hat), > 0.
        maximize: climb instead of descend.

    A gradient of None leaves its parameter and state alone. A zero gradient takes the moments' step. A nan
    or inf in a gradient reaches the weight and the moments of its entry, as in torch.optim: look before the
    step (the guard, GradScaler and `ClipStats.finite` do).

    Raises:
        TypeError: a sparse gradient (before anything is changed).

    Example:
        >>> w = torch.nn.Parameter(torch.zeros(2))
        >>> optimizer = AdamAtan2([w], lr=0.1)
        >>> w.grad = torch.tensor([1e-12, 1e12])
        >>> optimizer.step()
        >>> [round(x, 3) for x in w.tolist()]
        [-0.1, -0.1]

    Source: Everett et al. (2024), the section on epsilon, https://arxiv.org/abs/2407.05872
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        a: float = 1.27,
        b: float = 1.0,
        maximize: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "weight_decay": weight_decay,
            "a": a,
            "b": b,
            "maximize": maximize,
        }
        super().__init__(params, defaults)

    def _check(self, group: Group) -> None:
        check_betas(group["betas"])
        at_least_zero("weight_decay", group["weight_decay"])
        positive("a", group["a"], finite=True)
        positive("b", group["b"], finite=True)

    def _fresh(self, param: Tensor, group: Group) -> dict[str, Tensor]:
        return fresh_moments(param)

    def _update(self, batch: Batch, group: Group) -> None:
        m_hat, root = corrected_moments(batch, group["betas"])
        updates = [atan2_direction(m, v, group["a"], group["b"]) for m, v in zip(m_hat, root, strict=True)]
        decay_(batch.params, group["lr"], group["weight_decay"])
        scale_(updates, on(group["lr"], updates[0]))
        torch._foreach_sub_(batch.params, updates)
