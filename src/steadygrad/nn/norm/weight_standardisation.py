"""Weights with zero mean and fixed variance for each output: scaled weight standardisation."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from steadygrad.nn.norm._parameters import checked_eps
from steadygrad.nn.norm._ties import check_alone
from steadygrad.nn.norm._units import TRANSPOSED, checked_dim, output_dim, weight_of


def standardise_weight(weight: Tensor, gain: Tensor | float = 1.0, eps: float = 1e-6, dim: int = 0) -> Tensor:
    """Give the weights of each output mean 0 and variance gain^2 / N, with N its number of inputs.

        W_hat_i = gain_i (W_i - mean(W_i)) / sqrt(N (var(W_i) + eps))

    for every output i: a row of a matrix, a filter of a convolution. Inputs of unit mean square then give
    outputs of mean square gain^2, and the mean of the inputs is not passed on.

    When to use it: as a parametrization, `weight_standardisation`.

    Values in use: gain sqrt(2 / (1 - 1/pi)) = 1.7129 behind a ReLU (the paper); eps 1e-6 (timm), 1e-4 inside
    max(N var, eps) in its authors' code. ``gain=sqrt(N)`` is the plain standardisation of Qiao et al.

    Cost: one read and one write of the weight, a step.

    Args:
        weight: two dimensions or more; those other than ``dim`` are the inputs.
        gain: a number, or one for each output.
        eps: added to the variance, > 0.
        dim: the dimension of the outputs; 1 in a transposed convolution.

    Returns:
        The standardised weight, in the dtype of ``weight``, computed in float32 at least.

    Empty, zero, inf, nan: an empty weight gives an empty one, an output of equal weights zeros. An inf or nan makes its
    own output nan and no other.

    Example:
        >>> w = standardise_weight(torch.randn(2, 100))
        >>> bool(w.mean(1).abs().max() < 1e-6), [round(v, 3) for v in (w * w).sum(1).tolist()]
        (True, [1.0, 1.0])

    Source: Brock, De & Smith (2021), section 4, https://arxiv.org/abs/2101.08692; the plain form: Qiao, Wang, Liu, Shen
    & Yuille (2019), section "Weight Standardization", https://arxiv.org/abs/1903.10520
    """
    eps = checked_eps(eps)
    dim = checked_dim(dim, weight)
    if weight.numel() == 0:
        return weight.clone()
    values = weight.to(torch.promote_types(weight.dtype, torch.float32))
    inputs = [d for d in range(weight.dim()) if d != dim]
    var, mean = torch.var_mean(values, inputs, correction=0, keepdim=True)
    num_inputs = weight.numel() // weight.shape[dim]
    if isinstance(gain, Tensor) and gain.dim() == 1:
        gain = gain.view([-1 if d == dim else 1 for d in range(weight.dim())])
    scale = gain * ((var + eps) * num_inputs).rsqrt()
    return ((values - mean) * scale).to(weight.dtype)


class WeightStandardisation(nn.Module):
    """The parametrization that `weight_standardisation` registers: ``gain * standardise_weight(W, gamma)``.

    Args:
        weight: the weight that it will be registered on. The gain is trained if it is.
        gamma: the gain of the nonlinearity before the layer, fixed.
        learn_gain: a learned gain for each output, started at 1, multiplies gamma.
        scaled: False leaves out the division by sqrt(N).
        eps: see `standardise_weight`.
        dim: see `standardise_weight`.

    When to use it: with ``parametrize.register_parametrization`` where `weight_standardisation` does not know the
    layer: a weight whose outputs are not its first dimension.

    Values in use: see `standardise_weight`.

    Cost: see `weight_standardisation`.

    Source: Brock, De & Smith (2021), section 4, https://arxiv.org/abs/2101.08692
    """

    gain: Tensor | None

    def __init__(
        self,
        weight: Tensor,
        gamma: float = 1.0,
        learn_gain: bool = True,
        scaled: bool = True,
        eps: float = 1e-6,
        dim: int = 0,
    ) -> None:
        super().__init__()
        if not abs(gamma) < math.inf:
            raise ValueError(f"gamma must be finite, got {gamma}")
        self.gamma, self.scaled, self.eps = float(gamma), scaled, checked_eps(eps)
        self.dim = checked_dim(dim, weight)
        outputs = weight.shape[self.dim]
        num_inputs = weight.numel() // max(outputs, 1)
        if num_inputs == 1:
            raise ValueError(
                f"each output of a weight of shape {tuple(weight.shape)} has one input, which has no variance: "
                "leave this layer out"
            )
        ones = torch.ones(outputs, device=weight.device, dtype=weight.dtype)
        gain = nn.Parameter(ones, requires_grad=weight.requires_grad)
        self.register_parameter("gain", gain if learn_gain else None)

    def forward(self, weight: Tensor) -> Tensor:
        gamma = self.gamma
        if not self.scaled:
            gamma *= math.sqrt(weight.numel() // max(weight.shape[self.dim], 1))
        gain = (
            gamma
            if self.gain is None
            else gamma * self.gain.to(torch.promote_types(weight.dtype, torch.float32))
        )
        return standardise_weight(weight, gain, self.eps, self.dim)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """A weight that is assigned becomes the one to be standardised."""
        return weight

    def extra_repr(self) -> str:
        return f"gamma={self.gamma}, scaled={self.scaled}, eps={self.eps}, dim={self.dim}"


def weight_standardisation(
    module: nn.Module,
    name: str = "weight",
    gamma: float = 1.0,
    learn_gain: bool = True,
    scaled: bool = True,
    eps: float = 1e-6,
) -> nn.Module:
    """Standardise the weight of a linear layer or a convolution in every forward pass. In place.

        W_hat_i = gamma gain_i (W_i - mean(W_i)) / sqrt(N (var(W_i) + eps))        gain learned, one for each output

    When to use it: convolutional nets without batch norm (NF-Nets): it keeps the mean of the activations from growing
    from layer to layer behind ReLUs. ``scaled=False`` is plain weight standardisation, for nets with group norm
    and small batches. Take the scaling of residual branches and `steadygrad.clip.clip_by_unit_norm_` with it.

    Values in use: see `standardise_weight`. gamma is the gain of the activation *before* the layer. Put no
    weight decay on ``gain``.

    Cost: one read and one write of the weight for each forward pass. ``parametrize.cached()`` saves the repeated ones;
    ``parametrize.remove_parametrizations(module, "weight")`` all of them after training.

    Args:
        module: Linear, Conv1d to Conv3d, ConvTranspose1d to 3d without groups, or any module with such a weight. A
            frozen one stays frozen, its gain too.
        name: of the weight.
        gamma, learn_gain, scaled, eps: see `WeightStandardisation`.

    Returns:
        The module. ``module.parametrizations.weight.original`` is W, and ``[0].gain`` the gain.

    Empty, zero, inf, nan: see `standardise_weight`.

    Raises:
        ValueError: no such weight; outputs with a single input; a transposed convolution with groups; a weight that
            has a parametrization already, or that is tied to another, as the tie would break: leave that layer
            out. Nothing is changed then.

    Example:
        >>> conv = weight_standardisation(nn.Conv2d(3, 8, 3), gamma=1.713)
        >>> bool(conv.weight.mean((1, 2, 3)).abs().max() < 1e-6)
        True

    Source: Brock, De & Smith (2021), section 4, https://arxiv.org/abs/2101.08692; the plain form: Qiao, Wang, Liu, Shen
    & Yuille (2019), section "Weight Standardization", https://arxiv.org/abs/1903.10520
    """
    check_alone(module, (name,))
    weight = weight_of(module, name)
    if isinstance(module, TRANSPOSED) and module.groups > 1:
        raise ValueError(
            f"a transposed convolution with groups={module.groups} keeps the outputs of different groups in one "
            "dimension of its weight: leave this layer out"
        )
    new = WeightStandardisation(weight, gamma, learn_gain, scaled, eps, output_dim(module))
    parametrize.register_parametrization(module, name, new.train(module.training))
    return module
