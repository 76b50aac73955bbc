"""A circuit as a layer: what it computes, where it stands, and what is refused."""

import copy
import math
import pickle
import subprocess
import sys

import pennylane as qml
import pytest
import torch
from torch import nn

import steadygrad as sg
from steadygrad.quantum import QuantumLayer, identity_blocks_, run_together, small_angles_, uniform_angles_


def gates(n_qubits):
    """Rx, Ry, Rz and controlled Z as matrices of the whole register, built from their definitions."""
    paulis = {
        "x": torch.tensor([[0, 1], [1, 0]], dtype=torch.complex128),
        "y": torch.tensor([[0, -1j], [1j, 0]], dtype=torch.complex128),
        "z": torch.tensor([[1, 0], [0, -1]], dtype=torch.complex128),
    }

    def at(qubit, one):
        whole = torch.ones(1, 1, dtype=torch.complex128)
        for k in range(n_qubits):
            whole = torch.kron(whole, one if k == qubit else torch.eye(2, dtype=torch.complex128))
        return whole

    def turn(axis, angle, qubit):
        one = math.cos(angle / 2) * torch.eye(2) - 1j * math.sin(angle / 2) * paulis[axis]
        return at(qubit, one)

    zs = [at(k, paulis["z"]) for k in range(n_qubits)]
    unit = torch.eye(2**n_qubits, dtype=torch.complex128)
    entangle = unit
    for k in range(n_qubits - 1):
        entangle = (unit + zs[k] + zs[k + 1] - zs[k] @ zs[k + 1]) / 2 @ entangle
    return turn, zs, entangle


def by_matrices(layer, x):
    """The slow obvious twin: matrices times a vector."""
    n = layer.n_qubits
    turn, zs, entangle = gates(n)
    state = torch.zeros(2**n, dtype=torch.complex128)
    state[0] = 1
    for k in range(n):
        state = turn("y", float(x[k]), k) @ state
    for angles, reverse in zip(layer.weights, layer.reversed_layers, strict=True):
        if reverse:
            state = entangle @ state
        for k in range(n):
            for j in (2, 1, 0) if reverse else (0, 1, 2):
                state = turn("xyz"[j], float(angles[k, j].detach()), k) @ state
        if not reverse:
            state = entangle @ state
    if layer.readout == "global":
        return [float(state[0].abs() ** 2)]
    read = zs if layer.readout == "local" else [zs[0] @ zs[1]]
    return [float((state.conj() @ z @ state).real) for z in read]


@pytest.mark.parametrize("readout", ["local", "pair", "global"])
@pytest.mark.parametrize("mirrored", [None, 2])
def test_computes_what_its_matrices_do(readout, mirrored):
    layer = QuantumLayer(3, 4, readout=readout, mirrored=mirrored)
    uniform_angles_(layer, generator=torch.Generator().manual_seed(1))
    x = torch.rand(2, 5, 3) * 4 - 2
    out = layer(x)
    assert out.shape == (2, 5, 3 if readout == "local" else 1) and out.dtype == torch.float32
    for i in range(2):
        torch.testing.assert_close(out[i, 3].tolist(), by_matrices(layer, x[i, 3]), rtol=1e-5, atol=1e-6)


def test_gradients_are_those_of_differences():
    layer = QuantumLayer(3, 2, readout="global").double()
    uniform_angles_(layer)
    x = torch.rand(2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *w: layer(x), (x, *layer.weights))


def test_together_is_one_by_one():
    layers = [QuantumLayer(3, 2) for _ in range(4)]
    x = torch.tensor([0.3, 1.0, -0.5])
    torch.testing.assert_close(run_together(layers, x), torch.stack([layer(x) for layer in layers]))


def test_nonfinite_inputs_give_nan_of_their_sample_only():
    out = QuantumLayer(2, 1)(torch.tensor([[0.1, 0.2], [math.nan, 0.2], [math.inf, 0.0]]))
    assert out[0].isfinite().all() and out[1:].isnan().any(-1).all()


@pytest.mark.parametrize("readout", ["local", "pair", "global"])
def test_an_empty_batch_gives_an_empty_one(readout):
    layer = QuantumLayer(3, 2, readout=readout)
    x = torch.zeros(2, 0, 3, requires_grad=True)
    out = layer(x)
    assert out.shape == (2, 0, layer.outputs)
    out.sum().backward()
    assert x.grad.shape == x.shape


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes_agree_with_float32(dtype):
    layer = QuantumLayer(3, 2)
    other = copy.deepcopy(layer).to(dtype)
    x = torch.rand(4, 3)
    assert other(x).dtype == dtype
    torch.testing.assert_close(other(x.to(dtype)).float(), layer(x), rtol=0.02, atol=0.02)


def test_pickled_and_copied_it_is_the_same():
    layer = QuantumLayer(3, 2, readout="pair")
    x = torch.rand(4, 3)
    for other in (pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer)):
        assert torch.equal(other(x), layer(x)) and repr(other) == repr(layer)
        other.weights[0].data += 1
        assert not torch.equal(other(x), layer(x))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # dynamo's own, at a graph break
def test_a_compiled_hybrid_model_computes_the_same():
    model = hybrid()
    x = torch.rand(4, 4)
    compiled = torch.compile(model, backend="eager")
    torch.testing.assert_close(compiled(x), model(x))
    compiled(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_circuits_that_differ_do_not_run_together():
    with pytest.raises(ValueError, match="nothing but their angles"):
        run_together([QuantumLayer(3, 2), QuantumLayer(3, 2, readout="pair")], torch.zeros(3))


@pytest.mark.parametrize("half", [1, 2])
def test_identity_blocks_undo_themselves(half):
    layer = QuantumLayer(3, 8, mirrored=half)
    identity_blocks_(layer)
    x = torch.rand(4, 3)
    torch.testing.assert_close(layer(x), x.cos(), rtol=1e-4, atol=1e-5)
    assert all(bool((w != 0).all()) for w in layer.weights)


def test_small_angles_of_a_foreign_layer():
    device = qml.device("default.qubit", wires=2)

    @qml.qnode(device, interface="torch")
    def node(inputs, weights):
        qml.AngleEmbedding(inputs, wires=range(2))
        qml.StronglyEntanglingLayers(weights, wires=range(2))
        return [qml.expval(qml.PauliZ(k)) for k in range(2)]

    layer = qml.qnn.TorchLayer(node, {"weights": (200, 2, 3)})
    small_angles_(layer, locality=2)
    assert float(next(layer.parameters()).detach().std()) == pytest.approx((8 * 202) ** -0.5, rel=0.1)


def test_small_angles_know_their_layer():
    layer = QuantumLayer(8, 48, readout="global")  # locality 8: std 1 / 40
    small_angles_(layer)
    assert float(torch.stack(list(layer.weights)).detach().std()) == pytest.approx(1 / 40, rel=0.1)


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda: QuantumLayer(1, 1), ValueError, "n_qubits must be at least 2, got 1"),
        (lambda: QuantumLayer(2, 0), ValueError, "depth must be at least 1, got 0"),
        (lambda: QuantumLayer(2, 2, readout="all"), ValueError, "readout must be one of local, pair, global"),
        (lambda: QuantumLayer(2, 6, mirrored=2), ValueError, "multiple of 4.*got 6"),
        (lambda: QuantumLayer(2, 1)(torch.zeros(3, 4)), ValueError, r"\(\.\.\., 2\).*got \(3, 4\)"),
        (lambda: QuantumLayer(2, 1)(torch.tensor(0.5)), ValueError, r"got \(\)"),
        (lambda: identity_blocks_(QuantumLayer(2, 2)), ValueError, "mirrored=1"),
        (lambda: small_angles_([1.0]), TypeError, "a module or a tensor, got list"),
        (lambda: small_angles_(torch.zeros(2), depth=0), ValueError, "depth must be at least 1"),
    ],
)
def test_what_is_refused(make, error, said):
    with pytest.raises(error, match=said):
        make()


def test_without_the_package_one_line_says_what_to_install():
    code = (
        "import sys; sys.modules['pennylane'] = None; import steadygrad as sg; sg.quantum.QuantumLayer(2, 1)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    assert last == "ImportError: quantum layers need PennyLane: pip install 'steadygrad[quantum]'"


def hybrid():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), QuantumLayer(3, 2), nn.Linear(3, 2))


def train(model, steps, poison=None, watched=None):
    """Cross entropy on two classes of points; the input of one step can be poisoned."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    draws = torch.Generator().manual_seed(1)
    losses = []
    with sg.watch(model, optimizer, runs=watched) if watched else torch.enable_grad():
        for step in range(steps):
            x = torch.randn(8, 4, generator=draws)
            y = (x[:, 0] * x[:, 1] > 0).long()
            if step == poison:
                x = x * math.nan
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    return losses


def test_a_watched_hybrid_model_is_bit_identical(tmp_path):
    plain, watched = hybrid(), hybrid()
    assert train(plain, 12) == train(watched, 12, watched=tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), watched.parameters(), strict=True))


def test_a_poisoned_step_of_a_hybrid_model_is_skipped(tmp_path):
    model = hybrid()
    losses = train(model, 8, poison=4, watched=tmp_path)
    assert math.isnan(losses[4]) and all(map(math.isfinite, losses[5:]))
    run = sg.Run(next(tmp_path.iterdir()))
    assert [(a.action, a.step) for a in run.actions() if a.action == "skip"] == [("skip", 4)]


def test_forecast_of_a_hybrid_model_leaves_it_alone():
    model = hybrid()
    before = [p.clone() for p in model.parameters()]
    batch = torch.randn(16, 4), torch.randint(0, 2, (16,))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    found = sg.forecast(model, nn.CrossEntropyLoss(), batch, optimizer)
    assert not found.will_fail
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
