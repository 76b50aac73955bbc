"""Fromage: gradient descent whose step in each layer is a fixed fraction of the layer's weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from steadygrad.optim._norms import norms, on, scale_, weight_norms
from steadygrad.optim._step import Batch, Group, LayerwiseOptimizer, at_least_zero


def relative_rates(params: Sequence[Tensor], grads: Sequence[Tensor], min_rms: float = 1e-3) -> Tensor:
    """The factor that makes each gradient as long as the weights of its layer.

        max(||w_l||, min_rms sqrt(n_l)) / ||g_l||

    Args:
        params: w_l, any shapes, not empty.
        grads: g_l, one for each parameter.
        min_rms: weights are counted as at least this large (RMS), at least 0.

    Returns:
        A tensor with one number for each layer; 0 for a zero gradient, nan where a gradient has one.

    Example:
        >>> relative_rates([torch.tensor([3.0, 4.0])], [torch.tensor([0.0, 10.0])]).tolist()
        [0.5]

    Source: Bernstein et al. (2020), Algorithm 1, https://arxiv.org/abs/2002.03432
    """
    against = norms(grads)
    return torch.where(against == 0, 0.0, weight_norms(params, min_rms) / against)


class Fromage(LayerwiseOptimizer):
    """Gradient descent that moves each layer by the same fraction of its weights, however large its gradient is.

        w_l <- (w_l - lr max(||w_l||, min_rms sqrt(n_l)) g_l / ||g_l||) / sqrt(1 + lr^2)

    The division takes back the growth of the weights that a step at right angles to them brings.

    When to use it: GANs and nets of tens of plain layers in which SGD explodes and Adam does not start, with
    no learning rate to search: ||dw_l|| / ||w_l|| is lr, for every layer and step.

    Limits: no momentum, so its steps follow the noise of a single batch; every layer moves by lr of its weights
    however small its gradient is: the learning rate must decay for the weights to come to rest.

    Values in use: lr 0.01 at the start, 0.001 for fine-tuning (its authors' experiments), less as the loss stands
    still. For a layer of zeros (a bias at the start) its authors' code takes a plain SGD step of any length; here the
    floor min_rms 1e-3, Adafactor's, bounds it.

    Cost: no state; one read of weights and gradients for the norms, one temporary.

    Args:
        params: parameters or groups, as in torch.optim.
        lr: update ratio of a step, at least 0; a number or a tensor.
        min_rms: weights are counted as at least this large (RMS), at least 0.
        maximize: climb instead of descend.

    A gradient of None or of zeros leaves its parameter alone. A nan or inf in a gradient reaches the weights
    of its tensor, as in torch.optim: look before the step (the guard, GradScaler and `ClipStats.finite` do). A
    gradient whose norm overflows float32 leaves its tensor where it is.

    Raises:
        TypeError: a sparse gradient (before anything is changed).

    Example:
        >>> w = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
        >>> optimizer = Fromage([w], lr=0.01)
        >>> w.grad = torch.tensor([4e6, -3e6])
        >>> optimizer.step()
        >>> round(w.norm().item(), 4)  # turned by 1 %, as long as before
        5.0

    Source: Bernstein, Vahdat, Yue & Liu (2020), Algorithm 1, https://arxiv.org/abs/2002.03432
    """

    def __init__(
        self, params: ParamsT, lr: float | Tensor = 0.01, min_rms: float = 1e-3, maximize: bool = False
    ) -> None:
        super().__init__(params, {"lr": lr, "min_rms": min_rms, "maximize": maximize})

    def _check(self, group: Group) -> None:
        at_least_zero("min_rms", group["min_rms"])

    def _fresh(self, param: Tensor, group: Group) -> dict[str, Tensor]:
        return {}

    def _update(self, batch: Batch, group: Group) -> None:
        rates = relative_rates(batch.params, batch.grads, group["min_rms"])
        lr = on(group["lr"], rates)
        steps = [g.clone() for g in batch.grads]
        scale_(steps, rates * lr)
        torch._foreach_sub_(batch.params, steps)
        scale_(batch.params, torch.where(rates == 0, 1.0, (1 + lr**2) ** -0.5))
