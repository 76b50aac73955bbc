"""Numbers on their way to the host: what arrives is what was posted, and only who needs it waits."""

import math

import pytest
import torch
from torch import nn

from steadygrad.guard.buffers import BufferKeeper
from steadygrad.probe.activations import ActivationSampler
from steadygrad.probe.host import lagging, near, post
from steadygrad.probe.loss import LossKeeper, without_sync
from steadygrad.probe.norms import gradient_norms
from steadygrad.probe.probe import Probe
from steadygrad.probe.rotation import Rotation

NUMBERS = [
    torch.tensor(1.1),
    torch.tensor(7, dtype=torch.int64),
    torch.tensor(1.1, dtype=torch.float64),
    torch.tensor(-2.5, dtype=torch.bfloat16),
    torch.tensor(math.inf),
    torch.tensor(True),
    torch.tensor(3e38),
    torch.tensor(0.1, dtype=torch.float16),
]


def test_what_arrives_is_what_was_posted():
    here = [tensor.item() for tensor in NUMBERS]
    assert post(NUMBERS).numbers() == here and post([]).numbers() == []
    with lagging():
        pending = post(NUMBERS)
        assert pending.numbers() == here and pending.numbers() == here
        assert math.isnan(post([torch.tensor(math.nan)]).numbers()[0])


def test_a_number_is_that_of_the_moment_it_was_posted_in():
    number = torch.tensor(1.0)
    with lagging():
        pending = post([number])
        number.fill_(2.0)
        assert pending.numbers() == [1.0]


def test_nobody_waits_on_a_cpu():
    assert near(torch.ones(1)) and post([torch.ones(())]).ready()


def test_a_device_works_in_order():
    """Who has waited for a number finds all that were posted before it, and none of those after."""
    with lagging() as device:
        first, second, third = (post([torch.tensor(float(i))]) for i in range(3))
        assert not first.ready() and not near(torch.ones(1))
        assert second.numbers() == [1.0] and device.waits == 1
        assert first.ready() and not third.ready()
        assert first.numbers() == [0.0] and device.waits == 1
        device.catch_up()
        assert third.ready() and third.numbers() == [2.0] and device.waits == 1


def test_outside_the_block_the_cpu_is_itself_again():
    with pytest.raises(KeyError), lagging():
        raise KeyError
    assert near(torch.ones(1))


def test_what_is_no_ordinary_tensor_is_read_at_once():
    class Named(torch.Tensor):
        pass

    with lagging():
        assert post([torch.tensor(2.5).as_subclass(Named)]).ready()


# ---------------------------------------------------------------------- whoever sends numbers
def test_norms_are_one_wait_and_the_same():
    grads = [torch.randn(7, 3), torch.randn(5), torch.full((2,), 1e30)]
    here = [grad.double().norm().item() for grad in grads]  # wide at once: to come back would be a wait
    with lagging() as device:
        assert gradient_norms(grads).tolist() == here and device.waits == 1


def test_the_loss_is_posted_without_a_wait():
    keeper = LossKeeper()
    with lagging() as device:
        keeper.saw([torch.tensor(2.5), torch.tensor(0.25)])
        posted = keeper.post()
        device.catch_up()
        assert posted.numbers() == [2.75] and keeper.passes == 1 and device.waits == 0
        assert without_sync([torch.tensor(1.0)]) is None
    assert without_sync([torch.tensor(1.0)]) == [1.0]


def adam():
    torch.manual_seed(0)
    params = [nn.Parameter(torch.randn(40, 30)), nn.Parameter(torch.randn(30))]
    optimizer = torch.optim.Adam(params, lr=1e-2)
    for p in params:
        p.grad = torch.randn_like(p)
    return params, optimizer


@pytest.mark.parametrize("bad", [None, "weight", "state"])
def test_a_part_that_is_finished_late_is_the_same(bad):
    looks = []
    for late in (False, True):
        params, optimizer = adam()
        optimizer.step()
        if bad == "weight":
            params[0].data[0, 0] = math.nan
        if bad == "state":
            optimizer.state[params[1]]["exp_avg"][3] = math.inf
        rotation = Rotation(1, state_turns=1)
        if not late:
            rotation.before(optimizer, params, [0, 1], 0)
            optimizer.step()
            looks.append(rotation.after(optimizer, True))
            continue
        with lagging() as device:
            rotation.before(optimizer, params, [0, 1], 0)
            optimizer.step()
            look = rotation.leave(optimizer, True)
            assert not look.ready() and device.waits == 0
            device.catch_up()
            assert look.ready()
            looks.append(look.finish())
            assert device.waits == 0
    assert repr(looks[0]) == repr(looks[1])
    assert all(t.weight_finite and t.state_finite for t in looks[0]) == (bad is None)


def test_activations_are_the_same_through_one_wait():
    model, taken = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2), nn.Sigmoid()), []
    for late in (False, True):
        sampler = ActivationSampler([model])
        sampler.arm()
        torch.manual_seed(0)
        if not late:
            model(torch.randn(32, 4))
            taken.append(sampler.take())
        else:
            with lagging() as device:
                model(torch.randn(32, 4))
                taken.append(sampler.take())
                assert device.waits == 1
        sampler.disarm()
    for here, late in zip(*taken, strict=True):  # sums in float32 here, in float64 on a device
        for name in ("rms", "dead", "saturated", "input_rms"):
            assert getattr(here, name) == pytest.approx(getattr(late, name), rel=1e-6, nan_ok=True)


def test_buffers_that_sent_word_are_not_waited_for():
    norm = nn.BatchNorm1d(3)
    norm.register_buffer("phase", torch.ones(2, dtype=torch.complex64))
    norm.register_buffer("empty", torch.ones(0))
    with lagging() as device:
        keeper = BufferKeeper([norm])
        keeper.look()
        device.catch_up()
        assert keeper.poisoned() == [] and device.waits == 0
        norm(torch.tensor([[math.nan] * 3, [1.0] * 3]))
        keeper.look()
        device.catch_up()
        assert keeper.poisoned() == ["BatchNorm1d.running_mean", "BatchNorm1d.running_var"]
        keeper.restore()
        keeper.look()
        norm(torch.tensor([[math.nan] * 3, [1.0] * 3]))
        keeper.look()
        assert len(keeper.poisoned()) == 2 and device.waits == 1, "the newest word counts"


@pytest.mark.parametrize("scaled", [False, True])
def test_a_step_waits_once_whatever_it_reads(scaled):
    """The norms go last: the loss, the loss scale and the factor of a fused step have arrived by then."""
    model = nn.Linear(256, 256)  # large enough for a piece of it in every part of the rotation
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    probe = Probe([model])
    if scaled:
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        scaler.scale(torch.ones(()))
        probe.saw_scaler(scaler)
        optimizer.grad_scale = torch.tensor(8.0)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    for _ in range(8):  # the first ones look closer
        probe.after(optimizer, probe.before(optimizer), False)
    with lagging() as device:
        probe.saw_backward([torch.tensor(0.5)])
        stats = probe.before(optimizer)
        assert device.waits == 1
        ended = probe.end(optimizer, stats, False)
        assert device.waits == 1 and ended.on_its_way is not None and ended.stats.tensors == ()
        device.catch_up()
        assert len(ended.complete().tensors) > 0 and device.waits == 1
    factor = 8.0 if scaled else 1.0
    assert (stats.loss, stats.grad_norm) == (0.5, pytest.approx(math.sqrt(256 * 257) / factor))
    assert stats.loss_scale == (8.0 if scaled else None)
    probe.close()
