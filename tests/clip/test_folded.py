"""Folded clipping against clip_grad_norm_ and a step: equal results, fewer passes, and a skip without a trace."""

from __future__ import annotations

import copy
import functools
import math
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import SGD, Adam, AdamW
from torch.optim.lr_scheduler import LambdaLR

from steadygrad.clip import AdaGC, AutoClip, FoldedClip, ZClip, chain
from tests.clip.folding import (
    OPTIMIZERS,
    Count,
    as_on_a_device,
    bits,
    distance,
    folding,
    fused,
    gradients,
    net,
    plainly,
    same,
    trained,
)

over = pytest.mark.parametrize("name", OPTIMIZERS)


# ---------------------------------------------------------------------- equal results
@functools.cache
def plainly_trained(name, max_norm):
    model, _, num_clipped = trained(fused(name), plainly, max_norm)
    return model, num_clipped


@over
@pytest.mark.parametrize("device_way", [False, True])
def test_200_steps_agree_with_clip_grad_norm_and_the_same_step(name, device_way, monkeypatch):
    plain, expected = plainly_trained(name, 1.0)
    with as_on_a_device(monkeypatch) if device_way else monkeypatch.context():
        ours, _, num_clipped = trained(fused(name), folding, 1.0)
    assert num_clipped == expected and 50 < num_clipped < 190
    assert distance(ours, plain) <= 1e-6
    unclipped, _ = plainly_trained(name, 1e9)
    assert distance(ours, unclipped) > 1e-3  # the clip matters here


@over
@pytest.mark.parametrize("device_way", [False, True])
def test_a_run_in_which_nothing_is_clipped_is_bit_equal_to_the_fused_optimizer(name, device_way, monkeypatch):
    def bare(optimizer, rule):
        return lambda: bool(optimizer.step())

    _, expected, _ = trained(fused(name), bare, None, steps=30)
    with as_on_a_device(monkeypatch) if device_way else monkeypatch.context():
        _, ours, num_clipped = trained(fused(name), folding, 100.0, steps=30)
    assert num_clipped == 0 and same(ours, expected)


@over
@pytest.mark.parametrize("device_way", [False, True])
@pytest.mark.parametrize("bad", [(0,), (7,), (0, 1, 9, 29)])
def test_a_nonfinite_step_leaves_no_trace(name, device_way, bad, monkeypatch):
    """The run with the bad steps is, bit for bit, the run in which they never were."""

    def left_out(optimizer, rule):
        clip, steps = FoldedClip(optimizer, rule), iter(range(30))
        return lambda: next(steps) not in bad and bool(clip.step().scale < 1)

    with as_on_a_device(monkeypatch) if device_way else monkeypatch.context():
        dirty = [torch.full(p.shape, 1e30) for p in net().parameters() for _ in range(20)]
        del dirty  # memory that is taken next holds 1e30
        _, ours, _ = trained(fused(name), folding, 1.0, steps=30, bad=bad)
        _, expected, _ = trained(fused(name), left_out, 1.0, steps=30)
    for optimizer in (ours, expected):
        optimizer.zero_grad()
    assert same(ours, expected)


@over
@pytest.mark.parametrize("device_way", [False, True])
def test_the_bad_step_itself_changes_nothing(name, device_way, monkeypatch):
    model = net()
    optimizer = fused(name)(model.parameters())
    clip = FoldedClip(optimizer, 1.0)
    with as_on_a_device(monkeypatch) if device_way else monkeypatch.context():
        for step in range(3):
            gradients(model, step)
            clip.step()
        for value in (math.nan, math.inf, 3e38):
            gradients(model, 3)
            model[2].weight.grad[1] = value
            before = bits(optimizer)
            stats = clip.step()
            assert bits(optimizer) == before
            assert (
                not stats.finite and not stats.norm.isfinite() and stats.scale.isnan() and stats.clipped == 0
            )
    assert not {"grad_scale", "found_inf"} & set(vars(optimizer))


@pytest.mark.parametrize("dampening", [0.0, 0.5])
def test_the_bug_of_torch_in_the_first_step_of_fused_sgd_is_still_there(dampening):
    """Without us: a flag in the first step stores whatever lay in memory as the momentum.

    If this fails, torch has mended it: `has_no_momentum_yet` can go then.
    """
    found = []
    for _ in range(20):  # whether memory is dirty is the allocator's choice
        w = nn.Parameter(torch.ones(3000))
        optimizer = SGD([w], lr=0.1, momentum=0.9, dampening=dampening, fused=True)
        w.grad = torch.ones(3000)
        dirty = [torch.full((3000,), 1e30) for _ in range(8)]
        del dirty
        optimizer.grad_scale, optimizer.found_inf = torch.tensor(1.0), torch.tensor(1.0)
        optimizer.step()
        found.append(float(optimizer.state[w]["momentum_buffer"].abs().max()))
    assert max(found) >= 1e29


def test_the_first_step_of_sgd_with_momentum_gets_no_flag(monkeypatch):
    """That step is decided by the host, later ones are not."""
    model = net()
    clip = FoldedClip(SGD(model.parameters(), lr=0.1, momentum=0.9, fused=True), 1.0)
    reads = []
    with as_on_a_device(monkeypatch):
        for step in range(3):
            gradients(model, step)
            with Count() as count:
                clip.step()
            reads.append(bool(count.calls["stack"] > 1))  # the norm and the factor, put together for the host
    assert reads == [True, False, False]


# ---------------------------------------------------------------------- fewer passes
@pytest.mark.parametrize("max_norm", [0.1, 100.0])
@pytest.mark.parametrize("device_way", [False, True])
@over
def test_one_pass_for_the_norm_and_none_for_the_factor(name, max_norm, device_way, monkeypatch):
    model = net()
    optimizer = fused(name)(model.parameters())
    clip = FoldedClip(optimizer, max_norm)
    with as_on_a_device(monkeypatch) if device_way else monkeypatch.context():
        for step in range(2):
            gradients(model, step)
            with Count() as count:
                clip.step()
    assert count.calls["_foreach_norm"] == 1 and count.normed == 6
    assert sum(n for op, n in count.calls.items() if op.startswith("_fused")) == 1
    assert not {"_foreach_mul_", "mul_", "_foreach_div_", "clone", "copy_", "_foreach_copy_"} & set(
        count.calls
    )
    assert count.calls["_local_scalar_dense"] == 0


def test_the_plain_way_multiplies_once_and_only_if_it_clips():
    for max_norm, passes in ((0.1, 1), (100.0, 0)):
        model = net()
        with pytest.warns(UserWarning, match="fused"), Count() as count:
            gradients(model, 0)
            FoldedClip(SGD(model.parameters(), lr=0.1), max_norm).step()
        assert count.calls["_foreach_norm"] == 1 and count.calls["_foreach_mul_"] == passes


def test_a_step_that_needs_no_clip_is_called_with_nothing_set():
    seen = []

    model = net()
    optimizer = AdamW(model.parameters(), fused=True)
    optimizer.register_step_post_hook(
        lambda o, *_: seen.append(sorted({"grad_scale", "found_inf"} & set(vars(o))))
    )
    for max_norm in (100.0, 0.1):
        gradients(model, 0)
        FoldedClip(optimizer, max_norm).step()
    assert seen == [[], ["grad_scale"]]


# ---------------------------------------------------------------------- what is left behind
def test_after_a_clipped_step_the_gradients_are_the_clipped_ones():
    ours, plain = net(), net()
    for model in (ours, plain):
        gradients(model, 4)
    stats = FoldedClip(Adam(ours.parameters(), fused=True), 0.5).step()
    norm = clip_grad_norm_(plain.parameters(), 0.5)
    assert torch.equal(stats.norm, norm) and stats.limit == 0.5 and stats.clipped == 1 and bool(stats.finite)
    torch.testing.assert_close(
        [p.grad for p in ours.parameters()], [p.grad for p in plain.parameters()], rtol=3e-7, atol=0
    )


def test_nothing_stays_on_the_optimizer_when_its_step_raises(monkeypatch):
    model = net()
    optimizer = AdamW(model.parameters(), fused=True)
    gradients(model, 0)
    optimizer.register_step_post_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("mine")))
    with as_on_a_device(monkeypatch), pytest.raises(RuntimeError, match="mine"):
        FoldedClip(optimizer, 0.1).step()
    assert not {"grad_scale", "found_inf"} & set(vars(optimizer))


def test_a_skip_of_the_first_step_is_no_missing_step_to_a_scheduler():
    model = net()
    optimizer = AdamW(model.parameters(), fused=True)
    schedule = LambdaLR(optimizer, lambda step: 0.5**step)
    gradients(model, 0)
    model[0].bias.grad[0] = math.nan
    FoldedClip(optimizer, 1.0).step()
    schedule.step()  # a warning is an error here
    assert optimizer.param_groups[0]["lr"] == 0.0005


def test_no_gradients_no_clip_and_the_step_is_called():
    called = []
    model = net()
    optimizer = AdamW(model.parameters(), fused=True)
    optimizer.register_step_post_hook(lambda *_: called.append(1))
    stats = FoldedClip(optimizer, 1.0).step()
    assert stats.norm == 0 and stats.scale == 1 and bool(stats.finite) and called == [1]
    w = nn.Parameter(torch.zeros(0))
    w.grad = torch.zeros(0)
    assert FoldedClip(AdamW([w], fused=True), 1.0).step().norm == 0


# ---------------------------------------------------------------------- kinds of parameters
def both(make, max_norm, steps, prepare=lambda model, step: None, dtype=torch.float32):
    """Our model and torch's after some steps; ``prepare`` changes the gradients before each."""
    models = []
    for way in (folding, plainly):
        model = net().to(dtype)
        optimizer = make(model)
        step = way(optimizer, max_norm)
        for i in range(steps):
            fp32 = net()
            fp32.load_state_dict({k: v.float() for k, v in model.state_dict().items()})
            gradients(fp32, i)
            for p, q in zip(model.parameters(), fp32.parameters(), strict=True):
                p.grad = q.grad.to(dtype) if p.requires_grad else None
            prepare(model, i)
            step()
        models.append(model)
    return models


@pytest.mark.parametrize("device_way", [False, True])
def test_groups_with_settings_of_their_own(device_way, monkeypatch):
    def make(model):
        groups = [
            {"params": model[0].parameters(), "lr": 1e-2},
            {"params": model[2:].parameters(), "lr": 1e-3},
        ]
        return AdamW(groups, weight_decay=0.1, fused=True)

    with as_on_a_device(monkeypatch) if device_way else monkeypatch.context():
        assert distance(*both(make, 1.0, 40)) <= 1e-6


@pytest.mark.parametrize("device_way", [False, True])
def test_frozen_parameters_stay_and_count_for_nothing(device_way, monkeypatch):
    def make(model):
        model[0].requires_grad_(False)
        return Adam(model.parameters(), lr=3e-3, fused=True)

    with as_on_a_device(monkeypatch) if device_way else monkeypatch.context():
        ours, plain = both(make, 0.5, 40)
    assert distance(ours, plain) <= 1e-6
    assert torch.equal(ours[0].weight, net()[0].weight)


@pytest.mark.parametrize("kind", [Adam, torch.optim.Adagrad])
@pytest.mark.parametrize("device_way", [False, True])
def test_a_parameter_that_gets_its_first_gradient_late(kind, device_way, monkeypatch):
    def prepare(model, step):
        if step < 5:
            model[2].weight.grad = None

    with as_on_a_device(monkeypatch) if device_way else monkeypatch.context():
        ours, plain = both(lambda m: kind(m.parameters(), lr=3e-3, fused=True), 0.5, 40, prepare)
    assert distance(ours, plain) <= 1e-6


@pytest.mark.parametrize("device_way", [False, True])
def test_late_gradients_stop_fused_sgd_with_momentum_with_and_without_us(device_way, monkeypatch):
    def prepare(model, step):
        if step < 2:
            model[2].weight.grad = None

    def make(model):
        return SGD(model.parameters(), lr=0.1, momentum=0.9, fused=True)

    for way in (plainly, folding):
        model = net()
        optimizer = make(model)
        step = way(optimizer, 0.5)
        with as_on_a_device(monkeypatch) if device_way else monkeypatch.context():
            for i in range(2):
                gradients(model, i)
                prepare(model, i)
                step()
            gradients(model, 2)
            with pytest.raises(TypeError, match="NoneType"):
                step()
        assert not {"grad_scale", "found_inf"} & set(vars(optimizer))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("device_way", [False, True])
def test_low_precision_is_measured_in_float32_and_folded(dtype, device_way, monkeypatch):
    model = net().to(dtype)
    optimizer = AdamW(model.parameters(), fused=True)
    gradients(fp32 := net(), 0)
    for p, q in zip(model.parameters(), fp32.parameters(), strict=True):
        p.grad = q.grad.to(dtype)
    exact = math.sqrt(sum(float(p.grad.double().square().sum()) for p in model.parameters()))
    raw = [p.grad.double() for p in model.parameters()]
    with as_on_a_device(monkeypatch) if device_way else monkeypatch.context(), Count() as count:
        stats = FoldedClip(optimizer, 0.25).step()
    assert stats.norm.dtype == torch.float32 and stats.norm.item() == pytest.approx(exact, rel=1e-6)
    assert count.calls["_foreach_mul_"] == 0
    for p, g in zip(model.parameters(), raw, strict=True):
        torch.testing.assert_close(
            p.grad, (g * 0.25 / exact).to(dtype), rtol=2 * torch.finfo(dtype).eps, atol=1e-6
        )


# ---------------------------------------------------------------------- rules with a memory
@pytest.mark.parametrize(
    "make", [lambda: ZClip(warmup_steps=5, z_thres=1.0), lambda: AutoClip(percentile=40)]
)
@pytest.mark.parametrize("device_way", [False, True])
def test_a_rule_with_one_factor_decides_as_it_does_alone(make, device_way, monkeypatch):
    alone, rule = make(), make()

    def by_hand(optimizer, rule):
        def step():
            stats = rule([p.grad for group in optimizer.param_groups for p in group["params"]])
            if stats.finite:
                optimizer.step()
            return bool(stats.scale < 1)

        return step

    bad = (0, 20)
    plain, _, expected = trained(fused("adamw"), by_hand, alone, steps=60, bad=bad)
    with as_on_a_device(monkeypatch) if device_way else monkeypatch.context():
        ours, _, num_clipped = trained(fused("adamw"), folding, rule, steps=60, bad=bad)
    assert num_clipped == expected and num_clipped >= 5
    assert distance(ours, plain) <= 1e-6
    for key, value in alone.state_dict().items():
        torch.testing.assert_close(rule.state_dict()[key], value, rtol=1e-5, atol=1e-6)


def test_a_nonfinite_step_is_not_learned():
    model, rule = net(), ZClip()
    clip = FoldedClip(AdamW(model.parameters(), fused=True), rule)
    gradients(model, 0)
    clip.step()
    before = copy.deepcopy(rule.state_dict())
    gradients(model, 1)
    model[0].bias.grad[0] = math.inf
    clip.step()
    assert all(torch.equal(before[k], v) for k, v in rule.state_dict().items()) and before["num"] == 1


# ---------------------------------------------------------------------- bad input
def test_bad_input():
    params = list(net().parameters())
    with pytest.raises(ValueError, match="max_norm must be positive, got 0"):
        FoldedClip(AdamW(params), 0)
    with pytest.raises(TypeError, match="max_norm must be a number, got bool"):
        FoldedClip(AdamW(params), True)
    for rule in (AdaGC(), chain(ZClip()), ZClip):
        with pytest.raises(TypeError, match="a rule with one joint factor"):
            FoldedClip(AdamW(params), rule)
    with pytest.raises(TypeError, match="LBFGS takes its gradients inside the closure"):
        FoldedClip(torch.optim.LBFGS(params), 1.0)
    with pytest.raises(TypeError, match=r"must be a torch.optim.Optimizer, got list"):
        FoldedClip(params, 1.0)


def test_a_bound_of_inf_only_measures():
    model = net()
    gradients(model, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stats = FoldedClip(AdamW(model.parameters(), fused=True), math.inf).step()
    assert stats.scale == 1 and stats.norm > 0 and stats.limit == math.inf
