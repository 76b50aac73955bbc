"""A circuit that grows: which layers are at work, which are frozen, and how it is taken up again."""

import pytest
import torch

import steadygrad as sg
from steadygrad.quantum import LayerwiseTraining, QuantumLayer, identity_blocks_


def stages(growth, layer, steps):
    seen = []
    for _ in range(steps):
        growth.step()
        seen.append((layer.active_depth, [k for k, w in enumerate(layer.weights) if w.requires_grad]))
    return seen


def test_layers_come_by_stages_and_train_together_at_last():
    layer = QuantumLayer(2, 5)
    growth = LayerwiseTraining(layer, steps=2, first=2, add=2)
    assert (layer.active_depth, [w.requires_grad for w in layer.weights]) == (
        2,
        [True, True, False, False, False],
    )
    assert stages(growth, layer, 8) == [
        (2, [0, 1]),
        (4, [2, 3]),
        (4, [2, 3]),
        (5, [4]),
        (5, [4]),
        (5, [0, 1, 2, 3, 4]),
        (5, [0, 1, 2, 3, 4]),
        (5, [0, 1, 2, 3, 4]),
    ]


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_frozen_layers_do_not_move_and_new_ones_begin_at_zero(kind):
    layer = QuantumLayer(2, 4, readout="pair")
    options = {"momentum": 0.9} if kind is torch.optim.SGD else {}
    optimizer = kind(layer.parameters(), lr=0.1, weight_decay=0.1, **options)
    growth = LayerwiseTraining(layer, steps=3)

    def step():
        optimizer.zero_grad()
        layer(torch.tensor([0.4, 0.8])).sum().backward()
        optimizer.step()
        return growth.step()

    first = [w.detach().clone() for w in layer.weights]
    assert [step() for _ in range(3)] == [2, 2, 4]
    trained = [w.detach().clone() for w in layer.weights]
    assert not torch.equal(trained[0], first[0])
    assert not trained[2].any() and not trained[3].any()
    step()
    assert torch.equal(layer.weights[0], trained[0]) and torch.equal(layer.weights[1], trained[1])
    assert layer.weights[2].any()


def test_fewer_layers_are_the_circuit_that_ends_there():
    deep, shallow = QuantumLayer(3, 6), QuantumLayer(3, 2)
    LayerwiseTraining(deep, steps=1)
    for a, b in zip(shallow.weights, deep.weights, strict=False):
        a.data.copy_(b)
    x = torch.rand(2, 3)
    assert torch.equal(deep(x), shallow(x))


@pytest.mark.parametrize("loaded_first", [False, True])
def test_taken_up_again_it_goes_on(loaded_first):
    layer = QuantumLayer(2, 6)
    growth = LayerwiseTraining(layer, steps=2)
    stages(growth, layer, 3)
    other = QuantumLayer(2, 6)
    again = None if loaded_first else LayerwiseTraining(other, steps=2)
    other.load_state_dict(layer.state_dict())
    again = again or LayerwiseTraining(other, steps=2)
    assert all(torch.equal(a, b) for a, b in zip(layer.weights, other.weights, strict=True))
    assert stages(again, other, 5) == stages(growth, layer, 5)


def test_a_rollback_takes_the_growth_back(tmp_path):
    """The guard goes back over the end of a stage: the layers of that time are at work, and it grows again."""
    torch.manual_seed(0)
    layer = QuantumLayer(3, 8)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    growth = LayerwiseTraining(layer, steps=10)
    depths = []
    with sg.watch(layer, optimizer, runs=tmp_path) as run:
        for step in range(45):
            x = torch.full((4, 3), 0.5) * (float("nan") if 19 <= step < 28 else 1.0)
            optimizer.zero_grad()
            layer(x).sum().backward()
            assert [w.grad is not None for w in layer.weights] == [w.requires_grad for w in layer.weights]
            optimizer.step()
            depths.append(growth.step())
    assert "rollback" in {action.action for action in run.actions}
    assert any(later < earlier for earlier, later in zip(depths, depths[1:], strict=False))
    assert depths[-1] > min(depths[20:])


def test_the_end_of_a_growth_is_loaded_and_freezing_is_the_users_again():
    done = QuantumLayer(2, 4)
    stages(LayerwiseTraining(done, steps=1), done, 5)
    layer = QuantumLayer(2, 4)
    LayerwiseTraining(layer, steps=1)
    layer.load_state_dict(done.state_dict())
    layer(torch.rand(2))
    assert all(w.requires_grad for w in layer.weights)
    layer.weights[0].requires_grad_(False)
    layer(torch.rand(2))
    assert not layer.weights[0].requires_grad


def test_a_mirrored_circuit_grows_by_blocks():
    layer = QuantumLayer(2, 8, mirrored=1)
    identity_blocks_(layer)
    with pytest.raises(
        ValueError, match="must be multiples of 2, the blocks of the mirrored circuit; got 3 and 2"
    ):
        LayerwiseTraining(layer, steps=1, first=3)
    growth = LayerwiseTraining(layer, steps=1)
    assert growth.step() == 4


def test_what_is_refused():
    layer = QuantumLayer(2, 3)
    with pytest.raises(ValueError, match="first must be at most the depth 3, got 4"):
        LayerwiseTraining(layer, steps=1, first=4)
    with pytest.raises(TypeError, match="must be a QuantumLayer, got Linear"):
        LayerwiseTraining(torch.nn.Linear(1, 1), steps=1)
    assert layer.active_depth == 3
    growth = LayerwiseTraining(layer, steps=1)
    layer.eval()
    with pytest.raises(RuntimeError, match="evaluation mode"):
        growth.step()
    assert growth.num_steps == 0
