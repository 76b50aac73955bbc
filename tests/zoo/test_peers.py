"""The peers' rules against sequences worked out by hand."""

import math

import numpy as np
import pytest
import torch

from benchmarks.peers import PEERS, AutoClip, AutoTrainer, FixedNorm, KillLossSpike, SpikeDetection, ZClip

NAN, INF = math.nan, math.inf


def losses(peer, values):
    """Steps at which the peer speaks, for a sequence of losses."""
    return [i for i, x in enumerate(values) if peer(x, 1.0, [1.0, 1.0])]


def norms(peer, values):
    return [i for i, x in enumerate(values) if peer(1.0, x, [1.0, 1.0])]


def test_each_has_its_name_and_its_own_history():
    for name, new in PEERS.items():
        assert new().name == name
        assert new() is not new()


@pytest.mark.parametrize("name", PEERS)
def test_a_constant_run_is_no_alarm(name):
    peer = PEERS[name]()
    assert not any(peer(1.0, 1.0, [1.0, 0.5, 1.0, 0.5]) for _ in range(300))


class TestAutoTrainer:
    # kernel, bias, kernel, bias: the biases must not matter
    CALM = [1.0, 0.0, 1.0, 9e9]
    HIGH = [71.0, 0.0, 1.0, 9e9]
    LOW = [9e-5, 5.0, 1.0, 5.0]

    def run(self, steps):
        peer = AutoTrainer()
        return [i for i, g in enumerate(steps, start=1) if peer(1.0, 1.0, g)]

    def test_speaks_at_the_third_check(self):
        assert self.run([self.HIGH] * 45) == [30, 40]
        assert self.run([self.LOW] * 45) == [30, 40]

    def test_looks_every_tenth_step_only(self):
        between = [self.CALM if i % 10 == 0 else self.HIGH for i in range(1, 101)]
        assert self.run(between) == []
        at = [self.HIGH if i in (20, 50, 80) else self.CALM for i in range(1, 101)]
        assert self.run(at) == [80, 90, 100]

    def test_bounds(self):
        assert self.run([[70.0, 0.0, 1.0, 0.0]] * 100) == []
        assert self.run([[9.9e-4, 0.0, 1.0, 0.0]] * 100) == []  # low ratio, but the first is not small
        assert self.run([[9e-5, 0.0, 0.08, 0.0]] * 100) == []  # small, but so is the last: ratio 1.1e-3
        assert self.run([[1.0, 0.0, 0.0, 0.0]] * 30) == [30]  # x / 0
        assert self.run([[0.0, 0.0, 0.0, 0.0]] * 100) == []  # 0 / 0

    def test_exploding_and_vanishing_count_apart(self):
        assert self.run([self.HIGH] * 20 + [self.LOW] * 20) == []

    @pytest.mark.parametrize("bad", [NAN, INF])
    def test_nonfinite_is_an_alarm_at_the_next_check(self, bad):
        assert self.run([self.CALM] * 9 + [[1.0, bad, 1.0, 1.0]] + [self.CALM] * 10) == [10, 20]
        peer = AutoTrainer()
        assert [peer(bad, 1.0, self.CALM) for _ in range(10)] == [False] * 9 + [True]

    def test_nonfinite_between_two_checks_is_not_seen(self):
        assert self.run([self.CALM] * 4 + [[NAN] * 4] + [self.CALM] * 30) == []


def test_fixed_norm():
    assert norms(FixedNorm(10.0), [9.0, 10.0, 10.1, INF, NAN]) == [2, 3]


class TestZClip:
    # 25 norms of mean 1 and standard deviation 0.1: twelve of 0.9, twelve of 1.1, and a 1
    WARM = [0.9, 1.1] * 12 + [1.0]
    STD = math.sqrt(24 * 0.01 / 25)

    def test_nothing_within_the_warm_up(self):
        assert norms(ZClip(), [1.0] * 10 + [1e6] + [1.0] * 14) == []

    def test_bound(self):
        assert norms(ZClip(), self.WARM + [1 + 2.49 * self.STD]) == []
        assert norms(ZClip(), self.WARM + [1 + 2.51 * self.STD]) == [25]
        assert norms(ZClip(), self.WARM + [1 - 9 * self.STD]) == []

    def test_moments_by_hand(self):
        peer = ZClip()
        norms(peer, self.WARM)
        assert peer.mean == pytest.approx(1.0) and peer.var == pytest.approx(0.0096)
        peer(1.0, 1.1, [])
        # mean .97 + .03 * 1.1 = 1.003; var .97 * .0096 + .03 * (1.1 - 1.003)^2
        assert peer.mean == pytest.approx(1.003)
        assert peer.var == pytest.approx(0.97 * 0.0096 + 0.03 * 0.097**2)

    def test_a_spike_enters_as_it_is_clipped(self):
        peer = ZClip()
        assert norms(peer, self.WARM + [1 + 5 * self.STD]) == [25]
        # z is 5, twice the bound: the clip is mean + 2.5 std / 2
        seen = 1 + 1.25 * self.STD
        mean = 0.97 + 0.03 * seen
        assert peer.mean == pytest.approx(mean, rel=1e-5)
        assert peer.var == pytest.approx(0.97 * 0.0096 + 0.03 * (seen - mean) ** 2, rel=1e-5)

    def test_nan_silences_it_for_ever(self):
        assert norms(ZClip(), self.WARM + [NAN] + self.WARM * 40 + [1e9]) == []
        assert norms(ZClip(), [NAN] + self.WARM + [1e9] * 50) == []

    def test_infinity(self):
        assert norms(ZClip(), self.WARM + [INF, 1.0, 50.0]) == [25, 27]
        assert norms(ZClip(), [INF] + self.WARM + [1e9]) == []


class TestAutoClip:
    def test_percentile_of_the_norms_before(self):
        # of 1..10 the 90th percentile is 9.1, between the ninth and the tenth
        ten = [float(x) for x in range(10, 0, -1)]
        assert norms(AutoClip(), ten) == []
        assert norms(AutoClip(), ten + [9.0]) == []
        assert norms(AutoClip(), ten + [9.2]) == [10]

    def test_rising_norms_are_always_above(self):
        assert norms(AutoClip(), [1.0, 2.0, 3.0, 4.0]) == [1, 2, 3]

    def test_nan_silences_it_while_it_is_in_the_window(self):
        peer = AutoClip(window=5)
        assert norms(peer, [1.0, NAN, 9.0, 9.0, 9.0, 9.0, 10.0, 11.0]) == [7]

    def test_infinity(self):
        assert norms(AutoClip(), [1.0, INF, 2.0]) == [1]
        assert norms(AutoClip(), [INF, INF, 5.0, INF]) == []

    def test_same_percentile_as_torch(self):
        random = np.random.RandomState(3)
        values = random.lognormal(size=60).astype(np.float32)
        peer, alarms = AutoClip(window=20), []
        for i, x in enumerate(values):
            past = torch.tensor(values[max(0, i - 20) : i])
            alarms.append(bool(len(past)) and bool(torch.tensor(x) > torch.quantile(past, 0.9)))
        assert norms(peer, [float(x) for x in values]) == [i for i, a in enumerate(alarms) if a]
        assert sum(alarms) > 3


class TestSpikeDetection:
    def test_bound(self):
        assert losses(SpikeDetection(), [1.0] * 10 + [2.99]) == []
        assert losses(SpikeDetection(), [1.0] * 10 + [3.0]) == [10]

    def test_mean_of_ten(self):
        # the 100 has left the window of ten by the step of the 3.1
        assert losses(SpikeDetection(), [100.0] + [1.0] * 9 + [3.1]) == []
        assert losses(SpikeDetection(), [100.0] + [1.0] * 10 + [3.1]) == [11]

    def test_a_better_loss_is_no_spike(self):
        # -9 is far from the mean, but less than the loss before
        assert losses(SpikeDetection(), [1.0] * 5 + [-9.0]) == []
        assert losses(SpikeDetection(), [0.0] * 5) == []  # 0 >= 2 x 0, but no worse than the one before

    def test_a_spike_does_not_enter(self):
        assert losses(SpikeDetection(), [1.0] * 10 + [5.0] * 3) == [10, 11, 12]

    def test_negative_mean(self):
        # mean -1: anything from 1 up, as |1 - -1| = 2 |-1|
        assert losses(SpikeDetection(), [-1.0] * 10 + [0.9]) == []
        assert losses(SpikeDetection(), [-1.0] * 10 + [1.0]) == [10]

    def test_not_finite(self):
        assert losses(SpikeDetection(), [1.0, NAN, INF, -INF, 1.0, 1.1]) == [1, 2, 3]
        # at the first step it enters: NaN out of the mean and never an improvement, infinity stays in it
        assert losses(SpikeDetection(), [NAN, 1.0, 1.0, 4.0]) == [3]
        assert losses(SpikeDetection(), [INF, 1.0, 2.0]) == [2]


class TestKillLossSpike:
    def test_five_in_a_row(self):
        # the first four already enter the mean: it is 1.04 at the fifth
        assert losses(KillLossSpike(), [1.0] * 100 + [2.1] * 5) == [104]
        assert losses(KillLossSpike(), [1.0] * 100 + [2.1] * 4 + [1.0] + [2.1] * 4) == []

    def test_nothing_before_a_hundred(self):
        assert losses(KillLossSpike(), [1.0] * 90 + [1e6] * 9) == []
        assert losses(KillLossSpike(), [1.0] * 99 + [9.0] * 9) == [104, 105, 106, 107]

    def test_bound(self):
        assert losses(KillLossSpike(), [0.0] * 100 + [0.0] * 5) == [104]  # 0 >= 2 x 0, as in the original
        assert losses(KillLossSpike(), [1.0] * 100 + [2.0] * 5) == []  # the mean has risen from the second on

    def test_negative_losses_are_outliers(self):
        assert losses(KillLossSpike(), [-1.0] * 105) == [104]

    def test_nan_silences_it_while_it_is_in_the_window(self):
        run = [1.0] * 100 + [NAN] + [50.0] * 99
        assert losses(KillLossSpike(), run) == []
        assert losses(KillLossSpike(), [1.0] * 100 + [NAN] + [1.0] * 100 + [50.0] * 5) == [205]
