"""Scaled weight standardisation: timm's formula, the papers' sums, and the parametrization."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from steadygrad.nn.norm import WeightStandardisation, standardise_weight, weight_standardisation


def timms(weight, gain, gamma, eps):
    """timm's way: a batch norm over one example whose channels are the outputs."""
    scale = gamma * weight[0].numel() ** -0.5
    return F.batch_norm(
        weight.reshape(1, len(weight), -1),
        None,
        None,
        weight=gain * scale,
        training=True,
        momentum=0.0,
        eps=eps,
    ).reshape_as(weight)


@pytest.mark.parametrize("shape", [(5, 7), (4, 3, 2), (4, 3, 3, 2), (2, 3, 2, 2, 2)], ids=str)
def test_it_is_timms(shape):
    weight, gain = torch.randn(shape) * 3 + 1, torch.rand(shape[0])
    torch.testing.assert_close(
        standardise_weight(weight, 1.7 * gain, eps=1e-5), timms(weight, gain, 1.7, 1e-5), rtol=1e-5, atol=1e-6
    )


def test_it_is_the_papers():
    w = np.random.default_rng(0).normal(2.0, 3.0, (4, 9))
    want = np.empty_like(w)
    for i, row in enumerate(w):
        want[i] = 1.5 * (row - row.mean()) / (math.sqrt(len(row)) * row.std())
    got = standardise_weight(torch.from_numpy(w), 1.5, eps=1e-15)
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-10)
    plain = standardise_weight(torch.from_numpy(w), gain=3.0, eps=1e-15)  # sqrt(9)
    np.testing.assert_allclose(plain.std(1, correction=0).numpy(), 1.0, rtol=1e-10)


def test_unit_inputs_give_outputs_of_mean_square_gain_squared():
    torch.manual_seed(0)
    x = torch.randn(4000, 64) + 3.0  # the mean of the inputs is not passed on
    y = F.linear(x, standardise_weight(torch.randn(64, 64) + 1, gain=2.0))
    assert y.mean().abs() < 0.1 and abs(y.square().mean().sqrt() - 2.0) < 0.1


def test_gradients_and_edge_values():
    w = torch.randn(3, 4).double().requires_grad_()
    gain = torch.rand(3).double().requires_grad_()
    assert torch.autograd.gradcheck(standardise_weight, (w, gain))
    assert (standardise_weight(torch.full((2, 4), 3.0)) == 0).all()
    assert standardise_weight(torch.zeros(0, 4)).shape == (0, 4)
    assert standardise_weight(torch.zeros(4, 0)).shape == (4, 0)
    bad = torch.randn(3, 4)
    bad[1, 0] = math.nan
    assert standardise_weight(bad).isnan().any(1).tolist() == [False, True, False]
    half = torch.randn(3, 400).bfloat16()
    exact = standardise_weight(half.double())
    torch.testing.assert_close(standardise_weight(half).double(), exact, rtol=0.004, atol=1e-6)
    with pytest.raises(ValueError, match="eps must be positive and finite, got 0"):
        standardise_weight(bad, eps=0)
    with pytest.raises(ValueError, match="dim must lie within the 2 dimensions"):
        standardise_weight(bad, dim=2)


LAYERS = {
    "linear": (lambda: nn.Linear(6, 4), (5, 6), 0),
    "conv1d": (lambda: nn.Conv1d(6, 4, 3), (5, 6, 8), 0),
    "conv2d": (lambda: nn.Conv2d(6, 4, 3, groups=2), (5, 6, 8, 8), 0),
    "conv3d": (lambda: nn.Conv3d(6, 4, 2), (5, 6, 4, 4, 4), 0),
    "transposed": (lambda: nn.ConvTranspose2d(6, 4, 3), (5, 6, 8, 8), 1),
}


@pytest.mark.parametrize(("make", "shape", "dim"), LAYERS.values(), ids=LAYERS)
def test_helper(make, shape, dim):
    layer = make()
    original = layer.weight.detach().clone()
    assert weight_standardisation(layer, gamma=1.3) is layer
    inputs = [d for d in range(original.dim()) if d != dim]
    num_inputs = original.numel() // original.shape[dim]
    torch.testing.assert_close(layer.weight.mean(inputs), torch.zeros(4), rtol=0, atol=1e-6)
    rms = layer.weight.square().mean(inputs).sqrt()
    torch.testing.assert_close(rms * num_inputs**0.5, torch.full((4,), 1.3), rtol=1e-3, atol=0)
    layer(torch.randn(shape)).square().sum().backward()
    p = layer.parametrizations.weight
    assert (
        torch.equal(p.original, original) and p.original.grad.abs().sum() > 0 and p[0].gain.grad.shape == (4,)
    )
    # the gain is the size: along the weight itself there is no gradient
    assert (p.original.grad * p.original).sum().abs() < 1e-2 * (p.original.grad.norm() * p.original.norm())


def test_helper_settings():
    plain = weight_standardisation(nn.Linear(64, 4), scaled=False, learn_gain=False)
    torch.testing.assert_close(plain.weight.std(1, correction=0), torch.ones(4), rtol=1e-3, atol=0)
    assert [n for n, _ in plain.named_parameters()] == ["bias", "parametrizations.weight.original"]
    new = torch.randn(4, 64)
    plain.weight = new
    assert torch.equal(plain.parametrizations.weight.original, new)
    fused = plain.weight.detach().clone()
    parametrize.remove_parametrizations(plain, "weight")
    assert torch.equal(plain.weight, fused) and type(plain) is nn.Linear
    recurrent = weight_standardisation(nn.RNNCell(3, 4), name="weight_hh")
    assert recurrent(torch.randn(2, 3)).shape == (2, 4)


@pytest.mark.parametrize(
    ("layer", "settings", "message"),
    [
        (nn.Linear(1, 4), {}, "has one input, which has no variance"),
        (nn.Conv2d(4, 4, 1, groups=4), {}, "has one input"),
        (nn.ConvTranspose1d(4, 4, 3, groups=2), {}, "groups=2.*leave this layer out"),
        (nn.Linear(3, 4), {"name": "weights"}, "Linear has no tensor 'weights'"),
        (nn.LayerNorm(3), {}, "two dimensions or more"),
        (nn.Linear(3, 4), {"gamma": math.inf}, "gamma must be finite, got inf"),
        (nn.Linear(3, 4), {"eps": 0.0}, "eps must be positive"),
    ],
)
def test_what_has_no_meaning_is_refused(layer, settings, message):
    before = repr(layer)
    with pytest.raises(ValueError, match=message):
        weight_standardisation(layer, **settings)
    assert repr(layer) == before


def test_parametrization_by_hand():
    layer = nn.Linear(6, 4)
    parametrize.register_parametrization(layer, "weight", WeightStandardisation(layer.weight))
    torch.testing.assert_close(layer.weight.norm(dim=1), torch.ones(4), rtol=1e-3, atol=0)
