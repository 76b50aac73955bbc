"""Filter response normalisation against loops over examples and channels."""

import math

import pytest
import torch

from steadygrad.nn.norm import FilterResponseNorm


@pytest.mark.parametrize("learn_eps", [False, True])
@pytest.mark.parametrize("positions", [(5,), (3, 4), (2, 3, 2)], ids=str)
def test_it_is_the_papers(positions, learn_eps):
    torch.manual_seed(0)
    layer = FilterResponseNorm(3, eps=1e-2, learn_eps=learn_eps, dtype=torch.float64)
    with torch.no_grad():
        for p in layer.parameters():
            p.normal_()
    x = torch.randn(2, 3, *positions).double()
    y = layer(x)
    eps = 1e-2 + (abs(layer.learned_eps.item()) if learn_eps else 0.0)
    for b in range(2):
        for c in range(3):
            values = x[b, c].flatten().tolist()
            root = math.sqrt(sum(v * v for v in values) / len(values) + eps)
            want = [
                max(layer.weight[c].item() * v / root + layer.bias[c].item(), layer.tau[c].item())
                for v in values
            ]
            torch.testing.assert_close(y[b, c].flatten(), torch.tensor(want).double())


def test_start_and_gradients():
    layer = FilterResponseNorm(3, learn_eps=True)
    assert {n: p.flatten()[0].item() for n, p in layer.named_parameters()} == {
        "weight": 1.0,
        "bias": 0.0,
        "tau": 0.0,
        "learned_eps": pytest.approx(1e-4),
    }
    x = torch.randn(2, 3, 4).double().requires_grad_()
    assert torch.autograd.gradcheck(FilterResponseNorm(3, 1e-2, learn_eps=True, dtype=torch.float64), (x,))


def test_zero_and_scale():
    layer = FilterResponseNorm(3, eps=1e-12)
    x = torch.randn(2, 3, 4)
    torch.testing.assert_close(layer(x * 1000), layer(x))
    assert (layer(torch.zeros(2, 3, 4)) == 0).all()


def test_bad_input_is_refused():
    for shape in ((2, 3), (2, 4, 5)):
        with pytest.raises(ValueError, match=r"\(N, 3, \*positions\)"):
            FilterResponseNorm(3)(torch.zeros(shape))
    with pytest.raises(ValueError, match="num_features must be 0 or more, got -1"):
        FilterResponseNorm(-1)
    with pytest.raises(ValueError, match="eps must be positive and finite, got inf"):
        FilterResponseNorm(3, eps=math.inf)
