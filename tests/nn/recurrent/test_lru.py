"""The linear recurrent unit: the scan equals the loop, the eigenvalues lie where they should, and stay inside."""

from __future__ import annotations

import math

import pytest
import torch

from steadygrad.nn.recurrent import LRU, linear_scan


def loop(lam, inputs, state):
    states = []
    for v in inputs:
        state = lam * state + v
        states.append(state)
    return torch.stack(states)


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 8, 9, 500])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
def test_scan_equals_the_loop(steps, dtype):
    lam = torch.randn(5, dtype=dtype)
    lam = (lam / lam.abs() * torch.tensor([0.2, 0.9, 0.999, 1.0, 0.0])).requires_grad_()
    inputs = torch.randn(steps, 3, 5, dtype=dtype, requires_grad=True)
    state = torch.randn(3, 5, dtype=dtype, requires_grad=True)
    above = torch.randn(steps, 3, 5, dtype=dtype)
    results = []
    for run in (linear_scan, loop):
        states = run(lam, inputs, state)
        results.append([states, *torch.autograd.grad(states, (lam, inputs, state), above)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_scan_gradcheck_and_empty():
    args = [torch.randn(s, dtype=torch.complex128, requires_grad=True) for s in ((3,), (5, 2, 3), (2, 3))]
    assert torch.autograd.gradcheck(linear_scan, args)
    assert linear_scan(torch.ones(3), torch.zeros(0, 2, 3), torch.ones(2, 3)).shape == (0, 2, 3)


def test_a_nan_in_the_scan_stays_in_its_entry():
    inputs = torch.randn(9, 2, 3)
    inputs[4, 1, 2] = math.nan
    states = linear_scan(torch.full((3,), 0.9), inputs, torch.zeros(2, 3))
    assert states.isnan().nonzero().tolist() == [[t, 1, 2] for t in range(4, 9)]


@pytest.mark.parametrize(("r_min", "r_max"), [(0.0, 1.0), (0.9, 0.999), (0.999, 0.9999)])
def test_eigenvalues_start_uniform_on_the_ring(r_min, r_max):
    lru = LRU(2, 3, state_size=20_000, r_min=r_min, r_max=r_max, max_phase=math.pi / 2)
    lam = lru.layers[0].eigenvalues(torch.float64)
    assert r_min * (1 - 1e-6) <= lam.abs().min() and lam.abs().max() <= r_max + 1e-6
    assert 0 <= lam.angle().min() and lam.angle().max() <= math.pi / 2 + 1e-6
    # uniform in area: |lambda|^2 and the phase are uniform
    for values, low, high in ((lam.abs().square(), r_min**2, r_max**2), (lam.angle(), 0.0, math.pi / 2)):
        place = (values.sort().values - low) / (high - low)
        ideal = torch.linspace(0, 1, len(place), dtype=torch.float64)
        assert (place - ideal).abs().max() < 0.02


@pytest.mark.parametrize("r_max", [0.9, 0.999])
def test_gamma_gives_the_state_the_variance_of_its_input(r_max):
    torch.manual_seed(1)
    lru = LRU(8, 4, state_size=64, r_min=r_max - 1e-3, r_max=r_max)
    _, h_n = lru(torch.randn(2500 if r_max > 0.99 else 100, 16, 8))
    assert h_n.abs().square().mean().item() == pytest.approx(
        1.0, rel=0.15
    )  # of B u, |B|^2 = 1 / input_size each


@pytest.mark.parametrize("shift", [-100.0, -10.0, 10.0, 50.0])
def test_no_parameter_makes_it_unstable(shift):
    """An update of any size leaves |lambda| at most 1, and the output of 2000 steps finite."""
    lru = LRU(2, 3, state_size=16)
    with torch.no_grad():
        lru.layers[0].nu_log.add_(shift)
        lru.layers[0].theta_log.add_(shift)
    assert lru.layers[0].eigenvalues().abs().max() <= 1.0
    x = torch.randn(2000, 1, 2)
    output, _ = lru(x)
    assert output.isfinite().all()
    output.square().mean().backward()
    assert lru.layers[0].nu_log.grad.isfinite().all()


def test_sizes_and_types():
    lru = LRU(3, 4, state_size=7, bidirectional=True, dtype=torch.float64)
    output, h_n = lru(torch.randn(5, 2, 3, dtype=torch.float64))
    assert output.shape == (5, 2, 8) and h_n.shape == (2, 2, 7) and h_n.dtype == torch.complex128
    real = torch.randn(2, 2, 7, dtype=torch.float64)
    torch.testing.assert_close(
        lru(torch.ones(5, 2, 3, dtype=torch.float64), real)[0],
        lru(torch.ones(5, 2, 3, dtype=torch.float64), real.to(torch.complex128))[0],
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"r_min": 0.9, "r_max": 0.5}, "0 <= r_min < r_max <= 1, got 0.9 and 0.5"),
        ({"r_max": 1.5}, "got 0.0 and 1.5"),
        ({"r_min": math.nan}, "r_min must be finite, got nan"),
        ({"max_phase": 0.0}, "max_phase must be finite and above 0, got 0.0"),
        ({"state_size": 0}, "state_size must be at least 1, got 0"),
    ],
)
def test_bad_input(settings, message):
    with pytest.raises(ValueError, match=message):
        LRU(3, 4, **settings)
