"""A factor around the step: the scheduler sees nothing of it, and the parameters all of it."""

from __future__ import annotations

import copy
import gc
import math
import weakref
from functools import partial

import pytest
import torch
from torch.optim import SGD, Adam, AdamW
from torch.optim import lr_scheduler as torch_schedulers

from steadygrad.schedule import (
    BackOff,
    LRFactor,
    effective_lr,
    linear_warmup,
    lr_factors,
    sqrt_warmup,
    untuned_exponential_warmup,
    untuned_linear_warmup,
    untuned_warmup,
    warmup,
)

SCHEDULERS = {
    "cosine": partial(torch_schedulers.CosineAnnealingLR, T_max=17),
    "restarts": partial(torch_schedulers.CosineAnnealingWarmRestarts, T_0=5),
    "exponential": partial(torch_schedulers.ExponentialLR, gamma=0.9),
    "multistep": partial(torch_schedulers.MultiStepLR, milestones=[3, 9]),
    "onecycle": partial(torch_schedulers.OneCycleLR, max_lr=0.5, total_steps=40),
    "cyclic": partial(torch_schedulers.CyclicLR, base_lr=0.1, max_lr=0.5, step_size_up=4),
    "chained": lambda o: torch_schedulers.ChainedScheduler(
        [torch_schedulers.ConstantLR(o, total_iters=5), torch_schedulers.ExponentialLR(o, 0.95)]
    ),
    "sequential": lambda o: torch_schedulers.SequentialLR(
        o, [torch_schedulers.LinearLR(o), torch_schedulers.ExponentialLR(o, 0.95)], [5]
    ),
}


def model(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))


def loss(net: torch.nn.Module, step: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(step)
    return (net(torch.randn(8, 3, generator=g)) - 1).square().mean()


def train(net, optimizer, scheduler=None, steps=30, first=0, before=lambda step: None):
    for step in range(first, first + steps):
        before(step)
        optimizer.zero_grad()
        loss(net, step).backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()


def weights(net: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in net.parameters()])


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_scheduler_goes_on_unchanged_and_the_step_uses_the_product(name):
    build = SCHEDULERS[name]
    plain, net, twin = model(), model(), model()
    plain_opt, opt, twin_opt = (SGD(m.parameters(), lr=0.3, momentum=0.9) for m in (plain, net, twin))
    plain_sched, sched = build(plain_opt), build(opt)
    ramp = warmup(opt, warmup_steps=6)
    for step in range(20):
        assert opt.param_groups[0]["lr"] == plain_opt.param_groups[0]["lr"]  # bit for bit
        # the twin: plain SGD whose rate is set by hand before every step
        used = opt.param_groups[0]["lr"] * linear_warmup(step, 6)
        assert effective_lr(opt) == [used]
        for key in ("lr", "momentum"):  # one-cycle moves the momentum too
            twin_opt.param_groups[0][key] = used if key == "lr" else opt.param_groups[0][key]
        train(twin, twin_opt, steps=1, first=step)
        train(net, opt, sched, steps=1, first=step)
        train(plain, plain_opt, plain_sched, steps=1, first=step)
        assert torch.equal(weights(net), weights(twin))
    assert ramp.num_steps == 20
    assert not torch.equal(weights(net), weights(plain))


def test_bit_exact_once_the_factor_is_one():
    """A warm-up that is over from the start changes nothing, and does not even touch group["lr"]."""
    plain, net = model(), model()
    opts = [AdamW(m.parameters(), lr=0.1 / 3) for m in (plain, net)]
    warmup(opts[1], warmup_steps=1)
    rate = opts[1].param_groups[0]["lr"]
    for m, o in zip((plain, net), opts, strict=True):
        train(m, o)
    assert torch.equal(weights(plain), weights(net)) and opts[1].param_groups[0]["lr"] is rate


def test_order_of_scheduler_and_factor_does_not_matter():
    nets = [model(), model()]
    opts = [SGD(m.parameters(), lr=0.2) for m in nets]
    ramp_first = warmup(opts[0], 9)
    scheds = [torch_schedulers.ExponentialLR(o, 0.9) for o in opts]
    warmup(opts[1], 9)
    for net, opt, sched in zip(nets, opts, scheds, strict=True):
        train(net, opt, sched)
    assert torch.equal(weights(nets[0]), weights(nets[1])) and ramp_first.num_steps == 30


def test_several_factors_multiply_and_come_off_together():
    """Post-hooks run in the order of the pre-hooks: two that each restore would leave the first factor on."""
    net = model()
    opt = SGD(net.parameters(), lr=0.7)
    warmup(opt, 10)
    LRFactor(opt, lambda step: 0.5)
    back_off = BackOff(opt)
    back_off.incident()
    assert effective_lr(opt) == [0.7 * (0.1 * 0.5 * 0.5)]
    assert len(lr_factors(opt)) == 3 and lr_factors(opt)[2] is back_off
    for _ in range(3):
        train(net, opt, steps=1)
        assert opt.param_groups[0]["lr"] == 0.7


def test_groups_have_their_own_factors():
    a, b = torch.nn.Parameter(torch.zeros(1)), torch.nn.Parameter(torch.zeros(1))
    opt = SGD([{"params": [a], "lr": 1.0}, {"params": [b], "lr": 2.0}])
    LRFactor(opt, [lambda step: 0.5, lambda step: 0.25])
    a.grad = b.grad = torch.ones(1)
    opt.step()
    assert (a.item(), b.item()) == (-0.5, -0.5) and [g["lr"] for g in opt.param_groups] == [1.0, 2.0]
    opt.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))]})
    with pytest.raises(ValueError, match="2 groups, the optimizer has 3"):
        opt.step()
    assert [g["lr"] for g in opt.param_groups][:2] == [1.0, 2.0]


def test_a_group_added_later_is_warmed_up_too():
    a, b = torch.nn.Parameter(torch.zeros(1)), torch.nn.Parameter(torch.zeros(1))
    opt = SGD([a], lr=1.0)
    warmup(opt, 4)
    opt.add_param_group({"params": [b], "lr": 2.0})
    a.grad = b.grad = torch.ones(1)
    opt.step()
    assert (a.item(), b.item()) == (-0.25, -0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_lr_as_tensor_is_scaled_in_place_and_put_back_bit_for_bit(dtype):
    net, twin = model(), model()
    lr = torch.tensor(0.1 / 3, dtype=dtype)
    opt = Adam(net.parameters(), lr=lr)
    twin_opt = Adam(twin.parameters(), lr=lr.clone())
    used = opt.param_groups[0]["lr"]
    bits = used.clone()
    warmup(opt, 7)
    for step in range(9):
        twin_opt.param_groups[0]["lr"] = bits * linear_warmup(step, 7)
        train(net, opt, steps=1, first=step)
        train(twin, twin_opt, steps=1, first=step)
        assert opt.param_groups[0]["lr"] is used and torch.equal(used, bits)
        assert torch.equal(weights(net), weights(twin))


def test_groups_that_share_one_tensor_are_scaled_once():
    a, b = torch.nn.Parameter(torch.zeros(1)), torch.nn.Parameter(torch.zeros(1))
    opt = Adam([{"params": [a]}, {"params": [b]}], lr=torch.tensor(1.0), foreach=False)
    shared = opt.param_groups[0]["lr"]
    opt.param_groups[1]["lr"] = shared
    warmup(opt, 4)
    a.grad = b.grad = torch.ones(1)
    opt.step()
    assert a.item() == b.item() == pytest.approx(-0.25, rel=1e-6) and shared.item() == 1.0
    LRFactor(opt, [lambda step: 1.0, lambda step: 0.0])  # the first one's factor, whatever it is
    opt.step()
    assert a.item() == b.item() and shared.item() == 1.0


def test_untuned_takes_beta2_of_each_group():
    params = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    groups = [{"params": [params[0]], "betas": (0.9, 0.95)}, {"params": [params[1]], "betas": (0.9, 0.5)}]
    ramp = untuned_warmup(AdamW(groups, lr=1.0))
    assert (
        ramp.factors()
        == [untuned_linear_warmup(0, 0.95), untuned_linear_warmup(0, 0.5)]
        == [
            pytest.approx(1 / 40),
            0.25,
        ]
    )
    other = untuned_warmup(AdamW(groups, lr=1.0), shape=untuned_exponential_warmup)
    assert other.factors()[1] == pytest.approx(1 - math.exp(-0.5))


@pytest.mark.parametrize("stop", [0, 1, 4, 9, 15])
def test_resume_at_any_step_is_bit_exact(stop):
    def build():
        net = model()
        opt = AdamW(net.parameters(), lr=0.05)
        sched = torch_schedulers.CosineAnnealingLR(opt, 20)
        return net, opt, sched, warmup(opt, 10, shape=sqrt_warmup)

    whole = build()
    train(*whole[:3], steps=20)
    first = build()
    train(*first[:3], steps=stop)
    saved = copy.deepcopy([part.state_dict() for part in first])
    second = build()
    for part, state in zip(second, saved, strict=True):
        part.load_state_dict(state)
    assert second[3].state_dict() == first[3].state_dict() == {"num_steps": stop}
    train(*second[:3], steps=20 - stop, first=stop)
    assert torch.equal(weights(second[0]), weights(whole[0]))


def test_a_step_that_raises_is_not_counted_and_its_factor_comes_off():
    net = model()
    opt = SGD(net.parameters(), lr=0.5)
    ramp = warmup(opt, 10)

    def closure():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        opt.step(closure)
    assert ramp.num_steps == 0 and effective_lr(opt) == [0.05]  # seen through
    train(net, opt, steps=1)
    assert opt.param_groups[0]["lr"] == 0.5 and ramp.num_steps == 1
    with pytest.raises(ZeroDivisionError):
        opt.step(closure)
    ramp.remove()
    assert opt.param_groups[0]["lr"] == 0.5


def test_a_rate_set_while_the_factor_is_on_is_kept():
    param = torch.nn.Parameter(torch.zeros(1))
    opt = SGD([param], lr=1.0)
    warmup(opt, 4)

    def closure():
        opt.param_groups[0]["lr"] = 3.0
        return torch.tensor(0.0)

    opt.step(closure)
    assert opt.param_groups[0]["lr"] == 3.0


def test_steps_that_a_grad_scaler_skips_are_not_counted():
    param = torch.nn.Parameter(torch.zeros(1))
    opt = SGD([param], lr=1.0)
    ramp = warmup(opt, 4)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    for value in (math.inf, 1.0):
        param.grad = torch.full((1,), value)
        scaler.scale(torch.ones(()))
        scaler.step(opt)
        scaler.update()
    assert ramp.num_steps == 1 and opt.param_groups[0]["lr"] == 1.0


def test_lbfgs_uses_it_within_its_closure():
    net = model()
    opt = torch.optim.LBFGS(net.parameters(), lr=1.0, max_iter=2)
    warmup(opt, 4)
    seen = []

    def closure():
        seen.append(opt.param_groups[0]["lr"])
        opt.zero_grad()
        value = loss(net, 0)
        value.backward()
        return value

    opt.step(closure)
    assert set(seen) == {0.25} and opt.param_groups[0]["lr"] == 1.0


def test_remove():
    net, plain = model(), model()
    opt, plain_opt = SGD(net.parameters(), lr=0.5), SGD(plain.parameters(), lr=0.5)
    ramp = warmup(opt, 10)
    ramp.remove()
    ramp.remove()
    train(net, opt)
    train(plain, plain_opt)
    assert torch.equal(weights(net), weights(plain)) and ramp.num_steps == 0
    assert effective_lr(opt) == effective_lr(plain_opt) == [0.5]
    assert lr_factors(opt) == lr_factors(plain_opt) == ()


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf])
def test_bad_factor_changes_nothing(value):
    net = model()
    opt = SGD(net.parameters(), lr=0.5)
    ramp = LRFactor(opt, lambda step: value)
    before = weights(net)
    with pytest.raises(ValueError, match="factor at step 0"):
        train(net, opt, steps=1)
    assert torch.equal(weights(net), before) and opt.param_groups[0]["lr"] == 0.5 and ramp.num_steps == 0


def test_zero_factor_stands_still():
    net = model()
    opt = SGD(net.parameters(), lr=0.5)
    LRFactor(opt, lambda step: 0.0)
    before = weights(net)
    train(net, opt, steps=2)
    assert torch.equal(weights(net), before)


def test_a_nan_gradient_leaves_no_trace_in_the_factor():
    param = torch.nn.Parameter(torch.zeros(1))
    opt = SGD([param], lr=1.0)
    ramp = warmup(opt, 4)
    param.grad = torch.full((1,), math.nan)
    opt.step()
    assert ramp.factors() == [0.5] and opt.param_groups[0]["lr"] == 1.0


def test_bad_arguments():
    opt = SGD(model().parameters(), lr=0.5)
    with pytest.raises(TypeError, match=r"torch\.optim\.Optimizer, got Sequential"):
        warmup(model(), 5)
    with pytest.raises(TypeError, match="function of the step"):
        LRFactor(opt, 0.5)
    with pytest.raises(ValueError, match="1 groups is needed, got 2"):
        LRFactor(opt, [lambda step: 1.0] * 2)
    with pytest.raises(ValueError, match="warmup_steps"):
        warmup(opt, -1)
    with pytest.raises(ValueError, match=r"no betas.*use warmup\(\)"):
        untuned_warmup(opt)
    with pytest.raises(TypeError, match="got list"):
        untuned_warmup([])
    ramp = warmup(opt, 5)
    for state in ({}, {"num_steps": -1}, {"num_steps": 1, "x": 2}, {"num_steps": 0.5}):
        with pytest.raises((ValueError, TypeError), match="num_steps"):
            ramp.load_state_dict(state)
    assert ramp.num_steps == 0 and "num_steps=0, factors=[0.2]" in repr(ramp)


def test_the_optimizer_is_not_kept_alive():
    opt = SGD(model().parameters(), lr=0.5)
    warmup(opt, 5)
    ref = weakref.ref(opt)
    del opt
    gc.collect()
    assert ref() is None


def test_state_dict_and_copy_of_the_optimizer_hold_no_factor():
    net = model()
    opt = SGD(net.parameters(), lr=0.5)
    warmup(opt, 5)
    train(net, opt, steps=2)
    assert opt.state_dict()["param_groups"][0]["lr"] == 0.5
    assert effective_lr(copy.deepcopy(opt)) == [0.5]


@pytest.mark.slow  # dynamo loads inductor to look at the gradients
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning")
def test_compiled_step_with_lr_as_tensor():
    net, twin = model(), model()
    opts = [Adam(m.parameters(), lr=torch.tensor(0.1), foreach=False) for m in (net, twin)]
    for o in opts:
        warmup(o, 4)
    compiled = torch.compile(opts[0].step, backend="eager")
    for step in range(6):
        for m, o, go in zip((net, twin), opts, (compiled, opts[1].step), strict=True):
            o.zero_grad()
            loss(m, step).backward()
            go()
        torch.testing.assert_close(weights(net), weights(twin), rtol=0, atol=1e-5)  # steps of 0.1
    assert opts[0].param_groups[0]["lr"] == torch.tensor(0.1)
