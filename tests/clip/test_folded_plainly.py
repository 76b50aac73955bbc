"""Where the factor cannot ride in the step: the plain way, equal to torch's clip and step, and said once."""

from __future__ import annotations

import functools
import math
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import SGD, Adagrad, Adam, AdamW, RMSprop
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.optimizer import register_optimizer_step_pre_hook

from steadygrad.clip import FoldedClip, folded
from tests.clip.folding import Count, bits, folding, gradients, net, plainly, same


class Mine(AdamW):
    """A subclass with a step of its own."""

    def step(self, closure=None):
        return super().step(closure)


def one_group_not_fused(model):
    optimizer = AdamW([{"params": model[0].parameters()}, {"params": model[2:].parameters()}], fused=True)
    optimizer.param_groups[1]["fused"] = None
    return optimizer


def replaced(model):
    optimizer = AdamW(model.parameters(), fused=True)
    optimizer.step = functools.partial(AdamW.step, optimizer)
    return optimizer


def hooked(model):
    optimizer = AdamW(model.parameters(), fused=True)
    optimizer.register_step_pre_hook(lambda *_: None)
    return optimizer


PLAIN = {  # how the optimizer is made, and what the warning says
    "for_loop": (lambda m: AdamW(m.parameters()), "this AdamW is not fused; build AdamW with fused=True"),
    "foreach": (
        lambda m: Adam(m.parameters(), foreach=True),
        "this Adam is not fused; build Adam with fused=True",
    ),
    "one_group": (one_group_not_fused, "for all its groups"),
    "sgd_momentum": (lambda m: SGD(m.parameters(), lr=0.05, momentum=0.9), "build SGD with fused=True"),
    "adagrad": (lambda m: Adagrad(m.parameters()), "build Adagrad with fused=True"),
    "other_kind": (
        lambda m: RMSprop(m.parameters()),
        "RMSprop takes no factor; use Adam, AdamW, SGD or Adagrad",
    ),
    "subclass": (lambda m: Mine(m.parameters(), fused=True), "Mine takes no factor"),
    "replaced": (replaced, "the step of this AdamW was replaced or compiled"),
    "pre_hook": (hooked, "a step pre-hook would see gradients that are not clipped yet"),
}


@pytest.mark.parametrize("case", PLAIN)
def test_equal_to_clip_grad_norm_and_step_bit_for_bit(case):
    make, _ = PLAIN[case]
    runs, num_clipped = [], []
    for way in (folding, plainly):
        model = net()
        optimizer = make(model)
        step, clipped = way(optimizer, 1.0), []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for i in range(20):
                gradients(model, i)
                if i in (0, 7):
                    model[2].bias.grad[3] = math.nan
                clipped.append(step() and i not in (0, 7))
        model.zero_grad()  # torch's clip has spoilt the gradients of a bad step; ours leaves them
        runs.append(optimizer)
        num_clipped.append(sum(clipped))
    assert same(*runs) and 3 < num_clipped[0] == num_clipped[1] < 18


@pytest.mark.parametrize("case", PLAIN)
def test_said_once_with_the_reason_and_the_next_move(case):
    make, text = PLAIN[case]
    model = net()
    clip = FoldedClip(make(model), 1.0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for i in range(3):
            gradients(model, i)
            clip.step()
    assert [w.category for w in caught] == [UserWarning] and text in str(caught[0].message)
    assert str(caught[0].message).startswith("FoldedClip clips the plain way: ")
    assert caught[0].filename == __file__


@pytest.mark.parametrize("case", PLAIN)
def test_a_bad_step_leaves_everything_as_it_was(case):
    model = net()
    optimizer = PLAIN[case][0](model)
    clip = FoldedClip(optimizer, 1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for i in range(3):
            gradients(model, i)
            if i != 1:
                model[0].weight.grad[2, 2] = math.inf
            before = bits(optimizer)
            finite = clip.step().finite
            assert (bits(optimizer) == before) is (i != 1) and bool(finite) is (i == 1)


def test_a_pre_hook_sees_clipped_gradients():
    norms = []
    model = net()
    optimizer = AdamW(model.parameters(), fused=True)
    optimizer.register_step_pre_hook(
        lambda *_: norms.append(float(torch.stack([p.grad.norm() for p in model.parameters()]).norm()))
    )
    gradients(model, 0)
    with pytest.warns(UserWarning, match="pre-hook"):
        FoldedClip(optimizer, 0.1).step()
    assert norms == [pytest.approx(0.1, rel=1e-4)]


def test_a_global_pre_hook_counts_too():
    model = net()
    gradients(model, 0)
    handle = register_optimizer_step_pre_hook(lambda *_: None)
    try:
        with pytest.warns(UserWarning, match="pre-hook"):
            FoldedClip(AdamW(model.parameters(), fused=True), 0.1).step()
    finally:
        handle.remove()


def test_a_scheduler_around_the_step_is_no_reason():
    model = net()
    optimizer = AdamW(model.parameters(), fused=True)
    LambdaLR(optimizer, lambda step: 1.0)
    gradients(model, 0)
    with Count() as count:  # a warning is an error here
        assert FoldedClip(optimizer, 0.1).step().scale < 1
    assert count.calls["_foreach_mul_"] == 0


# ---------------------------------------------------------------------- GradScaler
@pytest.mark.parametrize("kind", [Adam, functools.partial(SGD, lr=0.1, momentum=0.9, dampening=0.5)])
def test_with_a_grad_scaler_that_has_unscaled_it_folds(kind):
    """Three overflows of the loss scale first, then steps equal to those without a scaler."""
    model, plain = net(), net()
    optimizer, other = kind(model.parameters(), fused=True), kind(plain.parameters(), fused=True)
    clip, step = FoldedClip(optimizer, 1.0), plainly(other, 1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=10_000)
    for i in range(12):
        gradients(model, i)
        factor = scaler.scale(torch.ones(()))
        for p in model.parameters():
            p.grad.mul_(factor)
        if i < 3:
            model[0].weight.grad[0, 0] = math.inf
        scaler.unscale_(optimizer)
        with Count() as count:
            stats = clip.step()
        scaler.update()
        assert bool(stats.finite) is (i >= 3) and count.calls["_foreach_mul_"] == 0
        if i >= 3:
            gradients(plain, i)
            step()
    assert scaler.get_scale() == 1.0  # halved three times
    model.zero_grad()
    plain.zero_grad()
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("max_norm", [0.5, 100.0])
def test_gradients_that_a_scaler_left_to_the_optimizer_are_measured_without_its_factor(max_norm):
    ours, plain = net(), net()
    a, b = AdamW(ours.parameters(), fused=True), AdamW(plain.parameters(), fused=True)
    gradients(ours, 4)
    gradients(plain, 4)
    for p in ours.parameters():
        p.grad.mul_(1024.0)
    a.grad_scale, a.found_inf = torch.tensor(1024.0), torch.tensor(0.0)
    with pytest.warns(UserWarning, match=r"call scaler.unscale_\(optimizer\), and no scaler.step"):
        stats = FoldedClip(a, max_norm).step()
    assert a.grad_scale == 1024 and a.found_inf == 0  # the scaler's, and it takes them away itself
    assert torch.equal(stats.norm, clip_grad_norm_(plain.parameters(), max_norm))
    b.step()
    for p, q in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=0)


# ---------------------------------------------------------------------- gradients of other kinds
def one(weight, grad, kind=AdamW, **settings):
    w = nn.Parameter(weight)
    w.grad = grad
    return w, kind([w], **settings)


def test_sparse_gradients():
    def embedding(**settings):
        torch.manual_seed(0)
        layer = nn.Embedding(10, 4, sparse=True)
        layer(torch.tensor([1, 2, 2, 7])).square().sum().backward()
        return layer.weight, SGD([layer.weight], lr=0.1, **settings)

    w, optimizer = embedding()
    start = w.detach().clone()
    with pytest.warns(UserWarning, match="not fused"):
        stats = FoldedClip(optimizer, 0.5).step()
    v, _ = embedding()
    expected = start - 0.1 * v.grad.to_dense() * (0.5 / v.grad.to_dense().norm())
    torch.testing.assert_close(w.detach(), expected)
    assert stats.norm.item() == pytest.approx(v.grad.to_dense().norm().item())
    w, optimizer = embedding(fused=True)  # torch refuses these itself
    with pytest.warns(UserWarning, match="sparse=False"), pytest.raises(RuntimeError, match="sparse"):
        FoldedClip(optimizer, 0.5).step()


def test_float64_keeps_its_precision():
    grad = torch.randn(50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    w, optimizer = one(torch.zeros(50, dtype=torch.float64), grad.clone(), SGD, lr=1.0, fused=True)
    with pytest.warns(UserWarning, match="float64 or complex"):
        stats = FoldedClip(optimizer, 1.0).step()
    assert stats.norm.dtype == torch.float64
    torch.testing.assert_close(w.detach(), -grad / (grad.norm() + 1e-6), rtol=1e-14, atol=0)


def test_complex_gradients():
    grad = torch.randn(50, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    w, optimizer = one(torch.zeros(50, dtype=torch.complex64), grad.clone(), SGD, lr=1.0)
    with pytest.warns(UserWarning, match="not fused"):
        stats = FoldedClip(optimizer, 1.0).step()
    torch.testing.assert_close(w.detach(), -grad / grad.norm())
    assert stats.norm.item() == pytest.approx(grad.norm().item())


def test_another_order_in_memory():
    """torch's fused step mixes up the entries then; with us it does the same, and the user is told."""
    weight = torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last)
    grad = torch.randn(4, 3, 2, 2)
    w, a = one(weight.clone(memory_format=torch.preserve_format), grad.clone(), fused=True)
    v, b = one(weight.clone(memory_format=torch.preserve_format), grad.clone(), fused=True)
    assert w.stride() != w.grad.stride()
    with pytest.warns(UserWarning, match="lies in memory in another order than its parameter"):
        FoldedClip(a, 0.5).step()
    clip_grad_norm_([v], 0.5)
    b.step()
    assert torch.equal(w, v)


def test_channels_last_on_both_sides_folds():
    weight = torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last)
    grad = torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last)
    w, a = one(weight.clone(memory_format=torch.preserve_format), grad.clone(), fused=True)
    v, b = one(weight.clone(memory_format=torch.preserve_format), grad.clone())
    with Count() as count:
        FoldedClip(a, 0.5).step()
    assert count.calls["_foreach_mul_"] == 0
    clip_grad_norm_([v], 0.5)
    b.step()
    torch.testing.assert_close(w, v, rtol=1e-6, atol=1e-7)


def test_a_dtype_unlike_the_parameters():
    """Of torch's optimizers none takes such a gradient; the reason is what can be tested."""
    p = nn.Parameter(torch.zeros(3))
    assert "another dtype" in folded.odd_gradients([p], [torch.zeros(3, dtype=torch.bfloat16)])


def test_several_devices_and_unknown_ones():
    here, meta = torch.zeros(3), torch.zeros(3, device="meta")
    assert "several devices" in folded.odd_gradients([here, meta], [here, meta])
    assert "on meta a fused step is not known" in folded.odd_gradients([meta], [meta])


def test_a_class_of_its_own():
    class Special(torch.Tensor):
        pass

    grad = torch.randn(5).as_subclass(Special)
    w, a = one(torch.zeros(5), grad, fused=True)
    with pytest.warns(UserWarning, match="of a class of its own"):
        FoldedClip(a, 0.1).step()
    assert w.grad.norm().item() == pytest.approx(0.1, rel=1e-4)


def test_a_compiled_step_is_not_touched():
    optimizer = AdamW(net().parameters(), fused=True)
    assert folded.cannot_fold(optimizer) == ""
    optimizer.step = torch.compile(optimizer.step, backend="eager")
    assert "replaced or compiled" in folded.cannot_fold(optimizer)


def test_in_a_compiled_training_step_it_runs_as_ever():
    runs = []
    for compiled in (False, True):
        model = net()
        optimizer = AdamW(model.parameters(), fused=True)
        clip = FoldedClip(optimizer, 0.5)
        torch._dynamo.reset()
        step = torch.compile(lambda clip=clip: clip.step(), backend="eager") if compiled else clip.step
        finite = []
        for i in range(4):
            gradients(model, i)
            if i == 2:
                model[0].bias.grad[0] = math.nan
            finite.append(bool(step().finite))
        assert finite == [True, True, False, True]
        runs.append(optimizer)
    assert same(*runs)
