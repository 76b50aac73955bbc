"""A quantum circuit as a layer of a torch model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from steadygrad import _check
from steadygrad.quantum.circuit import READOUTS, ROTATIONS, Readout, circuit
from steadygrad.quantum.initialisers import small_angles_

CIRCUIT = ("_circuit", "_outside")  # attributes that are made, not saved


class QuantumLayer(nn.Module):
    """A hardware-efficient quantum circuit between torch layers, simulated, with exact gradients.

    Each input is the angle of a rotation of its qubit about y; then ``depth`` times rotations of every qubit about x, y
    and z by trained angles, and controlled Z gates between neighbours; at the end what is read.

    When to use it: hybrid models, and to see in simulation whether a circuit can be trained before it costs time on a
    device. For other gates use `pennylane.qnn.TorchLayer`; the initialisers and the forecast take it as well.

    Values in use: up to a dozen qubits on a CPU. ``readout="local"`` unless the global one is the question: its
    gradient vanishes with the number of qubits even in shallow circuits.

    Cost: of order ``depth * n_qubits * 2 ** n_qubits`` a sample, and memory for as many numbers.

    Args:
        n_qubits: at least 2; inputs are (..., n_qubits), in radians.
        depth: layers of trained gates, at least 1.
        readout: "local": <Z> of each qubit, output (..., n_qubits); "pair": <Z Z> of the first two, (..., 1); "global":
            the probability that all are 0, (..., 1).
        mirrored: None, or m: the circuit is made of blocks of 2 m layers, of which the second m have their gates in
            reverse order, so that `identity_blocks_` can undo the first; ``depth`` is a multiple of 2 m.
        generator: of the first angles, which are `small_angles_`.

    ``weights[k]`` has the angles of layer k, (n_qubits, 3). All layers run, unless `LayerwiseTraining` says less (the
    buffer ``growth``). nan and inf among the inputs make their sample's outputs nan; an empty batch gives an empty one.
    Simulated in double precision; outputs have the dtype of the angles. Under ``torch.compile`` the circuit breaks the
    graph.

    Raises ImportError without PennyLane (``pip install 'steadygrad[quantum]'``), ValueError and TypeError on bad
    arguments and on inputs of another width.

    Example:
        >>> import steadygrad as sg
        >>> layer = sg.quantum.QuantumLayer(2, depth=1)
        >>> for angles in layer.weights:
        ...     _ = nn.init.zeros_(angles)
        >>> layer(torch.tensor([[0.0, torch.pi]])).round(decimals=3).tolist()
        [[1.0, -1.0]]

    Source: Kandala et al. (2017), the hardware-efficient circuit, https://arxiv.org/abs/1704.05018; Cerezo et al.
    (2021), global and local readout, https://arxiv.org/abs/2001.00550
    """

    growth: Tensor  # steps of a layer-wise training, or -1; layers that are frozen; layers that run

    def __init__(
        self,
        n_qubits: int,
        depth: int,
        *,
        readout: Readout = "local",
        mirrored: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.n_qubits = _check.count("n_qubits", n_qubits, 2)
        self.depth = _check.count("depth", depth)
        _check.one_of("readout", readout, READOUTS)
        self.readout: Readout = readout
        self.mirrored = None if mirrored is None else _check.count("mirrored", mirrored)
        if self.mirrored is not None and self.depth % (2 * self.mirrored):
            raise ValueError(
                f"depth must be a multiple of {2 * self.mirrored}, two halves of {self.mirrored}; got {depth}"
            )
        self._make_circuit()
        self.weights = nn.ParameterList(torch.zeros(self.n_qubits, ROTATIONS) for _ in range(self.depth))
        self.register_buffer("growth", torch.tensor([-1, 0, self.depth]))
        self._settled = 0, self.depth
        small_angles_(self, generator=generator)

    @property
    def reversed_layers(self) -> list[bool]:
        """For each layer whether its gates come in the reverse order."""
        half = self.mirrored or self.depth
        return [k // half % 2 == 1 for k in range(self.depth)]

    @property
    def locality(self) -> int:
        """Qubits that one output is read from."""
        return {"local": 1, "pair": 2}.get(self.readout, self.n_qubits)

    @property
    def outputs(self) -> int:
        """Numbers that are read."""
        return self.n_qubits if self.readout == "local" else 1

    @property
    def active_depth(self) -> int:
        """Layers that run."""
        return int(self.growth[2])

    def _make_circuit(self) -> None:
        self._circuit = circuit(self.n_qubits, self.readout)
        self._outside = torch.compiler.disable(self._forward)  # dynamo cannot follow PennyLane

    def forward(self, x: Tensor) -> Tensor:
        return self._outside(x)

    def _forward(self, x: Tensor) -> Tensor:
        if x.dim() == 0 or x.shape[-1] != self.n_qubits:
            raise ValueError(
                f"inputs must be (..., {self.n_qubits}), an angle for each qubit; got {tuple(x.shape)}"
            )
        if x.numel() == 0:
            return x[..., : self.outputs].to(self.weights[0].dtype)
        found = self.run(x.reshape(-1, self.n_qubits), list(self.weights))
        return found.reshape(*x.shape[:-1], self.outputs)

    def run(self, inputs: Tensor, weights: Sequence[Tensor]) -> Tensor:
        """The outputs (batch, outputs) with these angles, which may have the batch before them."""
        self.settle()
        depth, dtype = self.active_depth, weights[0].dtype
        angles = [w.to(torch.promote_types(w.dtype, torch.float32)) for w in weights[:depth]]
        inputs = inputs.to(torch.promote_types(inputs.dtype, torch.float32))
        return torch.stack(list(self._circuit(inputs, angles, self.reversed_layers[:depth])), -1).to(dtype)

    def settle(self) -> None:
        """Freeze what a layer-wise training has frozen, also after a rollback or a load has put its count elsewhere."""
        _, frozen, active = self.growth.tolist()
        if (frozen, active) == self._settled:
            return
        self._settled = frozen, active
        for k, angles in enumerate(self.weights):
            at_work = frozen <= k < active
            if angles.requires_grad != at_work:
                angles.requires_grad_(at_work)
            if not at_work:
                angles.grad = None

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name not in CIRCUIT}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._make_circuit()

    def extra_repr(self) -> str:
        said = f"n_qubits={self.n_qubits}, depth={self.depth}, readout={self.readout!r}"
        return said if self.mirrored is None else f"{said}, mirrored={self.mirrored}"


def run_together(layers: Sequence[QuantumLayer], inputs: Tensor) -> Tensor:
    """Circuits of one make, each with its own angles, in one pass: (n_qubits,) -> (layers, outputs).

    Raises ValueError if they differ in more than their angles.
    """
    if not alike(layers):
        raise ValueError("circuits that run together must differ in nothing but their angles")
    weights = [torch.stack(same) for same in zip(*(layer.weights for layer in layers), strict=True)]
    return layers[0].run(inputs.expand(len(layers), -1), weights)


def alike(modules: Sequence[nn.Module]) -> bool:
    """Whether these are plain quantum layers of one make, without hooks."""
    return len({_make(module) for module in modules}) == 1 and _make(modules[0]) is not None


def _make(module: nn.Module) -> tuple[Any, ...] | None:
    if type(module) is not QuantumLayer or module._forward_hooks or module._forward_pre_hooks:
        return None
    return (module.n_qubits, module.depth, module.readout, module.mirrored, *module.growth[1:].tolist())
