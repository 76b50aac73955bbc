"""LARS: momentum SGD whose step in each layer is a fixed fraction of the layer's weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from steadygrad._check import fraction, positive
from steadygrad.optim._norms import norms, on, ratio, scale_, weight_norms
from steadygrad.optim._step import Batch, Group, LayerwiseOptimizer, at_least_zero


def lars_rates(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    trust_coefficient: float = 1e-3,
    weight_decay: float = 0.0,
    min_rms: float = 1e-3,
) -> Tensor:
    """The local learning rate of each layer.

        lambda_l = eta max(||w_l||, min_rms sqrt(n_l)) / (||g_l|| + beta ||w_l||)

    Args:
        params: w_l, any shapes, not empty.
        grads: g_l, one for each parameter.
        trust_coefficient: eta, > 0.
        weight_decay: beta, at least 0.
        min_rms: weights are counted as at least this large, at least 0.

    Returns:
        A tensor with one number for each layer; 1 where gradient and decay are 0, nan where a gradient has one.

    Example:
        >>> lars_rates([torch.tensor([3.0, 4.0])], [torch.tensor([0.0, 10.0])], trust_coefficient=0.1).tolist()
        [0.05000000074505806]

    Source: You, Gitman & Ginsburg (2017), section 4, https://arxiv.org/abs/1708.03888
    """
    against = norms(grads)
    if weight_decay:
        against = against + weight_decay * norms(params)
    return ratio(trust_coefficient * weight_norms(params, min_rms), against)


class LARS(LayerwiseOptimizer):
    """Momentum SGD that moves each layer by the same fraction of its weights, however large its gradient is.

        lambda_l = eta max(||w_l||, min_rms sqrt(n_l)) / (||g_l|| + beta ||w_l||)
        v_l <- m v_l + lr lambda_l (g_l + beta w_l)
        w_l <- w_l - v_l

    so that, beside the momentum, ||dw_l|| / ||w_l|| is at most lr * eta.

    When to use it: convolutional nets at batches of thousands of images, where SGD with the learning rate
    that the batch asks for diverges in the layers with large gradients. For attention models take `LAMB`.

    Limits: tensors of fewer than two dimensions (biases, gains) are stepped by plain momentum SGD, as in
    every implementation of the paper, and nothing bounds their step; ``adapt_vectors=True`` bounds it. The
    learning rate stands inside the momentum, as in Algorithm 1: after a cut of the learning rate the old,
    longer steps fade out over 1 / (1 - m) steps.

    Values in use: trust_coefficient 1e-3 (most code), momentum 0.9, weight_decay 5e-4 (the paper, AlexNet);
    lr of the order of 10 with warm-up. min_rms 1e-3 is the floor of NFNets' clipping and of Adafactor; with
    0 a layer of zeros never moves (the paper), other implementations give it a plain SGD step of any size.

    Cost: one buffer; one read of weights and gradients for the norms, then SGD's traffic.

    Args:
        params: parameters or groups, as in torch.optim.
        lr: global learning rate, at least 0; a number or a tensor.
        momentum: m, 0 <= m < 1.
        weight_decay: beta, at least 0.
        trust_coefficient: eta, > 0.
        min_rms: weights are counted as at least this large (RMS), at least 0.
        adapt_vectors: also adapt tensors of fewer than two dimensions.
        maximize: climb instead of descend.

    A gradient of None leaves its parameter and state alone. A zero gradient takes the momentum's step. A nan
    or inf in a gradient reaches the weights and the buffer of its tensor, as in torch.optim: look before the
    step (the guard, GradScaler and `ClipStats.finite` do). A gradient whose norm overflows float32 adds
    nothing to its tensor's step.

    Raises:
        TypeError: a sparse gradient (before anything is changed).

    Example:
        >>> w = torch.nn.Parameter(torch.full((2, 2), 3.0))
        >>> optimizer = LARS([w], lr=10.0, momentum=0.0)
        >>> w.grad = torch.full((2, 2), 1e6)
        >>> optimizer.step()
        >>> round(w[0, 0].item(), 4)  # 1 % of 3
        2.97

    Source: You, Gitman & Ginsburg (2017), Algorithm 1, https://arxiv.org/abs/1708.03888
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1.0,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 1e-3,
        min_rms: float = 1e-3,
        adapt_vectors: bool = False,
        maximize: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
            "min_rms": min_rms,
            "adapt_vectors": adapt_vectors,
            "maximize": maximize,
        }
        super().__init__(params, defaults)

    def _check(self, group: Group) -> None:
        fraction("momentum", group["momentum"], one=False)
        at_least_zero("weight_decay", group["weight_decay"])
        positive("trust_coefficient", group["trust_coefficient"], finite=True)
        at_least_zero("min_rms", group["min_rms"])

    def _fresh(self, param: Tensor, group: Group) -> dict[str, Tensor]:
        return {"momentum_buffer": torch.zeros_like(param)}

    def _update(self, batch: Batch, group: Group) -> None:
        decay, lr = group["weight_decay"], group["lr"]
        rates = lars_rates(batch.params, batch.grads, group["trust_coefficient"], decay, group["min_rms"])
        if not group["adapt_vectors"]:
            one = torch.ones_like(rates[0])
            pairs = zip(rates.unbind(), batch.members, strict=True)
            rates = torch.stack([r if p.ndim > 1 else one for r, p in pairs])
        steps = list(torch._foreach_add(batch.grads, batch.params, alpha=decay))
        scale_(steps, rates * on(lr, rates))
        buffers = batch.state("momentum_buffer")
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_add_(buffers, steps)
        torch._foreach_sub_(batch.params, buffers)
