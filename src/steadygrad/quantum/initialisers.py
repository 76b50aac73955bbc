"""First angles of quantum circuits from which the gradient can be seen."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from steadygrad import _check

if TYPE_CHECKING:
    from steadygrad.quantum.layer import QuantumLayer


@torch.no_grad()
def uniform_angles_(target: nn.Module | Tensor, *, generator: torch.Generator | None = None) -> None:
    """Angles drawn from everywhere, in place: the barren plateau itself.

        theta ~ U(0, 2 pi)

    When to use it: to compare with. It is what `pennylane.qnn.TorchLayer` does if it is not told otherwise.

    Values in use: none to choose.

    Cost: none.

    Args:
        target: a `QuantumLayer`, another module (all its parameters are angles then), or a tensor.
        generator: of the angles; None: torch's own stream.

    Example:
        >>> angles = torch.zeros(3)
        >>> uniform_angles_(angles, generator=torch.Generator().manual_seed(0))
        >>> bool(((0 < angles) & (angles < 2 * torch.pi)).all())
        True

    Source: McClean et al. (2018), https://arxiv.org/abs/1803.11173
    """
    for angles in _angles(target):
        angles.uniform_(0, 2 * math.pi, generator=generator)


@torch.no_grad()
def small_angles_(
    target: nn.Module | Tensor,
    *,
    depth: int | None = None,
    locality: int | None = None,
    generator: torch.Generator | None = None,
) -> None:
    """Angles drawn near 0, the nearer the deeper the circuit, in place.

        theta ~ N(0, 1 / (4 S (L + 2)))        S: locality, L: depth

    When to use it: first, on any circuit; `QuantumLayer` begins so.

    Values in use: none to choose. Any deviation of order 1 / sqrt(L) does.

    Cost: none.

    Args:
        target: a `QuantumLayer`, another module (all its parameters are angles then), or a tensor.
        depth: layers of gates L, at least 1; None: the layer's own, for others the first dimension of each tensor.
        locality: qubits that one output is read from, at least 1; None: the layer's own, for others 1.
        generator: of the angles; None: torch's own stream.

    Raises ValueError and TypeError on bad arguments; nothing is changed then.

    Example:
        >>> angles = torch.zeros(98, 1000, 3)  # 98 layers
        >>> small_angles_(angles, generator=torch.Generator().manual_seed(0))
        >>> round(float(angles.std()), 3)  # 1 / sqrt(4 * 100)
        0.05

    Source: Zhang et al. (2022), https://arxiv.org/abs/2203.09376
    """
    S = _check.count("locality", getattr(target, "locality", 1) if locality is None else locality)
    L = getattr(target, "depth", None) if depth is None else _check.count("depth", depth)
    for angles in _angles(target):
        layers = (angles.shape[0] if angles.dim() else 1) if L is None else L
        angles.normal_(0, (4 * S * (layers + 2)) ** -0.5, generator=generator)


@torch.no_grad()
def identity_blocks_(layer: QuantumLayer, *, generator: torch.Generator | None = None) -> None:
    """Random blocks that undo themselves: the circuit begins as the identity, however deep it is. In place.

        theta of the first half ~ U(0, 2 pi);        the mirrored half: the same angles with the other sign

    When to use it: deep circuits that are to begin at random angles and still far from a random circuit.

    Values in use: ``mirrored`` 1 to 3 (ours; shorter blocks keep more of the gradient).

    Cost: the circuit must be built of mirrored halves; none beyond.

    Args:
        layer: a `QuantumLayer` made with ``mirrored``.
        generator: of the angles; None: torch's own stream.

    Raises ValueError if the layer has no mirrored halves; nothing is changed then.

    Example:
        >>> import steadygrad as sg
        >>> layer = sg.quantum.QuantumLayer(3, depth=8, mirrored=2)
        >>> sg.quantum.identity_blocks_(layer)
        >>> out = layer(torch.tensor([0.0, 1.0, torch.pi]))  # the cosines of the inputs
        >>> [round(value, 3) for value in out.tolist()]
        [1.0, 0.54, -1.0]

    Source: Grant et al. (2019), https://arxiv.org/abs/1903.05076
    """
    half = getattr(layer, "mirrored", None)
    if half is None:
        raise ValueError(
            "identity blocks need a circuit of mirrored halves: QuantumLayer(n_qubits, depth, mirrored=1)"
        )
    uniform_angles_(layer, generator=generator)
    for block in range(0, layer.depth, 2 * half):
        for k in range(half):
            layer.weights[block + 2 * half - 1 - k].copy_(-layer.weights[block + k])


def _angles(target: nn.Module | Tensor) -> list[Tensor]:
    if isinstance(target, nn.Module):
        return list(target.parameters())
    if isinstance(target, Tensor):
        return [target]
    raise TypeError(f"angles are of a module or a tensor, got {type(target).__name__}")
