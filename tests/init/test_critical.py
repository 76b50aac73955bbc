"""Critical and fixed points: published values, and what they promise of signal and gradient."""

from __future__ import annotations

import math

import pytest

from steadygrad.init.critical import chi, critical_point, fixed_point, variance_map


@pytest.mark.parametrize(
    ("sigma_w2", "log_chi"), [(1.0, -0.2757), (1.3, -0.1276), (1.76, -0.0002), (2.5, 0.1253), (4.0, 0.2945)]
)
def test_order_to_chaos_of_tanh(sigma_w2, log_chi):
    assert math.log(chi("tanh", math.sqrt(sigma_w2), math.sqrt(0.05))) == pytest.approx(log_chi, abs=2e-4)


@pytest.mark.parametrize(
    ("name", "weights", "biases", "q"),
    [("gelu", 1.98305826, 0.17292239, None), ("silu", 1.98800468, 0.55514317, 14.32017362)],
)
def test_half_stable_points_are_those_of_the_book(name, weights, biases, q):
    """Roberts, Yaida & Hanin (2022), section 5.3.4."""
    point = critical_point(name)
    assert point.sigma_w**2 == pytest.approx(weights, rel=1e-6)
    assert point.sigma_b**2 == pytest.approx(biases, rel=1e-4)
    assert point.chi_q == pytest.approx(1.0, abs=1e-6)
    if q is not None:
        assert point.q == pytest.approx(q, rel=1e-5)


@pytest.mark.parametrize("name", ["relu", "leaky_relu", "gelu", "silu", "mish", "hardswish", "sigmoid"])
def test_critical_point_holds_signal_and_gradient(name):
    point = critical_point(name)
    assert variance_map(name, point.q, point.sigma_w, point.sigma_b) == pytest.approx(point.q, rel=1e-6)
    assert chi(name, point.sigma_w, point.sigma_b, q=point.q) == pytest.approx(1.0, rel=1e-9)


@pytest.mark.parametrize("name", ["tanh", "hardtanh", "elu", "softsign", "relu6"])
def test_critical_point_of_small_signals(name):
    point = critical_point(name)
    assert (point.sigma_b, point.q) == (0.0, 0.0)
    assert point.sigma_w == pytest.approx(math.sqrt(2) if name == "relu6" else 1.0, rel=1e-5)


def test_no_critical_point():
    with pytest.raises(ValueError, match="no critical point with sigma_b 0.1: a scale-invariant"):
        critical_point("relu", 0.1)
    with pytest.raises(ValueError, match="no critical point"):
        critical_point("squared_relu")
    with pytest.raises(ValueError, match="sigma_b must be >= 0"):
        critical_point("tanh", -1.0)


def test_fixed_points():
    assert fixed_point("tanh", 1.0) == 0.0
    assert fixed_point("tanh", 0.5) == 0.0
    near = fixed_point("tanh", 1.001)  # settles too slowly to wait for
    assert variance_map("tanh", near, 1.001) == pytest.approx(near, rel=1e-9) and 5e-4 < near < 2e-3
    assert fixed_point("relu", 0.9999 * math.sqrt(2), 0.01) == pytest.approx(1e-4 / (1 - 0.9999**2), rel=1e-6)
    assert fixed_point("relu", 1.5) == math.inf
    assert fixed_point("relu", 1.0, 0.1) == pytest.approx(0.02, rel=1e-9)  # q = q / 2 + 0.01
    with pytest.raises(ValueError, match="no fixed point; pass q"):
        chi("relu", 1.5)


def test_bad_sigmas():
    for call in (lambda: variance_map("relu", 1.0, 0.0), lambda: variance_map("relu", 1.0, math.nan)):
        with pytest.raises(ValueError, match="sigma_w must be positive"):
            call()
    with pytest.raises(ValueError, match="sigma_b must be >= 0"):
        variance_map("relu", 1.0, 1.0, -0.1)
