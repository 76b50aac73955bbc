"""Norms behind layers: what torch's own would give, in training and evaluation, and gone without a trace."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from steadygrad.repair.effects.effect import NotApplicable
from tests.repair.effects.stepping import trains, upon

pytestmark = pytest.mark.usefixtures("apart")


def convolutional():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5), nn.ReLU(), nn.Linear(5, 2)
    )


def test_layer_norm_is_that_of_torch():
    model, x = convolutional(), torch.randn(6, 1, 8, 8)
    plain = copy.deepcopy(model)
    h = F.relu(F.group_norm(plain[0](x), 1)).flatten(1)
    wanted = plain[5](F.relu(F.layer_norm(plain[3](h), (5,))))
    with upon({"layer_norm": {"modules": ["0", "3"]}}) as run:
        trains(model)
        assert torch.equal(model(x), wanted)
        with torch.no_grad():
            assert torch.equal(model.eval()(x), wanted)
        assert torch.allclose(model(x[0:1])[0], wanted[0], atol=1e-6)
        run.change.remove()
        assert torch.equal(model(x), plain(x))
    assert list(model.state_dict()) == list(plain.state_dict())


def test_batch_norm_is_that_of_torch_and_evaluates_by_running_averages():
    model, x = convolutional(), torch.randn(6, 1, 8, 8)
    norm2, norm1 = nn.BatchNorm2d(4, affine=False), nn.BatchNorm1d(5, affine=False)
    saved, layers = (
        pickle.dumps(model),
        list(copy.deepcopy(model)),
    )  # a copy that lives would get the norm too
    twin = nn.Sequential(layers[0], norm2, *layers[1:4], norm1, *layers[4:])
    with upon({"batch_norm": {"modules": ["0", "3"]}}) as run:
        trains(model)
        for _ in range(3):
            x = torch.randn(6, 1, 8, 8)
            assert torch.allclose(model(x), twin(x), atol=1e-5)
        assert torch.allclose(model.eval()(x), twin.eval()(x), atol=1e-5)
        assert list(model.state_dict()) == list(pickle.loads(saved).state_dict())
        run.change.remove()
    assert not dict(model[0].named_buffers())
    assert torch.equal(model(x), pickle.loads(saved).eval()(x))


def test_batch_norm_stands_sequences_and_single_samples():
    model = nn.Sequential(nn.Linear(3, 4))
    with upon({"batch_norm": {"modules": ["0"]}}):
        trains(model)
        out = model(torch.randn(5, 7, 3))
        assert out.mean((0, 1)).abs().max() < 1e-6
        assert model(torch.randn(1, 3)).isfinite().all()


def test_batch_norm_stands_single_images():
    image = nn.Sequential(nn.Conv2d(1, 4, 3))
    with upon({"batch_norm": {"modules": ["0"]}}):
        trains(image)
        assert image(torch.randn(1, 8, 8)).shape == (4, 6, 6)


def test_a_batch_norm_put_behind_trained_weights_keeps_the_function_on_the_first_batch():
    model, x = convolutional(), torch.randn(64, 1, 8, 8) * 3 + 1
    before = model(x).detach()
    with upon({"batch_norm": {"modules": ["0", "3"], "preserve": True}}):
        trains(model)
        assert torch.allclose(model(x), before, atol=1e-4)
        assert torch.allclose(model.eval()(x), before, atol=1e-2)
        model.train()
        other = model(torch.randn(64, 1, 8, 8) * 30)
        assert other.std() < 5 * before.std()  # it is a norm


@pytest.mark.parametrize("key", ["layer_norm", "batch_norm"])
def test_copies_and_pickles_of_the_model_have_the_norm(key):
    model, x = convolutional(), torch.randn(6, 1, 8, 8)
    with upon({key: {"modules": ["0"]}}):
        trains(model)
        out = model(x)
        assert torch.allclose(copy.deepcopy(model)(x), out)
        assert torch.allclose(pickle.loads(pickle.dumps(model))(x), out)


def test_a_layer_norm_of_one_unit_is_refused():
    model = nn.Sequential(nn.Linear(3, 1))
    with upon({"layer_norm": {"modules": ["0"]}}), pytest.raises(NotApplicable, match="one unit"):
        trains(model)
        model(torch.randn(2, 3))


@pytest.mark.parametrize("key", ["layer_norm", "batch_norm"])
def test_a_target_network_has_the_norm_too(key):
    model, x = convolutional(), torch.randn(6, 1, 8, 8)
    target, other = copy.deepcopy(model).requires_grad_(False), convolutional().requires_grad_(False)
    before = other(x)
    with upon({key: {"modules": ["0", "3"]}}) as run:
        trains(model)
        assert torch.allclose(model(x), target(x))
        assert torch.equal(other(x), before)
        run.change.remove()
        assert torch.equal(model(x), target(x))
