"""Every optimizer is used as torch's are: groups, schedules, checkpoints, scalers, hooks."""

from __future__ import annotations

import copy
import io
import math
import pickle

import pytest
import torch

from tests.optim.cases import (
    OPTIMIZERS,
    Case,
    draw,
    everything,
    give,
    over,
    parameters,
    run,
    same,
)

VARIANTS = {
    "lars_plain_vectors",
    "lamb_clamped",
    "muon_original",
    "nero_free",
    "scion_constrained",
    "steady_free",
}


def slow_but(name):
    """All optimizers, all but one of them only in the long run of the tests."""
    cases = [pytest.param(c, id=c.name, marks=[] if c.name == name else pytest.mark.slow) for c in OPTIMIZERS]
    return pytest.mark.parametrize("case", cases)


@over()
def test_lr_zero_moves_nothing(case: Case):
    params = parameters()
    optimizer = case.make(params, lr=0.0)
    before = [p.detach().clone() for p in params]
    run(optimizer, params, range(3))
    for p, b in zip(params, before, strict=True):
        torch.testing.assert_close(p.detach(), b, rtol=1e-6, atol=1e-6)  # Nero balances again
    if "nero" not in case.name:
        assert same(params, before)


@over()
def test_lr_may_be_a_tensor(case: Case):
    params, tensor = parameters(), parameters()
    a = case.make(params, lr=0.01)
    b = case.make(tensor, lr=torch.tensor(0.01))
    run(a, params, range(5))
    run(b, tensor, range(5))
    for p, q in zip(params, tensor, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


@over()
def test_schedules_set_the_rate(case: Case):
    params, by_hand = parameters(), parameters()
    a, b = case.make(params), case.make(by_hand)
    lr = a.defaults["lr"]
    schedule = torch.optim.lr_scheduler.LinearLR(a, 1.0, 0.5, total_iters=4)
    for step in range(4):
        run(a, params, [step])
        schedule.step()
        b.param_groups[0]["lr"] = lr * (1 - step / 8)
        run(b, by_hand, [step])
    for p, q in zip(params, by_hand, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


@over()
def test_groups_are_stepped_as_optimizers_of_their_own(case: Case):
    params, apart = parameters(), parameters()
    joint = case.make([{"params": params[:2]}, {"params": params[2:4], "lr": 0.003}])
    joint.add_param_group({"params": params[4], "maximize": True})
    alone = [
        case.make(apart[:2]),
        case.make(apart[2:4], lr=0.003),
        case.make(apart[4:], maximize=True),
    ]
    for step in range(4):
        run(joint, params, [step])
        give(apart, draw(100 + step))
        for optimizer in alone:
            optimizer.step()
    assert same(params, apart)


@over()
def test_a_parameter_added_later_starts_from_its_own_first_step(case: Case):
    params = parameters()
    optimizer = case.make(params[:1])
    for step in range(30):
        give(params, [*draw(step)[:1], None, None, None, None])
        optimizer.step()
    optimizer.add_param_group({"params": params[4:]})
    fresh = parameters()[4:]
    other = case.make(fresh)
    give(params[4:], draw(0)[4:])
    give(fresh, draw(0)[4:])
    optimizer.step()
    other.step()
    torch.testing.assert_close(params[4], fresh[0], rtol=1e-6, atol=1e-7)


@over()
def test_named_parameters(case: Case):
    params = parameters()
    optimizer = case.make([(f"p{i}", p) for i, p in enumerate(params)])
    assert optimizer.param_groups[0]["param_names"] == [f"p{i}" for i in range(5)]
    run(optimizer, params, range(2))


@over()
def test_mixed_dtypes_in_one_group(case: Case):
    dtypes = [torch.float32, torch.float64, torch.bfloat16, torch.float32, torch.float64]
    mixed = [torch.nn.Parameter(w.to(d)) for w, d in zip(draw(7), dtypes, strict=True)]
    alone = [torch.nn.Parameter(w.to(d)) for w, d in zip(draw(7), dtypes, strict=True)]
    optimizer, others = case.make(mixed), [case.make([p]) for p in alone]
    for step in range(3):
        for params in (mixed, alone):
            give(params, [g.to(d) for g, d in zip(draw(step), dtypes, strict=True)])
        optimizer.step()
        for other in others:
            other.step()
    for p, q in zip(mixed, alone, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


@over()
def test_closure_and_hooks(case: Case):
    params = parameters()
    optimizer = case.make(params)
    called = []
    optimizer.register_step_pre_hook(lambda *_: called.append("pre"))
    optimizer.register_step_post_hook(lambda *_: called.append("post"))

    def closure():
        assert torch.is_grad_enabled()
        optimizer.zero_grad()
        loss = sum(p.square().sum() for p in params)
        loss.backward()
        return loss

    first = optimizer.step(closure)
    for _ in range(5):
        last = optimizer.step(closure)
    assert called == ["pre", "post"] * 6
    assert torch.is_tensor(first) and (last < first or "nero" in case.name)  # Nero keeps the sum of squares
    assert optimizer.step() is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@over()
def test_state_dict_round_trip_is_bit_for_bit(case: Case, dtype):
    params = parameters(dtype)
    optimizer = case.make(params)
    run(optimizer, params, range(5), dtype)
    file = io.BytesIO()
    torch.save({"optimizer": optimizer.state_dict(), "params": params}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = [torch.nn.Parameter(p.detach()) for p in saved["params"]]
    other = case.make([torch.nn.Parameter(p.detach().clone()) for p in resumed], lr=0.5)
    other.param_groups[0]["params"] = (
        resumed  # Nero balances what it is made with: here the weights come after
    )
    other.load_state_dict(saved["optimizer"])
    assert everything(other) == everything(optimizer)
    assert other.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]
    run(optimizer, params, range(5, 10), dtype)
    run(other, resumed, range(5, 10), dtype)
    assert same(params, resumed) and everything(other) == everything(optimizer)


@over()
def test_loaded_state_shares_no_memory_with_the_dict(case: Case):
    params = parameters(torch.bfloat16)
    optimizer = case.make(params)
    run(optimizer, params, range(2), torch.bfloat16)
    saved = copy.deepcopy(optimizer.state_dict())
    kept = copy.deepcopy(saved)
    optimizer.load_state_dict(saved)
    run(optimizer, params, range(2, 4), torch.bfloat16)
    for i, state in kept["state"].items():
        assert all(torch.equal(v, saved["state"][i][k]) for k, v in state.items())


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["copy", "pickle"]
)
@over()
def test_copies_go_on_alike(case: Case, copied):
    params = parameters()
    optimizer = case.make(params)
    run(optimizer, params, range(3))
    other = copied(optimizer)
    theirs = other.param_groups[0]["params"]
    run(optimizer, params, range(3, 6))
    run(other, theirs, range(3, 6))
    assert same(params, theirs) and repr(other) == repr(optimizer)


@over()
def test_grad_scaler(case: Case):
    """Scaled and unscaled as usual; a step with an overflow is skipped and leaves no trace."""
    params, plain = parameters(), parameters()
    optimizer, other = case.make(params), case.make(plain)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step in range(5):
        grads = draw(step)
        if step == 2:
            give(params, [g * math.inf for g in grads])
        else:
            give(params, [g * scaler.get_scale() for g in grads])
            give(plain, grads)
            other.step()
        scaler.scale(torch.zeros(()))
        scaler.step(optimizer)
        scaler.update()
    assert same(params, plain) and everything(optimizer) == everything(other)


@over()
def test_nothing_is_read_from_the_device(case: Case):
    """Tensors on the meta device have no numbers: whoever asks for one raises."""
    params = [torch.nn.Parameter(p.detach().to("meta")) for p in parameters()]
    optimizer = case.make(params)
    for _ in range(2):
        for p in params:
            p.grad = torch.empty_like(p)
        optimizer.step()
    with pytest.raises(RuntimeError):
        params[0].sum().item()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@over()
def test_cuda_agrees_with_cpu_and_never_waits(case: Case):
    params = parameters()
    there = [torch.nn.Parameter(p.detach().cuda()) for p in params]
    for rate in (0.01, torch.tensor(0.01)):
        optimizer, other = case.make(params, lr=rate), case.make(there, lr=rate)
        for step in range(5):
            give(params, draw(step))
            give(there, [g.cuda() for g in draw(step)])
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("error")
            try:
                other.step()
            finally:
                torch.cuda.set_sync_debug_mode("default")
            optimizer.step()
    tolerance = 5e-2 if case.matrices else 1e-5  # Newton-Schulz in bfloat16 there
    for p, q in zip(params, there, strict=True):
        torch.testing.assert_close(q.cpu(), p, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    "case", [pytest.param(c, id=c.name, marks=[pytest.mark.slow] * (c.name in VARIANTS)) for c in OPTIMIZERS]
)
def test_compiled_step(case: Case):
    shapes = ((6, 4), (3, 4, 2, 2), (4,), ())  # one of each kind: what is compiled holds every tensor's step
    params, eager = parameters(shapes=shapes), parameters(shapes=shapes)
    a, b = case.make(params), case.make(eager)
    torch._dynamo.reset()
    step = torch.compile(a.step, backend="eager")
    for i in range(3):
        give(params, draw(i, shapes=shapes))
        give(eager, draw(i, shapes=shapes))
        step()
        b.step()
    for p, q in zip(params, eager, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6)


@slow_but("lamb")
def test_the_guard_skips_a_poisoned_step_and_the_optimizer_goes_on_as_without_it(case: Case, tmp_path):
    """The run with one nan gradient, guarded, is bit for bit the run that never had that step."""
    import steadygrad as sg
    from steadygrad.testing import Fault, inject

    def train(faulty: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
        optimizer = case.make(model.parameters())
        faults = [Fault("grad", step=5)] if faulty else []
        with inject(model, *faults), sg.watch(model, optimizer, runs=tmp_path) as run:
            for step in range(12):
                if step == 5 and not faulty:
                    continue
                optimizer.zero_grad()
                model(draw(step, shapes=((16, 6),))[0]).square().mean().backward()
                optimizer.step()
        assert [a.action for a in run.actions] == (["skip"] if faulty else [])
        return [p.detach() for p in model.parameters()]

    assert same(train(True), train(False))
