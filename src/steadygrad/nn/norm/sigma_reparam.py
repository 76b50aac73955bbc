"""Weights of a learned spectral norm: sigma-reparametrisation."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from steadygrad.nn.norm._statistics import snapshot
from steadygrad.nn.norm._ties import check_alone
from steadygrad.nn.norm._units import checked_dim, output_dim, weight_of

# iterations for the first singular vector: until sigma grows by less than this share, and no more than so many
TOLERANCE, MAX_ITERATIONS = 1e-7, 1000


def power_iteration(matrix: Tensor, v: Tensor, num_iterations: int = 1) -> Tensor:
    """``v <- W^T W v / ||W^T W v||``, towards the first right singular vector.

    Where the matrix is not finite, or takes v to 0, v stays what it was.

    Example:
        >>> v = power_iteration(torch.tensor([[2.0, 0.0], [0.0, 0.1]]), torch.tensor([0.6, 0.8]), 5)
        >>> [round(x, 6) for x in v.tolist()]
        [1.0, 0.0]

    Source: Miyato, Kataoka, Koyama & Yoshida (2018), Algorithm 1, https://arxiv.org/abs/1802.05957
    """
    for _ in range(num_iterations):
        u = matrix.mv(v)
        new = matrix.t().mv(u / length(u))
        norm = length(new)
        v = torch.where(norm.isfinite() & (norm > 0), new / norm, v)
    return v


def length(x: Tensor) -> Tensor:
    """L2 norm of a vector, finite for finite entries: their squares do not overflow."""
    largest = x.detach().abs().amax()
    largest = torch.where(largest == 0, 1.0, largest)
    return largest * torch.linalg.vector_norm(x / largest)


class SigmaReparam(nn.Module):
    """The parametrization that `sigma_reparam` registers: ``gamma / sigma(W) * W``.

    Args:
        weight: the weight that it will be registered on: two dimensions or more, finite, not all 0. gamma is
            trained if it is: a frozen one (``requires_grad`` False) gets a frozen gamma.
        keep_function: gamma starts at sigma(W) instead of 1.
        n_power_iterations: per forward pass in training, >= 1.
        dim: the dimension of the outputs; the others are taken together as inputs.

    When to use it: with ``parametrize.register_parametrization`` where `sigma_reparam` does not know the layer: a
    weight whose outputs are not its first dimension.

    Values in use: see `sigma_reparam`.

    Cost: see `sigma_reparam`.

    Source: Zhai, Likhomanenko, Littwin, Busbridge, Ramapuram, Zhang, Gu & Susskind (2023), section 3,
    https://arxiv.org/abs/2303.06296
    """

    v: Tensor

    def __init__(
        self, weight: Tensor, keep_function: bool = False, n_power_iterations: int = 1, dim: int = 0
    ) -> None:
        super().__init__()
        if n_power_iterations < 1:
            raise ValueError(f"n_power_iterations must be at least 1, got {n_power_iterations}")
        self.n_power_iterations, self.dim = n_power_iterations, checked_dim(dim, weight)
        with torch.no_grad():
            matrix = self._matrix(weight)
            if not matrix.isfinite().all() or not matrix.any():  # host sync: once
                raise ValueError(
                    f"the weight of shape {tuple(weight.shape)} must be finite and not all 0, it has no spectral "
                    "norm to divide by: initialise it first, or leave this layer out"
                )
            self.register_buffer("v", _first_right_vector(matrix))
            sigma = length(matrix.mv(self.v))
            gamma = sigma.clone() if keep_function else torch.ones_like(sigma)
            self.gamma = nn.Parameter(gamma, requires_grad=weight.requires_grad)

    def _matrix(self, weight: Tensor) -> Tensor:
        weight = weight.to(torch.promote_types(weight.dtype, torch.float32))
        return weight.movedim(self.dim, 0).flatten(1)

    def forward(self, weight: Tensor) -> Tensor:
        matrix = self._matrix(weight)
        v = self.v.to(matrix.dtype)
        if self.training:
            with torch.no_grad():
                v = power_iteration(matrix, v, self.n_power_iterations)
                self.v.copy_(v)
        (v,) = snapshot(v)
        sigma = length(matrix.mv(v))
        sigma = torch.where(sigma == 0, 1.0, sigma)  # W = 0 stays 0, and its gradient finite
        return (weight * (self.gamma / sigma)).to(weight.dtype)

    @torch.no_grad()
    def right_inverse(self, weight: Tensor) -> Tensor:
        """A weight that is assigned becomes W; gamma stays, and v is found anew."""
        matrix = self._matrix(weight)
        if matrix.isfinite().all() and matrix.any():  # host sync: once
            self.v.copy_(_first_right_vector(matrix))
        return weight

    def extra_repr(self) -> str:
        return f"n_power_iterations={self.n_power_iterations}, dim={self.dim}"


def sigma_reparam(
    module: nn.Module, name: str = "weight", keep_function: bool = False, n_power_iterations: int = 1
) -> nn.Module:
    """Give the weight of a layer a learned spectral norm of its own. In place.

        W_hat = gamma / sigma(W) * W        sigma the largest singular value, gamma a learned scalar

    sigma comes from power iterations, one for each forward pass in training; the gradient passes through it.
    However W moves, the norm of W_hat moves at the pace of gamma. A convolution's weight is taken as a matrix
    (outputs, inputs x kernel), which bounds the norm of the convolution up to the size of its kernel.

    When to use it: every linear layer of a transformer whose attention collapses onto single tokens or whose
    loss spikes; its authors then trained vision transformers without warm-up, weight decay and layer norm, and
    machine translation 100 layers deep with post-norm.

    Values in use: gamma 1, one iteration for each step, on every linear layer (the paper). No weight decay is
    needed on W, whose scale has no effect.

    Cost: three products of the weight with a vector for each forward pass in training, one in evaluation;
    ``parametrize.remove_parametrizations(module, "weight")`` takes it out after training. At the switch, some hundred
    products.

    Args:
        module: Linear, ConvNd, ConvTransposeNd, or any module with such a weight; one layer, not a model. A frozen
            one stays frozen, its gamma too.
        name: of the weight: ``"in_proj_weight"`` in ``nn.MultiheadAttention``, one norm for its three parts.
        keep_function: start gamma at sigma(W) instead of 1: the outputs are unchanged at the switch.
        n_power_iterations: per forward pass in training, >= 1.

    Returns:
        The module. ``module.parametrizations.weight.original`` is W; ``[0].gamma`` and the buffer ``[0].v``, the first
        right singular vector, are in the state dict.

    Empty, zero, inf, nan: an empty, zero or non-finite weight is refused, as it has no sigma. Later a W of 0
    gives 0, and an inf or nan in W makes all of W_hat nan; either leaves v bit for bit as it was.

    Raises:
        ValueError: no such weight, or one without a sigma; one that has a parametrization already; one that is
            tied to another (``lm_head.weight is wte.weight``), as the tie would break: leave that layer out. Nothing
            is changed then.

    Example:
        >>> layer = sigma_reparam(nn.Linear(8, 8))
        >>> round(torch.linalg.matrix_norm(layer.weight, 2).item(), 3)
        1.0

    Source: Zhai, Likhomanenko, Littwin, Busbridge, Ramapuram, Zhang, Gu & Susskind (2023), section 3,
    https://arxiv.org/abs/2303.06296
    """
    check_alone(module, (name,))
    weight = weight_of(module, name)
    new = SigmaReparam(weight, keep_function, n_power_iterations, output_dim(module))
    parametrize.register_parametrization(module, name, new.train(module.training))
    return module


def _first_right_vector(matrix: Tensor) -> Tensor:
    """The first right singular vector, by power iterations until sigma stands still."""
    generator = torch.Generator().manual_seed(0)  # of its own: the user's random numbers stay as they were
    v = torch.randn(matrix.shape[1], generator=generator).to(matrix)
    v = v / length(v)
    sigma = 0.0
    for _ in range(MAX_ITERATIONS):
        v = power_iteration(matrix, v, 10)
        new = torch.linalg.vector_norm(
            matrix.mv(v)
        ).item()  # host sync: once in ten iterations, at the switch
        if new <= sigma * (1 + TOLERANCE):
            break
        sigma = new
    return v
