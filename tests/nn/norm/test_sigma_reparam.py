"""Sigma-reparametrisation against the exact singular value, and what zero, huge and non-finite weights do to it."""

import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from steadygrad.nn.norm import SigmaReparam, sigma_reparam
from steadygrad.nn.norm.sigma_reparam import length, power_iteration

LAYERS = {
    "linear": (lambda: nn.Linear(40, 30), (5, 40), 0),
    "conv": (lambda: nn.Conv2d(6, 8, 3, groups=2), (5, 6, 8, 8), 0),
    "transposed": (lambda: nn.ConvTranspose1d(6, 8, 3), (5, 6, 8), 1),
}
layers = pytest.mark.parametrize(("make", "shape", "dim"), LAYERS.values(), ids=LAYERS)


def sigma(weight, dim=0):
    """The largest singular value of (outputs, inputs x kernel), by decomposition."""
    return torch.linalg.svdvals(weight.detach().double().movedim(dim, 0).flatten(1))[0]


@layers
def test_the_spectral_norm_is_gamma(make, shape, dim):
    torch.manual_seed(0)
    layer = sigma_reparam(make())
    assert layer.parametrizations.weight[0].gamma == 1
    for _ in range(2):
        torch.testing.assert_close(sigma(layer.weight, dim), torch.tensor(1.0).double(), rtol=1e-4, atol=0)
        layer.eval()
    with torch.no_grad():
        layer.parametrizations.weight[0].gamma.fill_(2.5)
    torch.testing.assert_close(sigma(layer.weight, dim), torch.tensor(2.5).double(), rtol=1e-4, atol=0)


@pytest.mark.parametrize("training", [True, False])
@layers
def test_keep_function(make, shape, dim, training):
    torch.manual_seed(0)
    layer = make().train(training)
    x, weight = torch.randn(shape), layer.weight.detach().clone()
    want = layer(x)
    sigma_reparam(layer, keep_function=True)
    assert layer.training == training and layer.parametrizations.weight[0].training == training
    for _ in range(3 if training else 1):
        torch.testing.assert_close(layer(x), want, rtol=1e-5, atol=1e-6)
    if not training:
        assert torch.equal(layer.weight, weight), "gamma / sigma is exactly 1"
    assert abs(layer.parametrizations.weight[0].gamma - sigma(weight, dim)) < 1e-3 * sigma(weight, dim)


def test_power_iteration_follows_the_weight_in_training_only():
    torch.manual_seed(0)
    layer = sigma_reparam(nn.Linear(20, 20))
    p = layer.parametrizations.weight
    with torch.no_grad():
        p.original.copy_(torch.randn(20, 20))
    frozen = p[0].v.clone()
    layer.eval()(torch.randn(2, 20))
    assert torch.equal(p[0].v, frozen)
    layer.train()
    for _ in range(300):
        layer(torch.randn(2, 20))
    torch.testing.assert_close(sigma(layer.weight), torch.tensor(1.0).double(), rtol=1e-3, atol=0)
    torch.testing.assert_close(p[0].v.norm(), torch.tensor(1.0))


def test_gradient_is_that_of_the_exact_form():
    """v found to the last digit: the gradient through sigma is then u v^T, as autograd has it for the norm."""
    torch.manual_seed(0)
    weight = torch.randn(4, 5).double()
    reparam = SigmaReparam(weight).double().eval()
    reparam.v.copy_(torch.linalg.svd(weight).Vh[0])
    probe = torch.randn(4, 5).double()
    a, b = weight.clone().requires_grad_(), weight.clone().requires_grad_()
    (reparam(a) * probe).sum().backward()
    (b / torch.linalg.matrix_norm(b, 2) * probe).sum().backward()
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close((a.grad * weight).sum(), torch.zeros(()).double(), rtol=0, atol=1e-9)
    assert torch.autograd.gradcheck(reparam, (a,))


@pytest.mark.parametrize("bad", [math.nan, math.inf, 0.0])
def test_v_is_never_poisoned(bad):
    torch.manual_seed(0)
    layer, clean = sigma_reparam(nn.Linear(6, 5)), sigma_reparam(nn.Linear(6, 5))
    clean.load_state_dict(layer.state_dict())
    p, x = layer.parametrizations.weight, torch.randn(2, 6)
    good, v = p.original.detach().clone(), p[0].v.clone()
    with torch.no_grad():
        if bad == 0:
            p.original.zero_()
        else:
            p.original[1, 2] = bad
    y = layer(x)
    assert torch.equal(p[0].v, v)
    if bad == 0:
        torch.testing.assert_close(y, layer.bias.expand(2, 5))
        y.sum().backward()
        assert p.original.grad.isfinite().all() and p.original.grad.abs().sum() > 0
    else:
        assert y.isnan().all(), "a non-finite weight is never hidden"
    with torch.no_grad():
        p.original.copy_(good)
    for _ in range(3):
        assert torch.equal(layer(x), clean(x)), "as if the bad step had not been"


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_huge_and_tiny_weights(scale):
    """Finite weights whose squares leave float32."""
    torch.manual_seed(0)
    layer = nn.Linear(6, 5, bias=False)
    want = sigma_reparam(nn.Linear(6, 5, bias=False))
    want.weight = layer.weight.detach().clone()
    with torch.no_grad():
        layer.weight.mul_(scale)
    sigma_reparam(layer)
    x = torch.randn(2, 6)
    torch.testing.assert_close(layer(x), want(x), rtol=1e-4, atol=1e-5)


def test_assigned_weights_find_their_vector_at_once():
    torch.manual_seed(0)
    layer = sigma_reparam(nn.Linear(20, 20)).eval()
    layer.weight = torch.randn(20, 20)
    torch.testing.assert_close(sigma(layer.weight), torch.tensor(1.0).double(), rtol=1e-4, atol=0)
    v = layer.parametrizations.weight[0].v.clone()
    layer.weight = torch.full((20, 20), math.nan)
    assert torch.equal(layer.parametrizations.weight[0].v, v)


def test_a_first_vector_that_is_orthogonal_to_the_row_sums_is_found():
    layer = nn.Linear(2, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[3.0, -3.0], [1.0, 1.0]]))
    sigma_reparam(layer, keep_function=True)
    assert abs(layer.parametrizations.weight[0].gamma - 18**0.5) < 1e-5


def test_half_precision_weights_compute_sigma_in_float32():
    torch.manual_seed(0)
    layer = sigma_reparam(nn.Linear(64, 64, dtype=torch.bfloat16))
    reparam = layer.parametrizations.weight[0]
    assert reparam.v.dtype == reparam.gamma.dtype == torch.float32 and layer.weight.dtype == torch.bfloat16
    torch.testing.assert_close(sigma(layer.weight), torch.tensor(1.0).double(), rtol=2e-3, atol=0)


def test_no_random_number_is_drawn_at_the_switch():
    layer = nn.Linear(6, 5)
    rng = torch.get_rng_state()
    sigma_reparam(layer)
    assert torch.equal(torch.get_rng_state(), rng)


def test_compiled_gradients_are_those_of_the_vector_that_the_forward_pass_found():
    """v far from the singular vector, so that one iteration more in the backward pass would show."""
    torch._dynamo.reset()
    grads = []
    for compiled in (True, False):
        torch.manual_seed(0)
        layer = sigma_reparam(nn.Linear(20, 20))
        original = layer.parametrizations.weight.original
        with torch.no_grad():
            original.copy_(torch.randn(20, 20))
        x = torch.randn(2, 20)
        call = torch.compile(layer, fullgraph=True, backend="aot_eager") if compiled else layer
        call(x).square().sum().backward()
        grads.append(original.grad)
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-4, atol=1e-6)


def test_attention_and_removal():
    attention = sigma_reparam(nn.MultiheadAttention(8, 2), name="in_proj_weight", keep_function=True)
    x = torch.randn(3, 2, 8)
    assert attention(x, x, x)[0].shape == (3, 2, 8)
    layer = sigma_reparam(nn.Linear(6, 5)).eval()
    fused = layer.weight.detach().clone()
    parametrize.remove_parametrizations(layer, "weight")
    assert torch.equal(layer.weight, fused) and type(layer) is nn.Linear


def test_power_iteration_and_length():
    matrix = torch.diag(torch.tensor([1.0, 3.0, 2.0]))
    v = power_iteration(matrix, torch.full((3,), 3**-0.5), 40)
    torch.testing.assert_close(v, torch.tensor([0.0, 1.0, 0.0]), rtol=0, atol=1e-5)
    assert torch.equal(power_iteration(torch.zeros(3, 3), v), v)
    assert length(torch.tensor([3e30, 4e30])) == pytest.approx(5e30)
    assert length(torch.zeros(2)) == 0
    assert length(torch.tensor([math.nan, 1.0])).isnan() and not length(torch.tensor([math.inf])).isfinite()


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        (lambda w: w.zero_(), {}, "finite and not all 0"),
        (lambda w: w[0].fill_(math.nan), {}, "finite and not all 0"),
        (lambda w: w, {"n_power_iterations": 0}, "n_power_iterations must be at least 1, got 0"),
        (lambda w: w, {"name": "kernel"}, "Linear has no tensor 'kernel'"),
        (lambda w: w, {"name": "bias"}, "two dimensions or more"),
    ],
)
def test_what_has_no_sigma_is_refused(change, settings, message):
    layer = nn.Linear(6, 5)
    with torch.no_grad():
        change(layer.weight)
    with pytest.raises(ValueError, match=message):
        sigma_reparam(layer, **settings)
    assert type(layer) is nn.Linear
    with pytest.raises(ValueError, match="finite and not all 0"):
        SigmaReparam(torch.zeros(0, 3))
