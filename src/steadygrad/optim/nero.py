"""Nero: every neuron turns by the same angle, whatever the scale of its gradient."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from steadygrad._check import fraction
from steadygrad.clip.unitwise import unit_norm
from steadygrad.optim._norms import on, scale_
from steadygrad.optim._step import (
    Batch,
    Group,
    LayerwiseOptimizer,
    refuse_complex_and_sharded,
    working_dtype,
)


def neuron_norm(x: Tensor) -> Tensor:
    """L2 norm of each neuron: a row of a matrix, a filter of a convolution, a single entry of a vector.

    The result broadcasts to ``x`` and is at least float32.

    Example:
        >>> neuron_norm(torch.tensor([[3.0, 4.0], [0.0, 2.0]])).flatten().tolist()
        [5.0, 2.0]
        >>> neuron_norm(torch.tensor([3.0, -4.0])).tolist()
        [3.0, 4.0]
    """
    return unit_norm(x) if x.ndim > 1 else x.abs().to(torch.promote_types(x.dtype, torch.float32))


@torch.no_grad()
def balance_(weight: Tensor) -> Tensor:
    """Make the weights of each neuron sum to 0 and their squares to 1, in place.

        w <- w - mean(w)        w <- w / ||w||

    A vector, a neuron with a single input, and a neuron whose weights are all equal are left alone: they have
    no balanced form.

    Args:
        weight: (neurons, ...), real. Changed in place and returned.

    Example:
        >>> balance_(torch.tensor([[1.0, 3.0], [5.0, 5.0]])).tolist()
        [[-0.7071067690849304, 0.7071067690849304], [5.0, 5.0]]

    Source: Liu et al. (2021), the balanced networks, https://arxiv.org/abs/2102.07227
    """
    if weight.ndim < 2:
        return weight
    x = weight.to(working_dtype(weight.dtype))
    centred = x - x.mean(dim=tuple(range(1, x.ndim)), keepdim=True)
    norm = unit_norm(centred)
    equal = norm <= 4 * torch.finfo(x.dtype).eps * unit_norm(x)  # what is left is rounding
    return weight.copy_(torch.where(equal, x, centred / norm))


class Nero(LayerwiseOptimizer):
    """Gradient descent in which every neuron turns by about the same angle, whatever the scale of its gradient.

        s_u <- beta s_u + (1 - beta) ||g_u||^2
        w_u <- w_u - lr sigma g_u / sqrt(s_u / (1 - beta^t))
        w_u <- w_u - mean(w_u),  w_u <- w_u / ||w_u||        (constraints)

    for every neuron u: a row of a matrix, a filter of a convolution, an entry of a vector. sigma is the mean
    norm of the tensor's neurons at its first step (1 for a matrix with constraints, 0.01 for a tensor of zeros).

    When to use it: fully connected and convolutional nets and GANs without normalisation layers, in which
    the neurons of a layer have gradients of different scale; no learning rate to search.

    Limits: with constraints the weights of every matrix are **replaced when the optimizer is made**: each
    neuron is centred and gets norm 1. Build the optimizer before you measure anything, and load weights
    after it. A pre-trained net is not the same net afterwards. A neuron with one input (a depthwise 1 x 1
    convolution, Linear(1, n)) has no balanced form and is left free; in pytorch_optimizer it becomes 0.

    Values in use: lr 0.01, beta 0.999 (its authors: right in almost all their experiments, else lr 0.001).

    Cost: one number a neuron; two reads of the gradients, two reads and writes of the weights.

    Args:
        params: parameters or groups, as in torch.optim.
        lr: angle of a step in radians, about, at least 0; a number or a tensor.
        beta: decay of the squared gradient norms, 0 <= beta < 1.
        constraints: keep the neurons balanced; False leaves the weights free and takes sigma from them.
        maximize: climb instead of descend.

    A gradient of None leaves its parameter and state alone. A neuron that never had a gradient other than 0
    does not move. A nan or inf in a gradient reaches the weights and the state of its neuron, as in
    torch.optim: look before the step (the guard, GradScaler and `ClipStats.finite` do).

    Raises:
        TypeError: a sparse gradient (before anything is changed), a complex parameter.

    Example:
        >>> w = torch.nn.Parameter(torch.randn(3, 8))
        >>> optimizer = Nero([w], lr=0.01)
        >>> before = w.detach().clone()
        >>> w.grad = torch.randn(3, 8) * torch.tensor([[1e-6], [1.0], [1e6]])
        >>> optimizer.step()
        >>> bool(((w - before).norm(dim=1) < 0.0101).all())
        True

    Source: Liu, Bernstein, Meister & Yue (2021), Algorithm 1, https://arxiv.org/abs/2102.07227
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.01,
        beta: float = 0.999,
        constraints: bool = True,
        maximize: bool = False,
    ) -> None:
        super().__init__(params, {"lr": lr, "beta": beta, "constraints": constraints, "maximize": maximize})

    def _check(self, group: Group) -> None:
        fraction("beta", group["beta"], one=False)
        refuse_complex_and_sharded(self, group["params"])

    def add_param_group(self, param_group: Group) -> None:
        """As in torch; with constraints the weights are balanced in place."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        if group["constraints"]:
            for p in group["params"]:
                balance_(p.detach())

    def _fresh(self, param: Tensor, group: Group) -> dict[str, Tensor]:
        norm = neuron_norm(param)
        scale = norm.mean()
        return {
            "neuron_norm_sq": torch.zeros_like(norm),
            "scale": torch.where(scale == 0, 0.01, scale),  # the paper's scale for biases
        }

    def _update(self, batch: Batch, group: Group) -> None:
        beta, moments = group["beta"], batch.state("neuron_norm_sq")
        torch._foreach_lerp_(moments, [neuron_norm(g).square() for g in batch.grads], 1 - beta)
        roots = torch._foreach_sqrt(torch._foreach_div(moments, [1 - beta**t for t in batch.steps()]))
        # not `root > 0`: a nan must stay a nan
        turned = [
            torch.where(r == 0, 0.0, g / r) * scale
            for g, r, scale in zip(batch.grads, roots, batch.state("scale"), strict=True)
        ]
        scale_(turned, on(group["lr"], turned[0]))
        torch._foreach_sub_(batch.params, turned)
        if group["constraints"]:
            for p in batch.params:
                balance_(p)
