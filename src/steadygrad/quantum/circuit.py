"""The gates of a hardware-efficient circuit, and what is read at its end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from torch import Tensor

from steadygrad.quantum._pennylane import pennylane

Readout = Literal["local", "pair", "global"]
READOUTS = ("local", "pair", "global")
ROTATIONS = 3  # of each qubit in a layer: about x, y, z


def circuit(n_qubits: int, readout: Readout) -> Callable[..., Any]:
    """``run(inputs, layers, mirrored)``: the readout of a circuit, simulated without noise and shots.

    ``inputs``: angles (..., n_qubits). ``layers``: for each layer its angles, (..., n_qubits, 3). ``mirrored``: for
    each layer whether its gates come in the reverse order. Leading dimensions of both are one batch of circuits.
    """
    qml = pennylane()
    device = qml.device("default.qubit", wires=n_qubits)

    @qml.qnode(device, interface="torch", diff_method="backprop")
    def run(inputs: Tensor, layers: Sequence[Tensor], mirrored: Sequence[bool]) -> Any:
        for qubit in range(n_qubits):
            qml.RY(inputs[..., qubit], wires=qubit)
        for angles, reverse in zip(layers, mirrored, strict=True):
            if reverse:
                entangle(qml, n_qubits)
                rotate(qml, angles, (qml.RZ, 2), (qml.RY, 1), (qml.RX, 0))
            else:
                rotate(qml, angles, (qml.RX, 0), (qml.RY, 1), (qml.RZ, 2))
                entangle(qml, n_qubits)
        return read(qml, n_qubits, readout)

    return run


def rotate(qml: Any, angles: Tensor, *gates: tuple[Any, int]) -> None:
    """Turn each qubit about three axes in this order."""
    for qubit in range(angles.shape[-2]):
        for gate, axis in gates:
            gate(angles[..., qubit, axis], wires=qubit)


def entangle(qml: Any, n_qubits: int) -> None:
    """Controlled Z between neighbours: its own inverse."""
    for qubit in range(n_qubits - 1):
        qml.CZ(wires=[qubit, qubit + 1])


def read(qml: Any, n_qubits: int, readout: Readout) -> Any:
    """What a circuit gives: expectations, or for a global readout one probability."""
    if readout == "local":
        return [qml.expval(qml.PauliZ(qubit)) for qubit in range(n_qubits)]
    if readout == "pair":
        return [qml.expval(qml.PauliZ(0) @ qml.PauliZ(1))]
    return [qml.expval(qml.Projector([0] * n_qubits, wires=range(n_qubits)))]
