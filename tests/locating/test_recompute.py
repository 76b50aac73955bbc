"""A step taken again: the same bits on a sound machine, and a planted fault found and outvoted."""

from __future__ import annotations

import random

import pytest
import torch
from torch import nn

import steadygrad as sg
from steadygrad.locating import Recompute


def training(kind=torch.optim.AdamW, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))
    optimizer = kind(model.parameters(), lr=0.01, **options)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.5)

    def step():
        optimizer.zero_grad()
        loss = model(torch.randn(16, 6) + random.random()).square().mean()
        loss.backward()
        optimizer.step()
        scheduler.step()
        return loss.item()

    return model, optimizer, scheduler, step


def everything(model, optimizer, scheduler):
    inner = [v for s in optimizer.state.values() for v in s.values() if isinstance(v, torch.Tensor)]
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    tensors = [*model.state_dict().values(), *inner, *grads, torch.get_rng_state()]
    return (
        [t.clone() for t in tensors],
        scheduler.state_dict(),
        optimizer.param_groups[0]["lr"],
        random.getstate(),
    )


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a[0], b[0], strict=True)) and a[1:] == b[1:]


class Flip:
    """Flips one bit of one output of a layer in its k-th forward passes."""

    def __init__(self, layer, *passes, bit=30):
        self.passes, self.bit, self.count = passes, bit, 0
        layer.register_forward_hook(self)

    def __call__(self, layer, args, output):
        self.count += 1
        if self.count in self.passes:
            output.detach().view(torch.int32)[0, 0] ^= 1 << self.bit


def run(steps=6, wrong=(), when=None, bit=30, recomputed=True, **options):
    random.seed(0)
    model, optimizer, scheduler, step = training(**options)
    Flip(model[4], *wrong, bit=bit)
    recompute = Recompute(model, optimizer)
    done = [recompute(step, when) if recomputed else step() for _ in range(steps)]
    return done, everything(model, optimizer, scheduler)


@pytest.mark.parametrize(
    "options", [{}, {"kind": torch.optim.SGD, "momentum": 0.9}, {"kind": torch.optim.Adagrad}], ids=str
)
def test_a_sound_machine_gives_the_same_bits_and_the_run_is_as_without(options):
    done, state = run(**options)
    plain, untouched = run(recomputed=False, **options)
    assert [d.verdict for d in done] == ["equal"] * 6 and [d.value for d in done] == plain
    assert same(state, untouched)


@pytest.mark.parametrize("wrong", [5, 6], ids=["in the first computation", "in the second"])
@pytest.mark.parametrize("bit", [30, 12], ids=["exponent", "low bit"])
def test_a_fault_is_found_and_outvoted(wrong, bit):
    done, state = run(wrong=(wrong,), bit=bit)
    plain, untouched = run(recomputed=False)
    assert [d.verdict for d in done] == ["equal", "equal", "fault", "equal", "equal", "equal"]
    assert "4.weight.grad" in done[2].differing
    assert [d.value for d in done] == plain and same(state, untouched)
    assert "fault of the hardware" in str(done[2])


def test_three_results_leave_the_first():
    done, state = run(steps=1, wrong=(2, 3))
    assert done[0].verdict == "fault"  # the same flip twice: the majority is wrong
    random.seed(0)
    model, optimizer, scheduler, step = training()
    own = torch.Generator().manual_seed(0)
    model[0].register_forward_hook(lambda layer, args, out: out + torch.randn(out.shape, generator=own))
    done = Recompute(model, optimizer)(step)
    kept = everything(model, optimizer, scheduler)
    assert done.verdict == "nondeterministic" and "use_deterministic_algorithms" in str(done)
    random.seed(0)
    model, optimizer, scheduler, step = training()
    own.manual_seed(0)
    model[0].register_forward_hook(lambda layer, args, out: out + torch.randn(out.shape, generator=own))
    assert step() == done.value and same(kept, everything(model, optimizer, scheduler))


def test_only_when_asked():
    done, state = run(wrong=(3,), when=lambda loss: not loss < 1e3)
    assert [d.verdict for d in done] == ["unchecked"] * 2 + ["fault"] + ["unchecked"] * 3
    assert same(state, run(recomputed=False)[1])


def test_accumulated_gradients_are_those_the_step_began_with():
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    model.weight.grad = grad = torch.ones(1, 2)

    def step():
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()

    assert Recompute(model, optimizer)(step).verdict == "equal"
    assert model.weight.grad is grad and grad.tolist() == [[2.0, 2.0]]


def test_a_nan_with_the_same_bits_is_the_same():
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step():
        optimizer.zero_grad()
        (model(torch.ones(1, 2)).sum() * float("nan")).backward()
        optimizer.step()

    assert Recompute(model, optimizer)(step).verdict == "equal" and model.weight.isnan().all()


def test_what_the_second_computation_raises_leaves_the_first():
    model, optimizer, scheduler, step = training()
    done = []

    def once():
        if done:
            raise KeyError("mine")
        value = step()
        done.append(everything(model, optimizer, scheduler))
        return value

    with pytest.raises(KeyError, match="mine"):
        Recompute(model, optimizer)(once)
    assert same(done[0], everything(model, optimizer, scheduler))


def test_what_it_takes():
    model = nn.Linear(2, 1)
    with pytest.raises(TypeError, match="must be a torch.nn.Module, got str"):
        Recompute("net", torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(TypeError, match="each optimizer must be"):
        Recompute(model, 0.1)
    with pytest.raises(ValueError, match="at least one optimizer"):
        Recompute(model)
    assert sg.Recompute is Recompute
