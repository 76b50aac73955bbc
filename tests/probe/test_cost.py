"""How little the probe asks for in a step: calls, bytes, walks through memory. Nothing here looks at a clock."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from steadygrad.graph.layers import LayerReader
from steadygrad.graph.walk import Graph
from steadygrad.graph.weights import find_uses
from steadygrad.probe.activations import ActivationSampler
from steadygrad.probe.loss import LossKeeper
from steadygrad.probe.moments import LEAST, SAMPLE
from steadygrad.probe.norms import gradient_norms, total_norm
from steadygrad.probe.rotation import Rotation
from steadygrad.probe.slices import OVERHEAD
from tests.probe.counting import Counting

SHAPES = [(1000, 512), *[(256, 256), (256,)] * 8]


def adam(shapes=SHAPES, **options):
    torch.manual_seed(0)
    params = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    for p in params:
        p.grad = torch.randn_like(p)
    optimizer = torch.optim.Adam(params, lr=1e-3, **options)
    optimizer.step()
    return params, optimizer


def watched(rotation, optimizer, params, step, applied=True):
    """The numbers of one step, and what was asked for them."""
    with Counting() as count:
        rotation.before(optimizer, params, range(len(params)), step)
    if applied:
        optimizer.step()
    with count:
        stats = rotation.after(optimizer, applied)
    return stats, count


# ---------------------------------------------------------------------- norms
@pytest.mark.parametrize("number", [1, 40])
def test_norms_of_one_kind_are_one_reduction_however_many(number):
    grads = [torch.randn(30, 7) for _ in range(number)]
    with Counting() as count:
        norms = gradient_norms([*grads, None])
        total_norm(norms)
    assert count.calls == {"_foreach_norm": 1, "_local_scalar_dense": number}
    assert count.bytes_read["_foreach_norm"] == number * 30 * 7 * 4
    assert norms[:-1] == pytest.approx([float(g.norm()) for g in grads]) and math.isnan(norms[-1])


@pytest.mark.parametrize("grads", [[torch.ones(4), torch.ones(2, dtype=torch.float64)], [torch.ones(3)] * 2])
def test_norms_of_several_kinds_are_one_reduction_each(grads):
    with Counting() as count:
        assert gradient_norms(grads).tolist() == pytest.approx([math.sqrt(g.numel()) for g in grads])
    assert count.calls["_foreach_norm"] == len({g.dtype for g in grads})


def test_only_what_overflowed_is_read_again():
    grads = [torch.ones(100), torch.full((7,), 1e30), torch.ones(50)]
    with Counting() as count:
        assert gradient_norms(grads) == pytest.approx([10, 1e30 * math.sqrt(7), math.sqrt(50)])
    assert count.bytes_read["linalg_vector_norm"] == 7 * 8


@pytest.mark.parametrize("norms", [[3e200, 4e200], [3e-200, 4e-200], [3.0, math.nan, 4.0]])
def test_totals_neither_over_nor_underflow(norms):
    present = [n for n in norms if n == n]
    assert total_norm(np.array(norms)) == pytest.approx(5 / 3 * present[0], rel=1e-15)


# ---------------------------------------------------------------------- the loss
def test_one_loss_is_read_as_it_is():
    keeper = LossKeeper()
    keeper.saw([torch.tensor(2.5, dtype=torch.bfloat16)])
    with Counting() as count:
        assert keeper.read() == (2.5, 1)
    assert count.calls == {"_local_scalar_dense": 1}


def test_many_losses_are_summed_in_double_and_read_once():
    keeper = LossKeeper()
    keeper.saw([torch.tensor(1e8), torch.tensor(1.0), torch.tensor(-1e8)])
    with Counting() as count:
        assert keeper.read() == (1.0, 1)
    assert count.calls["_local_scalar_dense"] == 1


# ---------------------------------------------------------------------- the rotation
def test_a_step_reads_no_more_than_its_sixteenth():
    """Weights twice, kept weights twice, gradient once, moments a quarter of twice; every part fits its share."""
    params, optimizer = adam()
    rotation = Rotation()
    total = sum(p.numel() for p in params)
    share = 1.5 * (total + OVERHEAD * len(params)) / 16 * 4  # bytes of one pass over the largest part
    for step in range(32):
        stats, count = watched(rotation, optimizer, params, step)
        read = count.bytes_read
        assert count.calls["_foreach_copy_"] == count.calls["_foreach_sub_"] == 1
        assert read["_foreach_copy_"] <= 2 * share and read["_foreach_sub_"] <= 2 * share
        assert count.calls["aminmax"] == len(stats) + 1 and read["aminmax"] <= share + 4 * SAMPLE
        assert read["_foreach_norm"] <= share * (2 + 2 * 0.3) + 4 * max(SAMPLE, LEAST * len(stats))
        assert sum(read.values()) <= 7.6 * share + 40 * max(SAMPLE, LEAST * len(stats))


def test_second_moments_of_all_pieces_take_the_calls_of_one():
    params, optimizer = adam([(64,)] * 40)
    stats, count = watched(Rotation(1), optimizer, params, 0)
    assert len(stats) == 40 and all(s.adam_rms > 0 for s in stats)
    assert count.calls["sqrt_"] == count.calls["clamp_min"] == count.calls["div"] == 1
    assert count.calls["_foreach_norm"] == 4  # weights, state, updates, ratios


@pytest.mark.parametrize(
    ("shapes", "most"),
    [([(300, 1000)], SAMPLE), ([(300, 1000)] * 5, SAMPLE), ([(40, 1000)] * 20, 20 * LEAST)],
)
def test_the_sample_for_second_moments_is_shared_by_the_pieces(shapes, most):
    params, optimizer = adam(shapes)
    stats, count = watched(Rotation(1), optimizer, params, 0)
    assert 0.8 * most <= count.bytes_read["sqrt_"] / 4 <= most
    for s, p in zip(stats, params, strict=True):
        v_hat = optimizer.state[p]["exp_avg_sq"] / (1 - 0.999**2)
        assert s.adam_rms == pytest.approx(float((p.grad**2 / v_hat).mean().sqrt()), rel=0.05)


def test_a_part_without_weights_asks_for_nothing():
    params, optimizer = adam([(3,), (2,)])
    rotation = Rotation()
    looks = [watched(rotation, optimizer, params, step) for step in range(16)]
    assert sorted(s.param for stats, _ in looks for s in stats) == [0, 1]
    assert all(not count.calls for stats, count in looks[1:] if not stats)


def test_every_number_of_the_state_is_looked_at_once_in_64_steps():
    params, optimizer = adam([(64, 1024), (100,), ()])
    rotation = Rotation()
    read = 0
    for step in range(64):
        stats, count = watched(rotation, optimizer, params, step, applied=False)
        looked_at = sum(p.numel() for p in params) / 16 * 4
        state = count.bytes_read["_foreach_norm"] - sum(piece_bytes(rotation, optimizer, step))
        read += state
        assert state <= 1.5 * 2 * looked_at / 4 + 64
    of_one_turn = sum(4 * t.numel() for state in optimizer.state.values() for t in state.values())
    assert read == of_one_turn
    for name in ("exp_avg", "exp_avg_sq"):
        optimizer.state[params[0]][name][50, 5] = math.nan
        found = [watched(rotation, optimizer, params, step, applied=False)[0] for step in range(64)]
        assert sum(not s.state_finite for stats in found for s in stats) == 1
        optimizer.state[params[0]][name][50, 5] = 0.0
    optimizer.state[params[2]]["step"].fill_(math.inf)
    found = [watched(rotation, optimizer, params, step, applied=False)[0] for step in range(64)]
    assert [s.param for stats in found for s in stats if not s.state_finite] == [2]


def piece_bytes(rotation, optimizer, step):
    return [4 * piece.old.numel() for piece in rotation._plans[optimizer].part(step)]


@pytest.mark.parametrize("where", ["exp_avg", "exp_avg_sq"])
def test_a_nan_in_the_state_that_reaches_the_weights_is_found_in_that_step(where):
    params, optimizer = adam([(64, 10)])
    optimizer.state[params[0]][where][63, 5] = math.nan  # in the last share
    ((stats,), _) = watched(Rotation(1), optimizer, params, 0)
    assert not stats.weight_finite and not stats.state_finite


def test_a_parameter_that_is_frozen_is_left_out_at_once_and_comes_back_with_the_next_turn():
    params, optimizer = adam([(400, 100)] * 2)
    rotation = Rotation(4)
    seen = []
    for step in range(16):
        params[1].requires_grad_(not 2 <= step < 6)
        stats, _ = watched(rotation, optimizer, params, step, applied=False)
        seen.append({s.param for s in stats})
    assert seen[:2] == [{0}, {0}] and all(1 not in s for s in seen[2:8])
    assert set().union(*seen[8:12]) == set().union(*seen[12:]) == {0, 1}


# ---------------------------------------------------------------------- sampled steps
def test_weights_are_not_read_to_tell_that_units_differ():
    model = nn.Sequential(nn.Linear(64, 4096), nn.ReLU(), nn.Linear(4096, 1))
    loss = model(torch.ones(4, 64)).mean()
    graph = Graph([loss])
    reader = LayerReader(graph, find_uses(graph))
    loss.backward()
    with Counting() as count:
        layers, _ = reader.read({id(p): n for n, p in model.named_parameters()})
    assert not any(layer.same_units for layer in layers)
    assert sum(count.bytes_read.values()) < 0.01 * model[0].weight.numel() * 4


@pytest.mark.parametrize(("row", "same"), [(None, True), (1, False), (7, False)])
def test_units_are_the_same_only_if_all_are(row, same):
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
    nn.init.constant_(model[0].weight, 0.5)
    if row is not None:
        nn.init.constant_(model[0].weight[row], 0.25)
    loss = model(torch.ones(4, 3)).mean()
    graph = Graph([loss])
    reader = LayerReader(graph, find_uses(graph))
    loss.backward()
    layers, _ = reader.read({id(p): n for n, p in model.named_parameters()})
    assert layers[0].same_units is same


def test_a_sampler_that_saw_nothing_asks_for_nothing():
    sampler = ActivationSampler([nn.Linear(2, 2)])
    with Counting() as count:
        assert sampler.take() == ()
    assert not count.calls


WALKS = """
import gc, sys, torch
from torch import nn
from steadygrad.probe.activations import ActivationSampler
model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
import torch._dynamo
walks = 0
def watch(frame, event, arg):
    global walks
    walks += event == "c_call" and arg is gc.get_objects
def arm(sampler):
    global walks
    walks = 0
    sys.setprofile(watch)
    sampler.arm()
    sys.setprofile(None)
    return walks
plain = ActivationSampler([model])
print([arm(plain) for _ in range(4)])
wrapper = torch.compile(model, backend="eager")
torch._dynamo.reset()
late = ActivationSampler([model])
print([arm(late) > 0 for _ in range(4)], late.notes)
"""


def test_objects_are_not_looked_through_unless_something_was_compiled():
    out = subprocess.run([sys.executable, "-c", WALKS], capture_output=True, text=True, check=True)
    assert out.stdout.splitlines() == [
        "[0, 0, 0, 0]",
        "[True, True, True, False] ['activations of the model are not sampled: it is compiled']",
    ]
