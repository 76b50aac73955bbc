"""The forecast of a barren plateau: its numbers against theory and against circuits one by one."""

import math
import random

import numpy
import pytest
import torch
from torch import nn

from steadygrad.quantum import (
    Decay,
    QuantumLayer,
    barren_plateau,
    gradient_samples,
    identity_blocks_,
    uniform_angles_,
)


def at_random(n_qubits, depth, readout="pair"):
    layer = QuantumLayer(n_qubits, depth, readout=readout)
    uniform_angles_(layer)
    return layer


class Product(nn.Module):
    """A cost with a known plateau: prod_i cos(theta_i), whose variance of a derivative is 2 ** -n."""

    def __init__(self, n_qubits, depth):
        super().__init__()
        self.angles = nn.Parameter(torch.rand(n_qubits, dtype=torch.float64) * 2 * math.pi)

    def forward(self, x):
        return self.angles.cos().prod().expand(len(x), 1)


class Mean(nn.Module):
    """A cost without one: the mean of cos(theta_i), 1 / (2 n ** 2)."""

    def __init__(self, n_qubits, depth):
        super().__init__()
        self.angles = nn.Parameter(torch.rand(n_qubits) * 2 * math.pi)

    def forward(self, x):
        return self.angles.cos().mean().expand(len(x), 1)


def test_exponent_of_a_product_is_ln_2():
    found = barren_plateau(Product, qubits=(2, 4, 6, 8), depths=(1,), samples=2000)
    decay = found.decay(1)
    assert decay.low < math.log(2) < decay.high and decay.high - decay.low < 0.15
    assert decay.barren and found.barren and "barren plateau" in str(found)
    for one in found.sampled:
        assert one.variance == pytest.approx(2.0**-one.n_qubits, rel=0.3)
        assert one.typical == pytest.approx(2 ** (-one.n_qubits / 2), rel=0.15)


def test_a_power_of_the_number_of_qubits_is_no_plateau():
    found = barren_plateau(Mean, qubits=(2, 4, 6, 8, 10), depths=(1,), samples=500)
    decay = found.decay(1)
    assert decay.low > 0.17 and not decay.barren and decay.power_law
    assert "as a power of the number of qubits" in str(found)
    assert found.sampled[0].variance == pytest.approx(1 / 8, rel=0.2)


def test_the_interval_covers_the_exponent():
    """Of 40 intervals of 95 % about 38 hold the true value; 33 or fewer would be an accident of 1 in 1,000."""
    decays = [barren_plateau(Product, (2, 3, 4), (1,), samples=60, seed=s).decay(1) for s in range(40)]
    assert sum(d.low < math.log(2) < d.high for d in decays) >= 34


def test_a_random_circuit_is_a_plateau_and_its_identity_blocks_are_not():
    found = barren_plateau(at_random, qubits=(2, 4, 6), depths=(24,), samples=40)
    assert found.barren and found.decay(24).exponent == pytest.approx(math.log(2), abs=0.08)

    def blocks(n_qubits, depth):
        layer = QuantumLayer(n_qubits, depth, readout="pair", mirrored=1)
        identity_blocks_(layer)
        return layer

    held = barren_plateau(blocks, qubits=(2, 4, 6), depths=(24,), samples=40)
    assert not held.barren and held.decay(24).high < found.decay(24).low / 2


def test_together_equals_one_by_one():
    together = gradient_samples(at_random, 3, 2, samples=5, seed=3)
    alone = gradient_samples(
        at_random, 3, 2, samples=5, seed=3, cost=lambda m: m(torch.full((3,), math.pi / 4)).mean()
    )
    assert together.shape == (5, 18)
    torch.testing.assert_close(together, alone)


def test_the_random_stream_is_left_alone_and_the_seed_decides():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again, other = (gradient_samples(at_random, 2, 1, samples=3, seed=s) for s in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_no_gradient_at_all_is_said():
    found = barren_plateau(Product, (2, 3, 4), (1,), cost=lambda m: m.angles.sum() * 0.0, samples=10)
    assert math.isnan(found.decay(1).exponent) and not found.barren
    assert "no gradient at all" in str(found)


def test_verdict_of_a_decay():
    assert Decay(1, 0.7, 0.6, 0.8, 0.99).barren
    power = Decay(1, 0.7, 0.6, 0.8, 0.01)
    assert power.power_law and not power.barren and not power.undecided
    assert Decay(1, 0.7, 0.6, 0.8, 0.5).undecided and Decay(1, 0.2, 0.1, 0.3, 0.99).undecided
    level = Decay(1, 0.1, -0.1, 0.15, 0.5)
    assert not (level.barren or level.power_law or level.undecided)
    nothing = Decay(1, math.nan, math.nan, math.nan, math.nan)
    assert not (nothing.barren or nothing.power_law)


def test_large_sizes_next_to_each_other_do_not_tell():
    """From 8 to 10 qubits an exponential and a power look alike; neither is claimed."""
    found = barren_plateau(Product, (8, 9, 10), (1,), samples=200)
    assert found.decay(1).undecided and "undecided" in str(found)


def test_what_is_no_plain_circuit_is_measured_as_it_is():
    class Louder(QuantumLayer):
        def forward(self, x):
            return 1000 * super().forward(x)

    def louder(n_qubits, depth):
        layer = Louder(n_qubits, depth)
        uniform_angles_(layer)
        return layer

    loud = gradient_samples(louder, 2, 1, samples=3, seed=1)
    plain = gradient_samples(lambda n, d: at_random(n, d, "local"), 2, 1, samples=3, seed=1)
    torch.testing.assert_close(loud, 1000 * plain, rtol=1e-4, atol=1e-3)


def test_other_streams_are_left_alone_too():
    numpy_before, python_before = numpy.random.get_state()[1].copy(), random.getstate()

    def build(n_qubits, depth):
        numpy.random.rand(), random.random()
        return at_random(n_qubits, depth)

    gradient_samples(build, 2, 1, samples=2)
    assert (numpy.random.get_state()[1] == numpy_before).all() and random.getstate() == python_before


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"qubits": (2, 4, 4)}, r"at least three different numbers, got \[2, 4, 4\]"),
        ({"qubits": (1, 2, 3)}, "each of qubits must be at least 2, got 1"),
        ({"depths": ()}, "at least one number of layers"),
        ({"depths": (0,)}, "each of depths must be at least 1"),
        ({"samples": 9}, "samples must be at least 10, got 9"),
        ({"cost": lambda m: m.angles}, r"cost must give a scalar tensor .* got shape \(2,\)"),
        ({"cost": lambda m: 1.0}, "got float"),
        ({"build": lambda n, d: nn.Identity()}, "without an angle to train"),
    ],
)
def test_what_is_refused(given, said):
    with pytest.raises(ValueError, match=said):
        barren_plateau(**{"build": Product, **given})


def test_a_depth_that_was_not_asked_for():
    found = barren_plateau(Product, (2, 3, 4), (1, 2), samples=10)
    with pytest.raises(KeyError, match="no depth 3; there are 1, 2"):
        found.decay(3)
