"""The largest singular value of recurrent weights, gate by gate: measured, cut after a step, or held throughout."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steadygrad._check import count, number
from steadygrad.init.recurrent import num_gates
from steadygrad.nn.recurrent._gates import hidden_weights, parametrize_hidden_weights


def spectral_norms(weight: Tensor, num_blocks: int = 1, n_power_iterations: int | None = None) -> Tensor:
    """The spectral norm of each block of rows of a weight; differentiable.

        sigma_i = max ||W_i v|| / ||v||,        W = [W_1; ...; W_k]

    Exactly, by singular values, or by power iteration from the longest row of each block,
    v <- W^T W v / ||W^T W v||, which is a lower bound at any count and never below the longest row.

    When to use it: to see whether a recurrence can explode: a plain RNN whose sigma times the largest slope of
    its nonlinearity is below 1 cannot. Power iteration where the exact one is too slow.

    Values in use: n_power_iterations 1 in torch's spectral_norm, which goes on from step to step; here each call
    starts anew: 10 to 30.

    Cost: O(H^3) a block exactly; two products with a vector for each iteration. Exactly on CUDA, the solver
    synchronises with the host.

    Args:
        weight: (k * m, n) of a floating dtype; further dimensions are taken as columns.
        num_blocks: k, 4 for LSTM, 3 for GRU, 1 for RNN; divides the rows.
        n_power_iterations: at least 1; None for the exact norm.

    Returns k numbers in float32, or float64 for float64.

    Empty, zero, nan: a weight without entries has norms 0, as has a zero one; inf or nan in a block gives nan.

    Example:
        >>> spectral_norms(torch.diag(torch.tensor([3.0, 1.0, 0.5, 4.0])), num_blocks=2)
        tensor([3., 4.])

    Source: Yoshida & Miyato (2017), section 3, https://arxiv.org/abs/1705.10941 (power iteration)
    """
    blocks = _blocks(weight, num_blocks)
    if blocks.numel() == 0:
        return blocks.sum((1, 2))
    finite = blocks.isfinite().all(2).all(1)
    clean = torch.where(finite[:, None, None], blocks, 0.0)  # the solver refuses them
    with torch.no_grad():
        u, v = _top(clean, n_power_iterations)
    # u and v are constants: the gradient of sigma is u v^T
    sigma = torch.einsum("kmn,km,kn->k", clean, u, v)
    return torch.where(finite, sigma, torch.nan)


@torch.no_grad()
def clamp_spectral_norm_(
    weight: Tensor, max_norm: float, num_blocks: int = 1, n_power_iterations: int | None = None
) -> Tensor:
    """Shrink each block of a weight in place until its spectral norm is at most ``max_norm``.

        W_i <- W_i * min(1, max_norm / sigma_i)

    torch's ``spectral_norm`` brings sigma to 1 from both sides; this only shrinks, and leaves a block that is
    within the bound as it is, bit for bit.

    When to use it: after each step of the optimizer, to keep a recurrence (or any layer) from exploding without
    changing how it is written. ``SpectralNormBound`` holds the bound between the steps too.

    Values in use: max_norm 1 for a plain RNN with tanh or ReLU; at most 1 / slope otherwise; in VGG on CIFAR-10
    1.5 or 2 a layer with batch norm, 8 or 10 without (the code of Gouk et al.).

    Cost: that of ``spectral_norms``, and one read and write of the weight. With power iteration sigma is
    underestimated, so that the bound may be exceeded by as much.

    Args:
        weight: (k * m, n); changed in place.
        max_norm: largest spectral norm allowed, > 0.
        num_blocks: k, 4 for LSTM, 3 for GRU, 1 for RNN.
        n_power_iterations: at least 1; None for the exact norm.

    Returns the k norms before.

    Empty, zero, nan: a weight without entries and a zero one stay; a block with inf or nan stays as it is, and
    its norm is nan.

    Example:
        >>> rnn = nn.LSTM(3, 4)
        >>> _ = nn.init.normal_(rnn.weight_hh_l0, std=5.0)
        >>> before = clamp_spectral_norm_(rnn.weight_hh_l0, max_norm=1.0, num_blocks=4)
        >>> bool((before > 1).all()), recurrent_spectral_norms(rnn)["weight_hh_l0"]
        (True, tensor([1.0000, 1.0000, 1.0000, 1.0000]))

    Source: Gouk et al. (2021), section 4, https://arxiv.org/abs/1804.04368
    """
    number("max_norm", max_norm, 0.0, above=True)
    norms = spectral_norms(weight, num_blocks, n_power_iterations)
    weight.copy_(_bounded(weight, norms, max_norm))
    return norms


def recurrent_spectral_norms(
    module: nn.RNNBase | nn.RNNCellBase, n_power_iterations: int | None = None
) -> dict[str, Tensor]:
    """The spectral norm of each gate of each hidden-to-hidden weight of an RNN, LSTM or GRU.

        {"weight_hh_l0": (sigma_1, .., sigma_k), ..}        in torch's order: LSTM i, f, g, o; GRU r, z, n

    When to use it: to log how near a recurrence is to exploding; see ``spectral_norms``.

    Values in use: as in ``spectral_norms``.

    Cost: that of ``spectral_norms`` for each weight.

    Args:
        module: ``nn.RNN``, ``nn.LSTM``, ``nn.GRU`` or one of their cells.
        n_power_iterations: at least 1; None for the exact norms.

    Returns a dict by name, without a graph. A zero weight has norms 0, a gate with inf or nan has nan.

    Example:
        >>> norms = recurrent_spectral_norms(nn.GRU(3, 4, num_layers=2))
        >>> list(norms), norms["weight_hh_l0"].shape
        (['weight_hh_l0', 'weight_hh_l1'], torch.Size([3]))

    Source: Pascanu, Mikolov & Bengio (2013), section 2.1, https://arxiv.org/abs/1211.5063 (what it decides)
    """
    gates = num_gates(module)
    with torch.no_grad():
        return {
            name: spectral_norms(getattr(module, name), gates, n_power_iterations)
            for name in hidden_weights(module)
        }


class SpectralNormBound(nn.Module):
    """Parametrization: the weight, each block shrunk where its spectral norm is above a bound.

        W_i = R_i * min(1, max_norm / sigma(R_i))

    When to use it: to hold the bound in every forward pass:
    ``parametrize.register_parametrization(layer, "weight", SpectralNormBound(1.0))``. For the recurrent weights of
    torch's RNNs take ``bound_recurrent_spectral_norm``. Within the bound the weight is the raw one, bit for bit,
    so that putting it on a trained layer that keeps the bound changes nothing.

    Values in use: as in ``clamp_spectral_norm_``.

    Cost: that of ``spectral_norms`` in each forward pass; ``n_power_iterations`` makes it small.

    Args:
        max_norm: largest spectral norm allowed, > 0.
        num_blocks: blocks of rows that are bounded each by itself.
        n_power_iterations: at least 1; None for the exact norm.

    Takes and returns a matrix. A weight that is assigned (``layer.weight = w``) is stored as it is.

    Empty, zero, nan: as in ``clamp_spectral_norm_``; the gradient of a zero weight is finite.

    Example:
        >>> from torch.nn.utils import parametrize
        >>> layer = nn.Linear(4, 4)
        >>> _ = nn.init.normal_(layer.weight, std=5.0)
        >>> _ = parametrize.register_parametrization(layer, "weight", SpectralNormBound(1.0))
        >>> round(spectral_norms(layer.weight).item(), 4)
        1.0

    Source: Gouk et al. (2021), section 4, https://arxiv.org/abs/1804.04368; Miyato et al. (2018), section 2.1,
    for the parametrization, https://arxiv.org/abs/1802.05957
    """

    def __init__(self, max_norm: float, num_blocks: int = 1, n_power_iterations: int | None = None) -> None:
        super().__init__()
        self.max_norm = number("max_norm", max_norm, 0.0, above=True)
        self.num_blocks = count("num_blocks", num_blocks)
        self.n_power_iterations = (
            None if n_power_iterations is None else count("n_power_iterations", n_power_iterations)
        )

    def forward(self, raw: Tensor) -> Tensor:
        return _bounded(raw, spectral_norms(raw, self.num_blocks, self.n_power_iterations), self.max_norm)

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight

    def extra_repr(self) -> str:
        return f"max_norm={self.max_norm}, num_blocks={self.num_blocks}, n_power_iterations={self.n_power_iterations}"


def bound_recurrent_spectral_norm(
    module: nn.RNNBase | nn.RNNCellBase, max_norm: float = 1.0, n_power_iterations: int | None = None
) -> nn.Module:
    """Hold the spectral norm of every gate of the hidden-to-hidden weights of an RNN, LSTM or GRU. In place.

        W_hh = [R_1 min(1, max_norm / sigma(R_1)); ...]

    by ``SpectralNormBound``, so that torch's fused kernels use the bounded weight.

    When to use it: a plain RNN whose gradient explodes through time; where ``orthogonal_recurrence`` binds too
    much, as this lets it forget.

    Values in use: max_norm 1.

    Cost: that of ``spectral_norms`` once a call, whatever the length. On CUDA, cuDNN gathers the weights in each
    call, and says so in a warning.

    Args:
        module: ``nn.RNN``, ``nn.LSTM``, ``nn.GRU`` or one of their cells. Make optimizers after this. Frozen
            weights stay frozen; with a parametrization already, or tied to those of another layer, they are refused
            with ValueError.
        max_norm: largest spectral norm of a gate, > 0.
        n_power_iterations: at least 1; None for the exact norm.

    Returns the module; one within the bound computes what it did, bit for bit. Undo it with
    ``torch.nn.utils.parametrize.remove_parametrizations``.

    Empty, zero, nan: zero weights stay; inf or nan stays visible in the output.

    Example:
        >>> rnn = bound_recurrent_spectral_norm(nn.RNN(3, 8))
        >>> bool(recurrent_spectral_norms(rnn)["weight_hh_l0"] <= 1 + 1e-6)
        True

    Source: Gouk et al. (2021), section 4, https://arxiv.org/abs/1804.04368
    """
    parametrize_hidden_weights(
        module, lambda weight, gates: SpectralNormBound(max_norm, gates, n_power_iterations)
    )
    return module


def _blocks(weight: Tensor, num_blocks: int) -> Tensor:
    """(k, m, n), in float32 at least."""
    if not isinstance(weight, Tensor) or not weight.is_floating_point() or weight.dim() < 2:
        given = (
            f"{weight.dtype} of shape {tuple(weight.shape)}"
            if isinstance(weight, Tensor)
            else type(weight).__name__
        )
        raise TypeError(f"weight must be a floating tensor of two dimensions or more, got {given}")
    if count("num_blocks", num_blocks) and weight.shape[0] % num_blocks:
        raise ValueError(f"num_blocks must divide the {weight.shape[0]} rows of the weight, got {num_blocks}")
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
    return wide.flatten(1).unflatten(0, (num_blocks, weight.shape[0] // num_blocks))


def _bounded(weight: Tensor, norms: Tensor, max_norm: float) -> Tensor:
    # within the bound, and for nan, the scale is 1 and has no gradient
    scale = max_norm / torch.where(norms > max_norm, norms, max_norm)
    scale = scale.repeat_interleave(weight.shape[0] // len(norms)).view(-1, *[1] * (weight.dim() - 1))
    return (weight * scale).to(weight.dtype)


def _top(blocks: Tensor, iterations: int | None) -> tuple[Tensor, Tensor]:
    """The first singular vectors of each block; by power iteration from the longest row, near to them."""
    size = blocks.abs().amax((1, 2), keepdim=True)
    blocks = blocks / torch.where(size > 0, size, 1.0)  # squares of small entries vanish in float32
    if iterations is None:
        u, _, v = torch.linalg.svd(blocks, full_matrices=False)  # host sync: the solver's own
        return u[..., 0], v[..., 0, :]
    longest = blocks.norm(dim=2).argmax(1)
    v = F.normalize(blocks[torch.arange(len(blocks), device=blocks.device), longest], dim=1)
    u = F.normalize(torch.einsum("kmn,kn->km", blocks, v), dim=1)
    for _ in range(count("n_power_iterations", iterations)):
        v = F.normalize(torch.einsum("kmn,km->kn", blocks, u), dim=1)
        u = F.normalize(torch.einsum("kmn,kn->km", blocks, v), dim=1)
    return u, v
