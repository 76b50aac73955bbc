"""Every warm-up and every pacing: its formula, its ends, its order, its refusals; and the schedules of whole runs."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim.lr_scheduler import LambdaLR, LinearLR

from steadygrad import schedule as s
from tests.schedule.table import PACINGS, RISES, N, Shape

rises = pytest.mark.parametrize("shape", RISES, ids=lambda c: c.name)
pacings = pytest.mark.parametrize("shape", PACINGS, ids=lambda c: c.name)
both = pytest.mark.parametrize("shape", RISES + PACINGS, ids=lambda c: c.name)


@rises
def test_warmup_is_its_formula(shape: Shape):
    for step in range(N - 1):
        assert shape.f(step) == pytest.approx(shape.formula(step + 1), rel=1e-12)


@pacings
def test_pacing_is_its_formula(shape: Shape):
    for step in range(shape.whole_from):
        assert shape.f(step) == pytest.approx(shape.formula(step), rel=1e-12)


@both
def test_rises_to_exactly_one_and_stays(shape: Shape):
    values = [shape.f(step) for step in range(shape.whole_from + 50)]
    assert all(0 <= a <= b <= 1 for a, b in zip(values, values[1:], strict=False))
    assert all(v == 1.0 for v in values[shape.whole_from :]) and shape.f(10**9) == 1.0
    assert values[shape.whole_from - 1] < 1.0 or shape.name == "untuned exponential"


@rises
def test_first_step_is_never_wasted(shape: Shape):
    assert shape.f(0) > 0


@both
@pytest.mark.parametrize("step", [-1, 1.5, None, "3", True])
def test_bad_step(shape: Shape, step):
    with pytest.raises((ValueError, TypeError), match="step"):
        shape.f(step)


@both
def test_step_of_numpy_or_torch_is_a_number(shape: Shape):
    assert shape.f(np.int64(3)) == shape.f(torch.tensor(3)) == shape.f(3)


@given(
    total=st.integers(1, 10**6),
    start=st.floats(0, 1),
    degree=st.floats(0.2, 20),
    steps=st.lists(st.integers(0, 2 * 10**6), min_size=2, max_size=6),
)
def test_pacings_stay_between_start_and_one_in_order(total, start, degree, steps):
    for f in (
        partial(s.linear_pacing, total_steps=total, start=start),
        partial(s.root_pacing, total_steps=total, start=start, degree=degree),
        partial(s.competence_pacing, total_steps=total, start=start, degree=degree),
        partial(s.single_step_pacing, step_length=total, start=start),
    ):
        values = [f(t) for t in sorted(steps)]
        assert all(start <= a <= 1 for a in values)
        assert all(b - a >= -1e-12 for a, b in zip(values, values[1:], strict=False))
        assert f(total) == 1.0


@given(warmup_steps=st.integers(0, 10**6), start=st.floats(0.001, 1), step=st.integers(0, 2 * 10**6))
def test_warmups_stay_between_start_and_one(warmup_steps, start, step):
    for f in (
        s.linear_warmup,
        s.cosine_warmup,
        s.exponential_warmup,
        s.constant_warmup,
        s.sqrt_warmup,
    ):
        w = f(step, warmup_steps, start)
        assert start * (1 - 1e-12) <= w <= 1 and (w == 1.0 or step + 1 < warmup_steps or start > 0.999)


@pytest.mark.parametrize("nothing", [0, 1])
def test_no_warmup(nothing):
    for f in (s.linear_warmup, s.cosine_warmup, s.exponential_warmup, s.constant_warmup, s.sqrt_warmup):
        assert f(0, nothing) == 1.0


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: s.linear_warmup(0, -1), "warmup_steps"),
        (lambda: s.linear_warmup(0, 2.5), "warmup_steps"),
        (lambda: s.linear_warmup(0, 5, math.nan), "start_factor"),
        (lambda: s.cosine_warmup(0, 5, 1.1), "start_factor"),
        (lambda: s.exponential_warmup(0, 5, 0.0), "start_factor"),
        (lambda: s.constant_warmup(0, 5, 0.0), "start_factor"),
        (lambda: s.untuned_linear_warmup(0, 1.0), "beta2"),
        (lambda: s.untuned_exponential_warmup(0, math.nan), "beta2"),
        (lambda: s.inverse_sqrt(0, 0), "warmup_steps"),
        (lambda: s.warmup_cosine(0, 5, 5), "total_steps"),
        (lambda: s.warmup_linear(0, 5, 9, math.nan), "min_factor"),
        (lambda: s.warmup_stable_decay(0, 5, 9, 5), "total_steps"),
        (lambda: s.warmup_stable_decay(0, 5, 9, 0), "decay_steps"),
        (lambda: s.linear_pacing(0, 0), "total_steps"),
        (lambda: s.root_pacing(0, 5, degree=0), "degree"),
        (lambda: s.competence_pacing(0, 5, start=math.nan), "start"),
        (lambda: s.competence_pacing(0, 5, degree=math.inf), "degree"),
        (lambda: s.exponential_pacing(0, 5, increase=1.0), "increase"),
        (lambda: s.exponential_pacing(0, 5, start=0.0), "start"),
        (lambda: s.single_step_pacing(0, 0), "step_length"),
    ],
)
def test_bad_settings_are_named(call, named):
    with pytest.raises((ValueError, TypeError), match=named):
        call()


def test_exponential_pacing_far_out_is_no_overflow():
    assert s.exponential_pacing(10**6, step_length=1, increase=10.0) == 1.0


# ---------------------------------------------------------------- whole runs
def test_inverse_sqrt_is_the_transformers_rate():
    d_model, warmup_steps = 512, 4000
    for step in (0, 10, 3999, 4000, 99_999):
        t = step + 1
        paper = d_model**-0.5 * min(t**-0.5, t * warmup_steps**-1.5)
        ours = s.inverse_sqrt(step, warmup_steps) * (d_model * warmup_steps) ** -0.5
        assert ours == pytest.approx(paper, rel=1e-12)
    assert s.inverse_sqrt(warmup_steps - 1, warmup_steps) == 1.0


def run(optimizer, scheduler, steps):
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def sgd(lr=1.0):
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)


def test_linear_warmup_is_torchs_linear_lr_one_step_later():
    ours, torchs = sgd(), sgd()
    a = run(ours, LambdaLR(ours, partial(s.linear_warmup, warmup_steps=8, start_factor=0.25)), 12)
    b = run(torchs, LinearLR(torchs, start_factor=0.25, total_iters=8), 13)
    np.testing.assert_allclose(a, b[1:], rtol=1e-12)


@pytest.mark.parametrize("kind", ["linear", "1-sqrt", "cosine"])
def test_warmup_stable_decay_is_that_of_pytorch_optimizer(kind):
    peer = pytest.importorskip("pytorch_optimizer")
    cooldown = {
        "linear": s.linear_cooldown,
        "1-sqrt": s.sqrt_cooldown,
        "cosine": s.cosine_cooldown,
    }[kind]
    theirs = sgd()
    rates = run(theirs, peer.get_wsd_schedule(theirs, 5, 9, 7, cooldown_type=kind), 25)
    ours = [s.warmup_stable_decay(step, 5, 21, 7, cooldown=cooldown) for step in range(24)]
    np.testing.assert_allclose(ours, rates[1:], atol=1e-12)  # they give step 0 a factor of 0


@pytest.mark.parametrize("min_factor", [0.0, 0.1])
def test_decay_after_warmup(min_factor):
    for step in range(40):
        t = step + 1
        x = min(1, (t - 10) / 20)
        cosine = min_factor + (1 - min_factor) * (1 + math.cos(math.pi * x)) / 2
        linear = 1 - (1 - min_factor) * x
        up = t / 10
        assert s.warmup_cosine(step, 10, 30, min_factor) == pytest.approx(up if t <= 10 else cosine)
        assert s.warmup_linear(step, 10, 30, min_factor) == pytest.approx(up if t <= 10 else linear)


def test_a_run_is_prolonged_from_its_plateau():
    short = [s.warmup_stable_decay(step, 5, 50) for step in range(40)]  # a fifth of 50 is the end
    assert short == [s.warmup_stable_decay(step, 5, 500) for step in range(40)]
    assert s.warmup_stable_decay(40, 5, 50) < 1.0


def test_a_shape_in_lambda_lr_resumes():
    build = partial(LambdaLR, lr_lambda=partial(s.warmup_stable_decay, warmup_steps=4, total_steps=20))
    whole = sgd(0.1)
    rates = run(whole, build(whole), 20)
    first, second = sgd(0.1), sgd(0.1)
    before = build(first)
    run(first, before, 7)
    after = build(second)
    second.load_state_dict(first.state_dict())
    after.load_state_dict(before.state_dict())
    assert run(second, after, 13) == rates[7:]
