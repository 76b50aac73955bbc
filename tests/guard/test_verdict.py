"""A step that the device decides on: skipped, it leaves no trace; taken, it is the plain step."""

import copy
import math

import pytest
import torch
from torch import nn

from steadygrad.guard.buffers import BufferKeeper
from steadygrad.guard.policy import SQUARE_OVERFLOWS, Policy
from steadygrad.guard.verdict import Verdict, takes_a_verdict
from steadygrad.records import ParamInfo, StepStats
from steadygrad.rules.history import History

MAKE = {
    "adamw": lambda params, **more: torch.optim.AdamW(params, lr=0.01, **more),
    "amsgrad": lambda params, **more: torch.optim.Adam(params, lr=0.01, amsgrad=True, **more),
    "momentum": lambda params, **more: torch.optim.SGD(params, lr=0.1, momentum=0.9, **more),
    "sgd": lambda params, **more: torch.optim.SGD(params, lr=0.1, weight_decay=0.1, **more),
    "adagrad": lambda params, **more: torch.optim.Adagrad(params, lr=0.1, **more),
}


def trained(name, dtype=torch.float32, **more):
    """Two weights and an optimizer that has taken a few steps, with the gradient of the next in place."""
    torch.manual_seed(0)
    params = [nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in ((4, 3), (5,))]
    optimizer = MAKE[name](params, **({"fused": True} | more))
    for _ in range(3):
        for p in params:
            p.grad = torch.randn_like(p)
        optimizer.step()
    for p in params:
        p.grad = torch.randn_like(p)
    return params, optimizer


def decide(optimizer, bound, buffers=None):
    grads = [p.grad for group in optimizer.param_groups for p in group["params"]]
    verdict = Verdict(optimizer, [g.double().norm() for g in grads], bound, buffers or BufferKeeper([]))
    verdict.lend()
    optimizer.step()
    verdict.take_back()
    return verdict


def state(params, optimizer):
    return [p.detach().clone() for p in params], copy.deepcopy(optimizer.state_dict()["state"])


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return len(a) == len(b) and all(map(same, a, b)) if isinstance(a, list | tuple) else a == b


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", MAKE)
def test_skipped_it_leaves_no_trace_and_taken_it_is_the_plain_step(name, dtype):
    params, optimizer = trained(name, dtype)
    assert takes_a_verdict(optimizer)
    before = state(params, optimizer)
    for value in (math.nan, -math.inf, 1e10):
        kept = params[1].grad[2].item()
        params[1].grad[2] = value
        assert decide(optimizer, 1e9).skip.item() and same(state(params, optimizer), before)
        params[1].grad[2] = kept
    assert not decide(optimizer, 1e9).skip.item() and not hasattr(optimizer, "found_inf")
    twins, twin = trained(name, dtype)
    twin.step()
    assert same(state(params, optimizer), state(twins, twin))


def test_what_the_host_has_to_decide():
    assert not takes_a_verdict(trained("adamw", fused=False)[1])
    assert not takes_a_verdict(trained("adamw", torch.float64)[1])
    params, optimizer = trained("momentum")
    optimizer.state[params[0]]["momentum_buffer"] = None
    assert not takes_a_verdict(optimizer)  # its first step makes the state
    params, optimizer = trained("adamw")
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))]})
    assert takes_a_verdict(optimizer)
    optimizer.param_groups[1]["params"][0].grad = torch.ones(2)
    assert not takes_a_verdict(optimizer)
    _, optimizer = trained("adamw")
    handle = optimizer.register_step_post_hook(lambda *_: None)
    assert not takes_a_verdict(optimizer)
    handle.remove()
    assert takes_a_verdict(optimizer)
    optimizer.zero_grad()
    assert not takes_a_verdict(optimizer)
    _, optimizer = trained("sgd")
    optimizer.param_groups[0]["lr"] = torch.tensor(0.1)
    assert not takes_a_verdict(optimizer)


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.tensor([1.0, 2.0]))
        self.register_buffer("low", torch.tensor([[math.inf]]))
        self.register_buffer("short", torch.ones(3, dtype=torch.bfloat16))
        self.register_buffer("count", torch.tensor(3))
        self.register_buffer("mask", torch.tensor([True, False]))
        self.register_buffer("none_yet", torch.empty(0))


@pytest.mark.parametrize("skipped", [True, False])
def test_buffers_are_kept_or_put_back_by_the_flag(skipped):
    layer = Layer()
    keeper = BufferKeeper([layer])
    old = copy.deepcopy(layer.state_dict())
    layer.mean[1], layer.short[0], layer.low[0, 0] = math.nan, 7.0, -1.0
    layer.count += 1
    layer.mask.logical_not_()
    new = copy.deepcopy(layer.state_dict())
    versions = [buffer._version for buffer in layer.buffers()]
    keeper.keep_unless(torch.tensor(skipped))
    assert [buffer._version for buffer in layer.buffers()] == versions
    right = old if skipped else new
    for _ in range(2):
        assert all(
            torch.equal(v.nan_to_num(9), right[k].nan_to_num(9)) for k, v in layer.state_dict().items()
        )
        layer.mean.zero_()
        layer.count.zero_()
        keeper.restore()


def test_buffers_that_became_nan_are_named_alike():
    layer = Layer()
    layer.short[1] = math.nan  # before the keeper came
    keeper = BufferKeeper([layer])
    assert not any(keeper.became_nan()) and keeper.poisoned() == []
    layer.mean[0], layer.low[0, 0], layer.short[0] = math.inf, -math.inf, math.nan
    assert not any(keeper.became_nan()) and keeper.poisoned() == []
    layer.low[0, 0] = math.nan
    flags = keeper.became_nan()
    assert keeper.names_of([float(flag) for flag in flags]) == keeper.poisoned() == ["Layer.low"]
    _, optimizer = trained("adamw")
    assert Verdict(optimizer, [torch.ones((), dtype=torch.float64)], 1e9, keeper).skip.item()
    with keeper.as_kept():
        assert layer.low.item() == math.inf
    assert math.isnan(layer.low.item())


def test_gradients_of_a_skipped_step_are_cleared_where_they_are_still_kept():
    params, optimizer = trained("adamw")
    params[0].grad[0, 0] = math.nan
    verdict = decide(optimizer, 1e9)
    verdict.step_over(BufferKeeper([]))
    new = params[1].grad = torch.ones(5)  # by the user, since
    assert verdict.clear() and not params[0].grad.any() and bool(new.all())
    assert not verdict.clear()


def test_gradients_of_a_step_that_was_taken_stay_as_they_are():
    params, optimizer = trained("adamw")
    kept = [p.grad.clone() for p in params]
    verdict = decide(optimizer, 1e9)
    verdict.step_over(BufferKeeper([]))
    assert verdict.clear() and all(torch.equal(p.grad, grad) for p, grad in zip(params, kept, strict=True))


@pytest.mark.parametrize("largest", [None, 3.0, 1e17])
def test_the_bound_is_the_one_that_the_host_decides_by(largest):
    history, policy = History(), Policy()
    info = ParamInfo(0, "w", (2,), "float32", 0, "", "")

    def stats(norm, step=1):
        return StepStats(step, 0, 1.0, norm, norm, torch.full((1,), norm).numpy(), 0.1, [info])

    if largest is not None:
        history.ingest(stats(largest, 0))
    bound = policy.bound(history)
    assert bound == (SQUARE_OVERFLOWS if largest != 3.0 else 3e6)
    assert policy.before(stats(bound), history, 1).apply
    assert not policy.before(stats(math.nextafter(bound, math.inf)), history, 1).apply


def test_nothing_may_follow_from_a_step_that_is_the_devices():
    assert Policy().at_rest(0)
    for busy in (
        {"clip": 1.0},
        {"lr_factor": 0.3},
        {"rewarm_from": 3},
        {"skips_in_a_row": {0: 1}},
    ):
        assert not Policy(**busy).at_rest(0), busy
    policy = Policy(skips_in_a_row={1: 1})
    assert policy.at_rest(0) and not policy.at_rest(1)
    policy.recent_skips.extend(range(policy.limits.max_skips_in_window))
    assert not policy.at_rest(0)
