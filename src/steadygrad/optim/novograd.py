"""NovoGrad: momentum on gradients that are divided by the running norm of their layer."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from steadygrad._check import positive
from steadygrad.optim._adam import check_betas
from steadygrad.optim._norms import norms, on, scale_
from steadygrad.optim._step import Batch, Group, LayerwiseOptimizer, at_least_zero


def layer_moment(v: Tensor, grad_norms: Tensor, beta2: float) -> Tensor:
    """The second moment of each layer, one number: the average of its squared gradient norm.

        v_l <- beta2 v_l + (1 - beta2) ||g_l||^2        v_l <- ||g_l||^2 at the first gradient that is not 0

    Args:
        v: one number for each layer, 0 where nothing was seen yet.
        grad_norms: ||g_l||.
        beta2: weight of the past, 0 <= beta2 < 1.

    Example:
        >>> layer_moment(torch.tensor([0.0, 1.0]), torch.tensor([3.0, 3.0]), beta2=0.5).tolist()
        [9.0, 5.0]

    Source: Ginsburg et al. (2019), Algorithm 1, https://arxiv.org/abs/1905.11286
    """
    square = grad_norms.square()
    return torch.where(v == 0, square, torch.lerp(v, square, 1 - beta2))


class NovoGrad(LayerwiseOptimizer):
    """Momentum on gradients that are divided by the running norm of their layer, one number a layer.

        v_l <- beta2 v_l + (1 - beta2) ||g_l||^2
        m_l <- beta1 m_l + g_l / (sqrt(v_l) + eps) + d w_l
        w_l <- w_l - lr m_l

    When to use it: where Adam works but its memory or its noise in the second moment hurts: speech and
    translation models, long warm-ups. Without weight decay a step of a layer is at most lr / (1 - beta1) long
    in L2, whatever the scale of its gradient, and while the gradient grows at most 1 / sqrt(1 - beta2) times that.

    Limits: the length of the step is the same for a large layer and a small one, it is not relative to the
    weights (`LAMB`, `Fromage`).

    Values in use: betas (0.95, 0.98) (the paper and most code); betas (0.8, 0.5), weight_decay 1e-3, lr 0.01 in
    NVIDIA's speech recognition (NeMo).

    Cost: one buffer and one number a layer; one read of the gradients for the norms, then SGD's traffic.

    Args:
        params: parameters or groups, as in torch.optim.
        lr: at least 0; a number or a tensor.
        betas: decay of the momentum and of the layer's squared norm, each at least 0 and below 1.
        eps: added to the norm, > 0.
        weight_decay: d, added to the normalised gradient, at least 0.
        maximize: climb instead of descend.

    A gradient of None leaves its parameter and state alone. A zero gradient before the first other one
    leaves v at 0. A nan or inf in a gradient reaches the weights and the state of its tensor, as in
    torch.optim: look before the step (the guard, GradScaler and `ClipStats.finite` do).

    Raises:
        TypeError: a sparse gradient (before anything is changed).

    Example:
        >>> w = torch.nn.Parameter(torch.zeros(2, 2))
        >>> optimizer = NovoGrad([w], lr=0.01)
        >>> w.grad = torch.full((2, 2), 1e6)
        >>> optimizer.step()
        >>> round(w.norm().item(), 4)
        0.01

    Source: Ginsburg et al. (2019), Algorithm 1, https://arxiv.org/abs/1905.11286
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.01,
        betas: tuple[float, float] = (0.95, 0.98),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        maximize: bool = False,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "maximize": maximize}
        super().__init__(params, defaults)

    def _check(self, group: Group) -> None:
        check_betas(group["betas"])
        positive("eps", group["eps"], finite=True)
        at_least_zero("weight_decay", group["weight_decay"])

    def _fresh(self, param: Tensor, group: Group) -> dict[str, Tensor]:
        return {
            "momentum_buffer": torch.zeros_like(param),
            "grad_norm_sq": torch.zeros((), dtype=param.dtype, device=param.device),
        }

    def _update(self, batch: Batch, group: Group) -> None:
        beta1, beta2 = group["betas"]
        old, buffers = batch.state("grad_norm_sq"), batch.state("momentum_buffer")
        v = layer_moment(torch.stack(old), norms(batch.grads), beta2)
        torch._foreach_copy_(old, list(v.unbind()))
        normed = [g.clone() for g in batch.grads]
        scale_(normed, 1 / (v.sqrt() + group["eps"]))
        if group["weight_decay"]:
            torch._foreach_add_(normed, batch.params, alpha=group["weight_decay"])
        torch._foreach_mul_(buffers, beta1)
        torch._foreach_add_(buffers, normed)
        steps = [m.clone() for m in buffers]
        scale_(steps, on(group["lr"], v))
        torch._foreach_sub_(batch.params, steps)
