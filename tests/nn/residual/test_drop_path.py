"""Stochastic depth: torchvision's and timm's formula, the expectation, the rule over depth."""

from __future__ import annotations

import pytest
import torch

from steadygrad.nn.residual import DropPath, drop_path, drop_path_rates


def as_torchvision_does(x, p):
    """Its formula, mode "row", example by example: zero or x / (1 - p)."""
    survives = torch.empty([x.shape[0]] + [1] * (x.dim() - 1), dtype=x.dtype).bernoulli_(1 - p)
    rows = [
        torch.zeros_like(row) if not bool(s) else row * (1 / (1 - p))
        for row, s in zip(x, survives, strict=True)
    ]
    return torch.stack(rows)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("shape", [(64,), (64, 3), (64, 3, 4, 2)])
def test_is_the_known_formula(p, shape):
    x = torch.randn(shape, dtype=torch.float64)
    torch.manual_seed(3)
    wanted = as_torchvision_does(x, p)
    torch.manual_seed(3)
    torch.testing.assert_close(drop_path(x, p), wanted, rtol=1e-14, atol=0)


def test_keeps_the_expectation():
    torch.manual_seed(0)
    x = torch.full((40_000, 1), 3.0)
    mean = drop_path(x, 0.3).mean().item()
    assert abs(mean - 3.0) < 4 * 3.0 * (0.3 / 0.7 / 40_000) ** 0.5  # four standard errors


def test_one_draw_for_each_example_along_any_dimension():
    torch.manual_seed(0)
    out = drop_path(torch.ones(7, 50, 3), 0.5, batch_dim=1)
    for example in out.unbind(1):
        assert len(example.unique()) == 1
    assert len(out.unique()) == 2
    assert torch.equal(drop_path(torch.ones(4, 3), 1.0, batch_dim=-2), torch.zeros(4, 3))


def test_nothing_to_drop_is_the_input_itself_and_draws_no_number():
    x, state = torch.ones(3), torch.get_rng_state()
    assert drop_path(x, 0.0) is x and drop_path(x, 0.7, training=False) is x and DropPath(0.7).eval()(x) is x
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_keeps_the_dtype(dtype):
    assert drop_path(torch.ones(8, 2, dtype=dtype), 0.5).dtype == dtype


def test_empty_and_non_finite():
    assert drop_path(torch.ones(0, 3), 0.5).shape == (0, 3)
    out = drop_path(torch.full((50, 1), float("inf")), 0.5)
    assert not out.isfinite().any()  # inf where kept, nan where dropped


def test_rates_rise_linearly_to_the_last_block():
    assert drop_path_rates(5, 0.5) == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
    assert drop_path_rates(0, 0.5) == [] and drop_path_rates(1, 0.2) == [0.2]


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan")])
def test_refuses_a_rate_outside_0_to_1(p):
    for call in (lambda: drop_path(torch.ones(2), p), lambda: DropPath(p), lambda: drop_path_rates(2, p)):
        with pytest.raises(ValueError, match="p must be between 0 and 1"):
            call()


def test_refuses_other_nonsense():
    with pytest.raises(ValueError, match="batch_dim must be a dimension of the input, got 2"):
        drop_path(torch.ones(2, 2), 0.5, batch_dim=2)
    with pytest.raises(ValueError, match="num_blocks must be at least 0, got -1"):
        drop_path_rates(-1, 0.5)
    with pytest.raises(TypeError, match="p must be a number"):
        DropPath("0.5")
