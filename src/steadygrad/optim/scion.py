"""Scion: every layer steps by a fixed length in the norm that suits it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from steadygrad._check import fraction, positive
from steadygrad.optim._norms import decay_, on, scale_
from steadygrad.optim._step import Batch, Group, LayerwiseOptimizer, refuse_complex_and_sharded
from steadygrad.optim.orthogonal import orthogonalise_each
from steadygrad.optim.roles import grouped, parameter_roles


def spectral_directions(updates: Sequence[Tensor]) -> list[Tensor]:
    """sqrt(out / in) / taps U V^T of each weight (out, in, taps...): the output of the layer moves by RMS 1."""
    found = orthogonalise_each(updates)
    for d in found:
        d.mul_(math.sqrt(d.shape[0] / d.shape[1]) / math.prod(d.shape[2:]))
    return found


def input_directions(updates: Sequence[Tensor]) -> list[Tensor]:
    """As `spectral_directions` with max(1, sqrt(out / in)): for the layer that reads the data."""
    found = orthogonalise_each(updates)
    for d in found:
        d.mul_(max(1.0, math.sqrt(d.shape[0] / d.shape[1])) / math.prod(d.shape[2:]))
    return found


def sign_directions(updates: Sequence[Tensor]) -> list[Tensor]:
    """sign(d) / in of each weight (out, in): no output moves by more than the largest input."""
    return [u.sign().div_(u[0].numel()) for u in updates]


def row_directions(updates: Sequence[Tensor]) -> list[Tensor]:
    """Each row made RMS 1: for embeddings (words, features)."""
    return [_unit_rms(u, tuple(range(1, u.ndim))) for u in updates]


def rms_directions(updates: Sequence[Tensor]) -> list[Tensor]:
    """The whole tensor made RMS 1: for biases and gains."""
    return [_unit_rms(u, tuple(range(u.ndim))) for u in updates]


def _unit_rms(u: Tensor, dims: tuple[int, ...]) -> Tensor:
    largest = u.abs().amax(dims, keepdim=True) if dims else u.abs()
    u = torch.where(largest == 0, 0.0, u / largest)  # squares neither overflow nor vanish
    size = u.square().mean(dims, keepdim=True).sqrt() if dims else u.abs()
    return torch.where(largest == 0, 0.0, u / size)


NORMS: dict[str, Callable[[Sequence[Tensor]], list[Tensor]]] = {
    "spectral": spectral_directions,
    "input": input_directions,
    "sign": sign_directions,
    "row": row_directions,
    "rms": rms_directions,
}
"""What a group may name as its ``norm``."""


class Scion(LayerwiseOptimizer):
    """Momentum whose step in each layer has a fixed length in the norm that suits the layer.

        d <- mu d + (1 - mu) g
        w <- w - lr rho lmo(d)                    or, constrained,    w <- (1 - lr) w - lr rho lmo(d)

    where lmo is, by the ``norm`` of the group: "spectral" sqrt(out / in) U V^T (convolutions: over the number
    of taps too), "input" the same with max(1, sqrt(out / in)), "sign" sign(d) / in, "row" each row at RMS 1,
    "rms" the whole tensor at RMS 1. None takes "spectral" from two dimensions on, else "rms".

    When to use it: in place of Adam, when the learning rate should carry over from a narrow and shallow model
    to a wide and deep one: the output of every layer moves by about lr * rho, whatever its shape and the scale of
    its gradient. `scion_groups` makes the groups.

    Limits: the step is as long for a tiny gradient as for a large one, so the learning rate must decay. The
    paper scales ReLU and GELU by sqrt(2) and starts from weights of the same norms. Rows of an embedding
    that have any momentum left, however little, move by a full step.

    Values in use: lr 2^-12, momentum 0.9, rho 50 in the hidden layers and 3000 in the output, constrained
    (nanoGPT); lr 2^-6 with rho 1 and 1024 (fully connected); lr 2^-4, momentum 0.5, rho 8 and 128
    (convolutional, CIFAR-10). All from the authors' repository, which calls 1 - momentum ``momentum``.

    Cost: one buffer; 5 Newton-Schulz steps (15 matrix products) for a matrix, in bfloat16 on a GPU.

    Args:
        params: parameters or groups, as in torch.optim; each group may have its ``norm`` and ``scale``.
        lr: at least 0; a number or a tensor.
        momentum: mu, 0 <= mu < 1.
        scale: rho, radius of the norm ball, > 0.
        norm: a key of `NORMS`, or None.
        constrained: keep the weights within the ball of radius ``scale``.
        maximize: climb instead of descend.

    A gradient of None leaves its parameter and state alone. A zero momentum gives no step. A nan or inf in a
    gradient reaches the weights and the buffer of its tensor, as in torch.optim: look before the step (the
    guard, GradScaler and `ClipStats.finite` do).

    Raises:
        ValueError: an unknown norm, or one that needs two dimensions for a vector.
        TypeError: a sparse gradient (before anything is changed), a complex parameter.

    Example:
        >>> w = torch.nn.Parameter(torch.zeros(4, 16))
        >>> optimizer = Scion([w], lr=0.1, scale=1.0)
        >>> w.grad = 1e9 * torch.randn(4, 16)
        >>> optimizer.step()
        >>> 0.03 < torch.linalg.matrix_norm(w, 2).item() < 0.07  # 0.1 sqrt(4 / 16), within Newton-Schulz's 30 %
        True

    Source: Pethick et al. (2025), Algorithms 1 and 2 and the tables of norms, https://arxiv.org/abs/2502.07529
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 2**-12,
        momentum: float = 0.9,
        scale: float = 50.0,
        norm: str | None = None,
        constrained: bool = False,
        maximize: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "scale": scale,
            "norm": norm,
            "constrained": constrained,
            "maximize": maximize,
        }
        super().__init__(params, defaults)

    def _check(self, group: Group) -> None:
        fraction("momentum", group["momentum"], one=False)
        positive("scale", group["scale"], finite=True)
        refuse_complex_and_sharded(self, group["params"])
        norm = group["norm"]
        if norm is not None and norm not in NORMS:
            raise ValueError(f"norm must be None or one of {', '.join(NORMS)}, got {norm!r}")
        for p in group["params"]:
            if isinstance(p, Tensor) and p.ndim < 2 and norm not in (None, "rms"):
                raise ValueError(
                    f'norm "{norm}" needs two dimensions or more, got a parameter of shape {tuple(p.shape)}: '
                    'put it into a group with norm "rms"'
                )

    def _fresh(self, param: Tensor, group: Group) -> dict[str, Tensor]:
        return {"momentum_buffer": torch.zeros_like(param)}

    def _update(self, batch: Batch, group: Group) -> None:
        buffers = batch.state("momentum_buffer")
        torch._foreach_lerp_(buffers, batch.grads, 1 - group["momentum"])
        if group["constrained"]:
            decay_(batch.params, group["lr"], 1.0)
        by_norm: dict[str, list[int]] = {}
        for i, p in enumerate(batch.params):
            by_norm.setdefault(group["norm"] or ("spectral" if p.ndim > 1 else "rms"), []).append(i)
        for norm, members in by_norm.items():
            steps = NORMS[norm]([buffers[i] for i in members])
            scale_(steps, group["scale"] * on(group["lr"], steps[0]))
            torch._foreach_sub_([batch.params[i] for i in members], steps)


def scion_groups(
    model: nn.Module,
    radius: float = 50.0,
    output_radius: float = 3000.0,
    *,
    outputs: Sequence[str] | None = None,
    embeddings: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """The groups that `Scion` wants: spectral for hidden weights, rows for embeddings, sign for the output.

    Args:
        model: its parameters with ``requires_grad``.
        radius: scale of all layers but the output.
        output_radius: scale of the output layer, and of a weight that output and embedding share.
        outputs: as in `parameter_roles`.
        embeddings: as in `parameter_roles`.

    Example:
        >>> model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 9))
        >>> for group in scion_groups(model):
        ...     print(group["norm"], group["scale"], [name for name, _ in group["params"]])
        spectral 50.0 ['1.weight']
        row 50.0 ['0.weight']
        sign 3000.0 ['3.weight']
        rms 50.0 ['1.bias', '3.bias']

    Source: Pethick et al. (2025), https://arxiv.org/abs/2502.07529, and the examples of its repository,
    https://github.com/LIONS-EPFL/scion
    """
    roles = parameter_roles(model, outputs=outputs, embeddings=embeddings)
    settings: dict[str, dict[str, Any]] = {
        "hidden": {"norm": "spectral", "scale": radius},
        "embedding": {"norm": "row", "scale": radius},
        "tied": {"norm": "sign", "scale": output_radius},
        "output": {"norm": "sign", "scale": output_radius},
        "vector": {"norm": "rms", "scale": radius},
    }
    return [{"params": members, **settings[role]} for role, members in grouped(model, roles).items()]
