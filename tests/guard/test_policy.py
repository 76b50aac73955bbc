"""The policy on numbers alone."""

import math

import numpy as np
import pytest

from steadygrad.guard.policy import Limits, Policy, Rollback, Stop
from steadygrad.records import Finding, StepStats


class Usual:
    """A history in which every healthy step had the norm 1 and the loss began at 2."""

    num_healthy = 100
    start = 2.0

    def median_clipped_norm(self, window=50):
        return 1.0

    def max_clipped_norm(self, window=50):
        return 3.0


def stats(step, norm=1.0, loss=1.0, applied=True, optimizer=0):
    return StepStats(step, optimizer, loss, norm, norm, np.array([norm]), lr=0.1, applied=applied)


def alarm(step, before=1.0):
    return Finding("L101", "loss_blowup", step, "loss", "loss 1 -> 50", {"loss_before": before}, "alarm")


class Loop:
    """A run seen by the policy: norms and losses in, moves out."""

    def __init__(self, **limits):
        self.policy, self.tick, self.moves, self.applied = Policy(Limits(**limits)), 0, [], []

    def step(self, norm=1.0, loss=1.0, findings=(), poisoned=(), optimizer=0):
        s = stats(self.tick, norm, loss, optimizer=optimizer)
        decision = self.policy.before(s, Usual(), self.tick)
        s = stats(self.tick, norm, loss, applied=decision.apply, optimizer=optimizer)
        move = self.policy.after(s, findings, Usual(), self.tick, poisoned)
        self.applied.append(decision.apply)
        self.moves.append(move)
        self.tick += 1
        return decision.apply, move


def test_ordinary_steps_and_honest_spikes_are_applied():
    loop = Loop()
    for norm in (1.0, 0.0, 500.0, 1.0, 1e5, 2.0):
        assert loop.step(norm) == (True, None)


@pytest.mark.parametrize("norm", [math.nan, math.inf, 1e20])
def test_one_unusable_gradient_is_one_skip(norm):
    loop = Loop()
    assert loop.step(norm) == (False, None)
    for _ in range(300):
        assert loop.step() == (True, None)


def test_nan_loss_with_a_finite_gradient_is_applied():
    loop = Loop()
    for _ in range(50):
        assert loop.step(loss=math.nan) == (True, None)


def test_three_in_a_row_go_back_without_a_change_and_the_second_time_with_one():
    loop = Loop()
    for _ in range(3):
        loop.step(math.nan)
    first = loop.moves[-1]
    assert isinstance(first, Rollback) and first.before_step == 0
    assert first.clip is None and first.lr_factor == 1
    for _ in range(10):
        loop.step()
    for _ in range(3):
        loop.step(math.nan)
    second = loop.moves[-1]
    assert isinstance(second, Rollback) and second.clip is not None


def test_a_skip_now_and_then_is_no_reason_to_go_back():
    loop = Loop()
    for _ in range(40):
        loop.step(math.nan)
        for _ in range(50):
            loop.step()
    assert not any(loop.moves)


def test_too_many_skips_in_a_window_are():
    loop = Loop()
    for _ in range(30):
        loop.step(math.nan)
        loop.step()
    assert isinstance(loop.moves[2 * 20], Rollback)


def test_poisoned_state_goes_back_at_once():
    loop = Loop()
    loop.step()
    _, move = loop.step(math.nan, poisoned=["0.weight"])
    assert isinstance(move, Rollback) and "0.weight" in move.reason


def test_a_blow_up_that_ends_non_finite_goes_back_to_before_it_and_clips():
    loop = Loop()
    for _ in range(20):
        loop.step()
    loop.step(1e3, 50.0, [alarm(20)])
    loop.step(1e5, 80.0)
    _, move = loop.step(math.nan, math.nan)
    assert isinstance(move, Rollback) and move.before_step == 20
    assert move.clip == pytest.approx(1.5)  # 1.5 x the healthy median


def test_clip_goes_below_steps_that_were_no_larger_than_usual():
    """Where ordinary steps have led into the trouble, 1.5 x their median would change nothing."""
    loop = Loop()
    for _ in range(5):
        loop.step(1.0)
    loop.step(1e15)
    loop.step(1e15)
    _, move = loop.step(1e15)
    assert isinstance(move, Rollback) and move.clip == pytest.approx(0.25)


def test_a_blow_up_that_recovers_is_left_alone():
    loop = Loop()
    loop.step(1e3, 50.0, [alarm(0)])
    for i in range(100):
        loop.step(1.0, max(1.0, 50.0 - 2 * i))
    assert not any(loop.moves)


def test_a_blow_up_that_stays_is_acted_on_after_its_patience():
    loop = Loop(patience=30)
    loop.step(1e3, 50.0, [alarm(0)])
    for _ in range(31):
        loop.step(10.0, 50.0)
    assert [i for i, m in enumerate(loop.moves) if m] == [30]


def test_good_weights_with_the_same_bad_loss_say_that_the_data_have_changed():
    loop = Loop(patience=30)
    loop.step(1e3, 50.0, [alarm(0)])
    for _ in range(200):
        loop.step(1.0, 50.0, [alarm(loop.tick)])
    assert sum(m is not None for m in loop.moves) == 1


def test_negative_losses():
    loop = Loop(patience=30)
    loop.step(1e3, -1.0, [alarm(0, before=-5.0)])
    for _ in range(40):
        loop.step(1.0, -4.9)
    assert not any(loop.moves)


def test_the_ladder_changes_more_each_time_and_ends():
    loop = Loop()
    clips, rates, ended = [], [], None
    for _ in range(200):
        for _ in range(3):
            _, move = loop.step(math.nan)
        if isinstance(move, Stop):
            ended = move
            break
        clips.append(move.clip)
        rates.append(move.lr_factor)
        loop.step()
    assert ended is not None and "rollbacks" in ended.reason
    assert clips[0] is None and len(clips) <= Limits().max_rollbacks
    later = list(zip(clips[1:], rates[1:], strict=True))
    assert all(a != b for a, b in zip(later, later[1:], strict=False)), (
        "two rollbacks in a row changed nothing"
    )
    assert rates[-1] < 0.1 and not any(a for a, m in zip(loop.applied, loop.moves, strict=True) if m)


def test_learning_rate_climbs_back_to_its_backed_off_value():
    policy = Policy(Limits(rewarm_steps=10), lr_factor=0.5, rewarm_from=100)
    scales = [policy.lr_scale(t) for t in range(100, 115)]
    assert scales[:10] == pytest.approx([0.05 * i for i in range(1, 11)]) and scales[10:] == [0.5] * 5


def test_a_skip_of_one_optimizer_does_not_count_for_another():
    loop = Loop()
    for _ in range(5):
        assert loop.step(math.nan, optimizer=0)[1] is None
        loop.step(optimizer=1)
        loop.step(optimizer=0)
    assert not any(loop.moves)


def test_state_goes_round():
    loop = Loop()
    for norm in (1.0, math.nan, math.nan, math.nan, 1.0, math.nan):
        loop.step(norm)
    copy = Policy()
    copy.load_state_dict(loop.policy.state_dict())
    assert copy.state_dict() == loop.policy.state_dict()
    for norm in (math.nan, math.nan, 1.0):
        s = stats(loop.tick, norm, applied=norm == norm)
        a = loop.policy.after(s, (), Usual(), loop.tick, ())
        b = copy.after(s, (), Usual(), loop.tick, ())
        assert a == b
        loop.tick += 1
