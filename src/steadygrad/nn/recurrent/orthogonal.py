"""Recurrences whose matrix is orthogonal for the whole training: a layer of its own, and a constraint for torch's."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from steadygrad._check import count, one_of
from steadygrad.init.orthogonal import orthogonal_blocks_
from steadygrad.nn.recurrent._gates import parametrize_hidden_weights
from steadygrad.nn.recurrent._stack import Recurrence, RecurrentStack, unroll

MAPS = ("matrix_exp", "cayley", "householder")  # torch's names
NONLINEARITIES = ("tanh", "relu", "modrelu")


def mod_relu(z: Tensor, bias: Tensor) -> Tensor:
    """Shift the size of each number by a bias and keep its sign; see ``ModReLU``."""
    # written with z itself, so that at bias 0 it is the identity bit for bit, with slope 1 at 0 too
    return torch.where(z.abs() + bias < 0, 0.0, z + torch.where(z < 0, -bias, bias))


class ModReLU(nn.Module):
    """ReLU of the size of a number, its sign kept: with a bias of 0 it is the identity.

        f(z) = (|z| + b) z / |z|   where |z| + b >= 0,   else 0

    This is the real form; at z = 0 the sign is taken as +.

    When to use it: in orthogonal recurrences over long sequences. Its slope is 1 or 0, and 1 everywhere at
    the start, when the recurrence is linear and keeps the norm of state and gradient exactly.

    Values in use: b starts at 0 and is learned (Arjovsky et al., Helfrich et al.).

    Cost: five elementwise operations.

    Args:
        num_features: size of the last dimension, one bias each.

    Takes (..., num_features), returns the same shape.

    Empty, zero, nan: an empty tensor stays empty; 0 gives max(b, 0); inf and nan stay.

    Example:
        >>> act = ModReLU(3)
        >>> _ = nn.init.constant_(act.bias, -1.0)
        >>> act(torch.tensor([-3.0, 0.5, 2.0])).tolist()
        [-2.0, 0.0, 1.0]

    Source: Arjovsky, Shah & Bengio (2016), the definition of modReLU in section 4,
    https://arxiv.org/abs/1511.06464
    """

    def __init__(
        self, num_features: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.num_features = count("num_features", num_features)
        self.bias = nn.Parameter(torch.empty(num_features, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.bias)

    def forward(self, z: Tensor) -> Tensor:
        return mod_relu(z, self.bias)

    def extra_repr(self) -> str:
        return str(self.num_features)


class OrthogonalGates(nn.Module):
    """Parametrization: a matrix whose gates, stacked as blocks of rows, are orthogonal each; the map is torch's."""

    def __init__(self, weight: Tensor, num_blocks: int, orthogonal_map: str | None) -> None:
        super().__init__()
        if orthogonal_map is not None:
            one_of("orthogonal_map", orthogonal_map, MAPS)
        rows, columns = weight.shape[0] // num_blocks, weight.shape[1]
        self.num_blocks = num_blocks
        holder = nn.Module()
        dtype = torch.promote_types(weight.dtype, torch.float32)  # QR and exponential want it
        holder.weight = nn.Parameter(
            torch.eye(rows, columns, dtype=dtype, device=weight.device).repeat(num_blocks, 1, 1)
        )
        parametrizations.orthogonal(holder, "weight", orthogonal_map)
        self.map: Any = holder.parametrizations.weight[0]  # type: ignore[union-attr,index]

    def forward(self, raw: Tensor) -> Tensor:
        dtype = torch.promote_types(raw.dtype, torch.float32)
        blocks = raw.unflatten(0, (self.num_blocks, -1)).to(dtype)
        base = {"base": self.map.base.to(dtype)}
        with torch.autocast(raw.device.type, enabled=False):
            return torch.func.functional_call(self.map, base, (blocks,)).flatten(0, 1).to(raw.dtype)

    @torch.no_grad()
    def right_inverse(self, weight: Tensor) -> Tensor:
        dtype = torch.promote_types(weight.dtype, torch.float32)
        blocks = weight.unflatten(0, (self.num_blocks, -1)).to(dtype)
        wide = blocks.shape[-2] < blocks.shape[-1]
        q, r = torch.linalg.qr(blocks.mT if wide else blocks)
        # torch's own step for this loses the columns of a singular matrix, whose pivots are 0
        q = q * torch.where(r.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(dtype).unsqueeze(-2)
        return self.map.right_inverse(q.mT if wide else q).flatten(0, 1).to(weight.dtype)


def orthogonal_recurrence(
    module: nn.RNNBase | nn.RNNCellBase, orthogonal_map: str | None = None
) -> nn.Module:
    """Hold every hidden-to-hidden matrix of an RNN, LSTM or GRU orthogonal during training, gate by gate. In place.

        W_hh = [Q_1; ...; Q_k],   Q_i = B_i exp(A_i),   A_i = -A_i^T        (k = 4 gates for LSTM, 3 for GRU, 1 for RNN)

    with the map of ``torch.nn.utils.parametrizations.orthogonal`` (B_i starts as the Q factor of the weight as it
    is), to which this adds the gates and that torch's fused kernels use the computed weight: in every call, once
    a call, and in copies of the module.

    When to use it: an RNN of torch whose gradient explodes through time, without leaving its fused kernels. For
    a plain RNN the gradient then cannot grow from step to step. In LSTM and GRU it bounds each gate's matrix;
    their state has its own way through time.

    Values in use: orthogonal_map matrix_exp (torch's default for square ones), cayley as scoRNN has it
    (Helfrich et al.), which is faster at large sizes.

    Cost: an exponential or a solve of each gate, O(H^3) a call, whatever the length of the sequence. On CUDA,
    cuDNN gathers the weights in each call, and says so in a warning.

    Args:
        module: ``nn.RNN``, ``nn.LSTM``, ``nn.GRU`` or one of their cells. Make optimizers after this: the
            parameters are new ones. Frozen weights stay frozen; with a parametrization already, or tied to those
            of another layer, they are refused with ValueError.
        orthogonal_map: "matrix_exp", "cayley" or "householder"; None for torch's choice.

    Returns the module. Orthogonal blocks are kept as they are (see ``init.orthogonal_recurrent_``); others are
    replaced by their Q factor. With ``proj_size`` the columns of each block are orthonormal. Pickle refuses
    parametrized modules, as torch does; save the ``state_dict``. Undo it with
    ``torch.nn.utils.parametrize.remove_parametrizations(module, "weight_hh_l0")``.

    Empty, zero, nan: a zero matrix becomes the identity; one with an inf or nan is refused with ValueError.

    Example:
        >>> lstm = orthogonal_recurrence(nn.LSTM(3, 4))
        >>> output, _ = lstm(torch.randn(5, 2, 3))
        >>> output.sum().backward()
        >>> torch.optim.SGD(lstm.parameters(), lr=1.0).step()
        >>> forget = lstm.weight_hh_l0[4:8]
        >>> bool((forget @ forget.T - torch.eye(4)).abs().max() < 1e-5)
        True

    Source: Lezcano-Casado & Martinez-Rubio (2019), section 3 (exponential), https://arxiv.org/abs/1901.08428;
    Helfrich, Willmott & Ye (2018), section 3 (Cayley), https://arxiv.org/abs/1707.09520; Vorontsov et al.
    (2017), https://arxiv.org/abs/1702.00071
    """

    def make(weight: Tensor, gates: int) -> nn.Module:
        if not weight.isfinite().all():
            raise ValueError(
                "a recurrent weight holds inf or nan: initialise it before, with steadygrad.init.orthogonal_recurrent_"
            )
        return OrthogonalGates(weight, gates, orthogonal_map)

    parametrize_hidden_weights(module, make)
    return module


class OrthogonalRNN(RecurrentStack):
    """An RNN whose recurrent matrix is orthogonal, so that gradients cannot explode through time; called as ``nn.RNN``.

        h_t = f(W_ih x_t + b + Q h_{t-1}),   Q = B exp(A),   A = -A^T;        ||dL/dh_{t-1}|| <= ||dL/dh_t||

    for the part of the gradient that comes through h_t, as the slope of f is at most 1. With modReLU it is 1
    where the unit is on, so that the norm is kept over any length, not only bounded.

    When to use it: long memory with a plain recurrence: copying and adding tasks, pixel by pixel images. With
    tanh or ReLU and speed on a GPU take ``orthogonal_recurrence(nn.RNN(...))``, which is the same function in
    torch's fused kernels; this layer has modReLU too, can be pickled, and can be differentiated twice.

    Values in use: modrelu with biases at 0 (Arjovsky et al.; Helfrich et al.); hidden_size 170 to 512; the
    rate of A one tenth of that of the rest (Lezcano-Casado & Martinez-Rubio, Helfrich et al.):
    ``[p for n, p in rnn.named_parameters() if n.endswith("weight_hh_raw")]`` are those of A.

    Cost: a plain RNN as a loop in Python, about three kernels a step, and one exponential of an H by H matrix
    a call. Memory grows with the length.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional: as in ``nn.RNN``.
        nonlinearity: "modrelu", "tanh" or "relu".
        orthogonal_map: "matrix_exp", "cayley" or "householder", torch's names; None for torch's choice.

    Called with input (T, B, input_size), or (B, T, input_size) with batch_first, or (T, input_size), or a
    PackedSequence, and hx (num_layers * directions, B, hidden_size) or None for zeros, it returns output
    (T, B, hidden_size * directions) and h_n of the shape of hx. ``layers[i].weight_hh`` is Q.

    Empty, zero, nan: no steps give an empty output and h_n = hx; an empty batch an empty one. A nan or inf stays
    in its own sequence, from its step on. In bf16, Q is worked out in float32 and rounded.

    Example:
        >>> rnn = OrthogonalRNN(3, 8)
        >>> h_0 = torch.randn(1, 1, 8, requires_grad=True)
        >>> output, h_n = rnn(torch.randn(100, 1, 3), h_0)
        >>> (grad,) = torch.autograd.grad(h_n[0, 0, 0], h_0)  # of norm 1 at the last step
        >>> round(grad.norm().item(), 3)
        1.0

    Source: Arjovsky, Shah & Bengio (2016), section 2 and modReLU in section 4, https://arxiv.org/abs/1511.06464;
    Lezcano-Casado & Martinez-Rubio (2019), section 3, https://arxiv.org/abs/1901.08428
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "modrelu",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        orthogonal_map: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        count("hidden_size", hidden_size)
        one_of("nonlinearity", nonlinearity, NONLINEARITIES)
        make = partial(
            _OrthogonalLayer,
            hidden_size=hidden_size,
            nonlinearity=nonlinearity,
            bias=bias,
            orthogonal_map=orthogonal_map,
            device=device,
            dtype=dtype,
        )
        super().__init__(make, input_size, num_layers, batch_first, dropout, bidirectional)
        self.hidden_size, self.nonlinearity = hidden_size, nonlinearity

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, nonlinearity={self.nonlinearity}"


class _OrthogonalLayer(Recurrence):
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        nonlinearity: str,
        bias: bool,
        orthogonal_map: str | None,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.state_size = self.output_size = hidden_size
        self.weight_ih = nn.Parameter(torch.empty(hidden_size, input_size, device=device, dtype=dtype))
        self.weight_hh_raw = nn.Parameter(torch.zeros(hidden_size, hidden_size, device=device, dtype=dtype))
        self.orthogonal = OrthogonalGates(self.weight_hh_raw, 1, orthogonal_map)
        with_bias = bias and nonlinearity != "modrelu"  # which has one of its own, as in the paper
        self.bias = nn.Parameter(torch.empty(hidden_size, device=device, dtype=dtype)) if with_bias else None
        self.activation: Callable[[Tensor], Tensor]
        if nonlinearity == "modrelu":
            self.activation = ModReLU(hidden_size, device, dtype).requires_grad_(bias)
        else:
            self.activation = nn.Tanh() if nonlinearity == "tanh" else nn.ReLU()

    @property
    def weight_hh(self) -> Tensor:
        return self.orthogonal(self.weight_hh_raw)

    def reset_parameters(self) -> None:
        nn.init.xavier_uniform_(self.weight_ih)
        if self.bias is not None:
            nn.init.zeros_(self.bias)
        if isinstance(self.activation, ModReLU):
            self.activation.reset_parameters()
        with torch.no_grad():
            self.weight_hh_raw.copy_(self.orthogonal.right_inverse(orthogonal_blocks_(self.weight_hh_raw)))

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        inputs, weight = F.linear(x, self.weight_ih, self.bias), self.weight_hh
        states = unroll(lambda u, h: self.activation(u + F.linear(h, weight)), inputs, state)
        return states, states
