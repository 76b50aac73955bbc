"""Every optimizer does what its paper says, on odd input too: one suite over the table in cases.py."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.optim.cases import (
    NUM_STEPS,
    OPTIMIZERS,
    SHAPES,
    Case,
    arrays,
    draw,
    everything,
    give,
    over,
    parameters,
    same,
)


@pytest.mark.parametrize("maximize", [False, True])
@over()
def test_agrees_with_the_twin_over_twenty_steps(case: Case, maximize):
    """Float64, with weights of zeros, gradients that come late, are missing or zero, and a learning rate that falls."""
    params = parameters(torch.float64)
    with torch.no_grad():
        params[1].zero_()
    optimizer, twin = case.make(params, maximize=maximize), case.make_twin(params, maximize=maximize)
    lr = optimizer.defaults["lr"]
    for step in range(NUM_STEPS):
        grads = draw(100 + step, torch.float64)
        if step < 3:
            grads[2] = None
        if step % 7 == 2:
            grads[0] = grads[0] * 0
        if step % 7 == 3:
            grads[1] = None
        if step == 0:
            grads[4] = grads[4] * 0
        rate = lr * (1 - step / 40)
        for group in optimizer.param_groups:
            group["lr"] = rate
        give(params, grads)
        optimizer.step()
        sign = -1 if maximize else 1
        want = twin([None if g is None else sign * g.numpy() for g in grads], lr=rate)
        for got, value in zip(arrays(params), want, strict=True):
            np.testing.assert_allclose(got, value, rtol=1e-7, atol=1e-10, err_msg=f"step {step}")


@over()
def test_float32_agrees_with_the_twin(case: Case):
    params = parameters()
    optimizer, twin = case.make(params), case.make_twin(params)
    for step in range(NUM_STEPS):
        grads = draw(100 + step)
        give(params, grads)
        optimizer.step()
        want = twin(arrays(grads))
    for got, value in zip(arrays(params), want, strict=True):
        np.testing.assert_allclose(got, value, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@over()
def test_half_precision_is_float32_arithmetic_on_rounded_weights(case: Case, dtype):
    params = parameters(dtype)
    exact = [torch.nn.Parameter(p.detach().float()) for p in params]
    optimizer, reference = case.make(params), case.make(exact)
    with torch.no_grad():
        for p, q in zip(params, exact, strict=True):
            q.copy_(p)  # Nero balanced both, and rounded one
    for step in range(NUM_STEPS):
        grads = draw(100 + step, dtype)
        give(params, grads)
        give(exact, [g.float() for g in grads])
        optimizer.step()
        reference.step()
        with torch.no_grad():
            for p in exact:
                p.copy_(p.to(dtype))
        assert all(torch.equal(p.float(), q) for p, q in zip(params, exact, strict=True)), step
    for state in optimizer.state.values():
        assert all(v.dtype == torch.float32 for v in state.values())


@over([c for c in OPTIMIZERS if c.complex])
def test_complex_parameters_are_pairs_of_real_ones(case: Case):
    paired = [(6, 4, 2), (3, 5, 2)]
    real = [torch.nn.Parameter(w) for w in draw(7, torch.float64, paired)]
    pairs = [torch.nn.Parameter(torch.view_as_complex(w)) for w in draw(7, torch.float64, paired)]
    a, b = case.make(real), case.make(pairs)
    for step in range(3):
        grads = draw(100 + step, torch.float64, paired)
        give(real, grads)
        give(pairs, [torch.view_as_complex(g) for g in grads])
        a.step()
        b.step()
    for p, q in zip(real, pairs, strict=True):
        torch.testing.assert_close(torch.view_as_real(q.detach()), p.detach(), rtol=1e-12, atol=0)


@over([c for c in OPTIMIZERS if not c.complex])
def test_complex_parameters_are_refused(case: Case):
    with pytest.raises(TypeError, match="real parameters only"):
        case.make([torch.nn.Parameter(torch.zeros(2, 2, dtype=torch.complex64))])


@over()
def test_gradients_are_left_as_they_are(case: Case):
    for maximize in (False, True):
        params = parameters()
        optimizer = case.make(params, maximize=maximize)
        for step in range(2):
            give(params, draw(step))
            optimizer.step()
            assert same([p.grad for p in params], draw(step))


@over()
def test_no_gradient_no_change(case: Case):
    params = parameters()
    optimizer = case.make(params)
    give(params, [*draw(0)[:4], None])
    kept = params[4].detach().clone()
    optimizer.step()
    assert torch.equal(params[4], kept) and params[4] not in optimizer.state
    optimizer.zero_grad()
    before = [p.detach().clone() for p in params]
    optimizer.step()
    assert same(params, before)


@over()
def test_zero_gradients_of_zero_weights_stay_zero(case: Case):
    params = [torch.nn.Parameter(torch.zeros(s)) for s in SHAPES]
    optimizer = case.make(params)
    for _ in range(3):
        give(params, [torch.zeros(s) for s in SHAPES])
        optimizer.step()
    assert all((p == 0).all() for p in params)


@over()
def test_zero_weights_move_and_not_far(case: Case):
    """The trust ratio of a tensor of zeros: neither 0, nor a step as long as its gradient."""
    params = [torch.nn.Parameter(torch.zeros(6, 4))]
    optimizer = case.make(params)
    give(params, [1e6 * torch.ones(6, 4)])
    optimizer.step()
    size = params[0].detach().square().mean().sqrt()
    assert 1e-8 < size < 0.1, size


@over()
def test_odd_shapes(case: Case):
    shapes = [(0, 3), (1, 1), (7, 1), (1, 7), (2, 3, 1, 2, 2), (), (1,), (0,)]
    params = [torch.nn.Parameter(torch.ones(s)) for s in shapes]
    optimizer = case.make(params)
    for _ in range(3):
        give(params, [torch.ones(s) for s in shapes])
        optimizer.step()
    assert all(p.isfinite().all() for p in params)
    moved = [not torch.equal(p, torch.ones_like(p)) for p in params if p.numel()]
    assert all(moved), moved


@over()
def test_memory_format_changes_nothing(case: Case):
    shape = ((4, 3, 2, 2),)
    plain = [torch.nn.Parameter(w) for w in draw(7, torch.float64, shape)]
    last = [
        torch.nn.Parameter(w.to(memory_format=torch.channels_last)) for w in draw(7, torch.float64, shape)
    ]
    a, b = case.make(plain), case.make(last)
    for step in range(3):
        give(plain, draw(step, torch.float64, shape))
        give(last, [g.to(memory_format=torch.channels_last) for g in draw(step, torch.float64, shape)])
        a.step()
        b.step()
    torch.testing.assert_close(last[0], plain[0], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@over()
def test_a_nonfinite_gradient_shows_in_its_own_tensor_and_nowhere_else(case: Case, bad):
    params, clean = parameters(), parameters()
    optimizer, other = case.make(params), case.make(clean)
    grads = draw(0)
    give(clean, grads)
    other.step()
    grads[0][0, 0] = bad
    give(params, grads)
    optimizer.step()
    assert not params[0].isfinite().all(), "hidden"
    assert same(params[1:], clean[1:])


@over()
def test_a_step_that_was_skipped_leaves_no_trace(case: Case):
    """What the guard does with a step whose gradients are not finite."""
    params, never = parameters(), parameters()
    optimizer, other = case.make(params), case.make(never)
    for step in range(6):
        if step == 3:
            give(params, [g * math.nan for g in draw(step)])
            continue
        for p, o in ((params, optimizer), (never, other)):
            give(p, draw(step))
            o.step()
    assert same(params, never) and everything(optimizer) == everything(other)


@over()
def test_sparse_gradient_is_refused_before_anything_is_changed(case: Case):
    params = parameters()
    optimizer = case.make(params)
    give(params, draw(0))
    params[4].grad = params[4].grad.to_sparse()
    before = [p.detach().clone() for p in params]
    with pytest.raises(TypeError, match=r"dense gradients.*sparse=False"):
        optimizer.step()
    assert same(params, before) and not optimizer.state


@over()
def test_bad_settings(case: Case):
    params = parameters()
    before = [p.detach().clone() for p in params]
    for name, value in {**case.bad, "lr": -1.0}.items():
        with pytest.raises((ValueError, TypeError), match=name):
            case.make(params, **{name: value})
        with pytest.raises((ValueError, TypeError), match=name):
            case.make([{"params": params, name: value}])
    with pytest.raises(ValueError, match="lr"):
        case.make(params, lr=torch.ones(2))
    with pytest.raises(TypeError, match="lr"):
        case.make(params, lr="fast")
    with pytest.raises(ValueError, match="empty"):
        case.make([])
    assert same(params, before)
