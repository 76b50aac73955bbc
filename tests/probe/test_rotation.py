"""The rotating close look, against a slow reference in float64."""

import math

import pytest
import torch
from torch import nn

from steadygrad.probe.local import readable
from steadygrad.probe.rotation import Rotation
from steadygrad.probe.slices import OVERHEAD, Plan

ADAPTIVE = {
    "Adam": (torch.optim.Adam, {}),
    "AdamW": (torch.optim.AdamW, {}),
    "AdamW fused": (torch.optim.AdamW, {"fused": True}),
    "AdamW for-loop": (torch.optim.AdamW, {"foreach": False}),
    "Adam amsgrad": (torch.optim.Adam, {"amsgrad": True}),
    "NAdam": (torch.optim.NAdam, {}),
    "RAdam": (torch.optim.RAdam, {}),
    "RMSprop": (torch.optim.RMSprop, {"centered": True}),
    "Adadelta": (torch.optim.Adadelta, {}),
}
OTHERS = {
    "SGD": (torch.optim.SGD, {"momentum": 0.9}),
    "Adagrad": (torch.optim.Adagrad, {}),
    "Adamax": (torch.optim.Adamax, {}),
    "Adafactor": (torch.optim.Adafactor, {}),
    "LBFGS": (torch.optim.LBFGS, {}),
}


def param(*shape, dtype=torch.float32, scale=1.0):
    return nn.Parameter(torch.randn(shape, dtype=dtype) * scale)


def look(optimizer, params, rotation=None, step=0, first_index=0, grad_scale=1.0, applied=True):
    rotation = rotation or Rotation(1, state_turns=1)
    rotation.before(optimizer, params, range(first_index, first_index + len(params)), step, grad_scale)
    if applied:
        optimizer.step(*([lambda: torch.zeros(())] if isinstance(optimizer, torch.optim.LBFGS) else []))
    return rotation.after(optimizer, applied)


def real64(tensor):
    tensor = tensor.detach()
    return (torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor).double().clone()


def close(a, b, rel=1e-6):
    return (math.isnan(a) and math.isnan(b)) or a == pytest.approx(b, rel=rel)


# ---------------------------------------------------------------------- the numbers
@pytest.mark.parametrize("kind", [*ADAPTIVE, *OTHERS])
def test_every_number_equals_the_slow_reference(kind):
    cls, options = (ADAPTIVE | OTHERS)[kind]
    torch.manual_seed(0)
    params = [param(5, 7), param(3), param(), param(2, 3, 4, 5).requires_grad_(True)]
    optimizer = cls(params, lr=0.01, **options)
    rotation = Rotation(1)
    for step in range(4):
        for p in params:
            p.grad = torch.randn_like(p) * 3
        old, grads = [real64(p) for p in params], [real64(p.grad) for p in params]
        stats = look(optimizer, params, rotation, step, first_index=40)
        assert [s.param for s in stats] == [40, 41, 42, 43]
        for s, p, w, g in zip(stats, params, old, grads, strict=True):
            assert s.grad_max_abs == g.abs().max()
            assert close(s.weight_norm, float(w.norm()))
            # The step itself is rounded to float32, and so is the difference.
            assert close(s.update_ratio, float((real64(p) - w).norm() / w.norm()), rel=1e-5)
            assert s.state_finite and s.weight_finite
            if kind in OTHERS:
                assert math.isnan(s.adam_rms)
                continue
            state, group = optimizer.state[p], optimizer.param_groups[0]
            v = state.get("exp_avg_sq", state.get("square_avg")).double()
            decay = group["betas"][1] if "betas" in group else group.get("alpha", group.get("rho"))
            v_hat = v / (1 - decay ** float(state["step"]))
            assert close(s.adam_rms, float((g**2 / v_hat).mean().sqrt()), rel=1e-5)
    if kind == "Adam":
        assert 0.5 < s.adam_rms < 2


def test_a_stale_second_moment_is_far_above_1_and_a_frozen_one_far_below():
    p = param(1000)
    optimizer = torch.optim.Adam([p], lr=1e-3, betas=(0.9, 0.9999))
    for scale in [1e-3] * 200 + [1.0]:
        p.grad = torch.randn_like(p) * scale
        (stats,) = look(optimizer, [p])
    assert stats.adam_rms > 5
    p.grad = torch.randn_like(p) * 1e-6
    (stats,) = look(optimizer, [p])
    assert stats.adam_rms < 1e-3


def test_rows_that_never_had_a_gradient_do_not_count_for_the_second_moment():
    p = param(100, 8)
    optimizer = torch.optim.Adam([p], lr=1e-3)
    p.grad = torch.zeros_like(p)
    p.grad[:3] = torch.randn(3, 8)
    (stats,) = look(optimizer, [p])
    assert stats.adam_rms == pytest.approx(1.0, rel=1e-4)
    p.grad = torch.zeros_like(p)
    untouched = torch.optim.Adam([p], lr=1e-3)
    (stats,) = look(untouched, [p])
    assert math.isnan(stats.adam_rms)


def test_tiny_gradients_raise_no_false_staleness():
    p = param(50)
    optimizer = torch.optim.Adam([p], lr=1e-3)
    for magnitude in (1e-19, 1e-21, 1e-22, 1e-24, 1e-30):  # their squares underflow in float32
        p.grad = torch.full_like(p, magnitude)
        (stats,) = look(optimizer, [p])
        assert math.isnan(stats.adam_rms) or stats.adam_rms < 2


def test_a_step_that_is_not_taken():
    p = param(4)
    optimizer = torch.optim.Adam([p])
    p.grad = torch.ones(4)
    optimizer.step()
    (stats,) = look(optimizer, [p], applied=False)
    assert math.isnan(stats.update_ratio) and math.isnan(stats.adam_rms)
    assert (
        stats.weight_norm == pytest.approx(float(p.detach().norm()))
        and stats.weight_finite
        and stats.state_finite
    )


@pytest.mark.parametrize("how", ["fused", "in place", "in a new tensor"])
def test_gradients_that_the_optimizer_unscales_itself(how):
    fused = how == "fused"
    p = param(64)
    plain = nn.Parameter(p.detach().clone())
    optimizer, reference = torch.optim.Adam([p], fused=fused), torch.optim.Adam([plain], fused=fused)
    plain.grad = torch.randn(64)
    p.grad = plain.grad * 1024
    if fused:  # as GradScaler does
        optimizer.grad_scale, optimizer.found_inf = torch.tensor(1024.0), torch.tensor(0.0)
    else:  # the user unscales between our look and the optimizer's

        def unscale(*_):
            p.grad = p.grad.div_(1024) if how == "in place" else p.grad / 1024

        optimizer.register_step_pre_hook(unscale)
    (stats,) = look(optimizer, [p], grad_scale=1024.0)
    (expected,) = look(reference, [plain])
    assert stats.grad_max_abs == pytest.approx(expected.grad_max_abs, rel=1e-6)
    assert stats.adam_rms == pytest.approx(expected.adam_rms, rel=1e-5)
    assert stats.update_ratio == pytest.approx(expected.update_ratio, rel=1e-5)


# ---------------------------------------------------------------------- finiteness
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_bad_value_is_seen_wherever_it_is(value):
    for where in ("grad", "weight", "exp_avg", "exp_avg_sq", "step"):
        p = param(20)
        optimizer = torch.optim.AdamW([p])
        p.grad = torch.ones(20)
        optimizer.step()
        target = {"grad": p.grad, "weight": p.data, **optimizer.state[p]}[where]
        target.view(-1)[-1] = value
        (stats,) = look(optimizer, [p], applied=False)
        assert math.isfinite(stats.grad_max_abs) == (where != "grad")
        assert stats.weight_finite == (where != "weight")
        assert stats.state_finite == (where not in ("exp_avg", "exp_avg_sq", "step"))
        assert math.isfinite(stats.weight_norm) == (where != "weight")


def test_a_step_that_breaks_the_weights_is_seen_in_that_step():
    p = param(20)
    optimizer = torch.optim.SGD([p], lr=1.0)
    p.grad = torch.zeros(20)
    p.grad[3] = math.inf
    (stats,) = look(optimizer, [p])
    assert not stats.weight_finite and math.isfinite(stats.weight_norm)


@pytest.mark.parametrize("size", [3e37, 1e25, 1.0, 1e-12, 1e-25, 1e-37])
def test_finite_values_whose_squares_overflow_or_underflow(size):
    p = nn.Parameter(torch.tensor([2.0, -1.0, 2.0]) * size)
    optimizer = torch.optim.SGD([p], lr=1.0, momentum=0.9)
    p.grad = torch.tensor([0.0, 0.5, 0.0]) * size
    (stats,) = look(optimizer, [p])
    assert stats.weight_finite and stats.state_finite
    assert stats.weight_norm == pytest.approx(3 * size, rel=1e-5)
    assert stats.update_ratio == pytest.approx(1 / 6, rel=1e-4)
    assert stats.grad_max_abs == pytest.approx(0.5 * size)


def test_a_zero_weight_has_no_update_ratio():
    p = nn.Parameter(torch.zeros(4))
    p.grad = torch.ones(4)
    (stats,) = look(torch.optim.SGD([p], lr=0.1), [p])
    assert stats.weight_norm == 0 and math.isnan(stats.update_ratio) and stats.weight_finite


def test_state_of_other_shapes_is_looked_at():
    p = param(6)
    optimizer = torch.optim.LBFGS([p])
    p.grad = torch.ones(6)
    optimizer.state[p] = {
        "d": torch.ones(11),
        "old_dirs": [torch.ones(11), torch.tensor([math.nan])],
        "n_iter": 3,
    }
    (stats,) = look(optimizer, [p], applied=False)
    assert not stats.state_finite
    optimizer.state[p]["old_dirs"].pop()
    (stats,) = look(optimizer, [p], applied=False)
    assert stats.state_finite


# ---------------------------------------------------------------------- the tensor zoo
def strange(name):
    torch.manual_seed(1)
    p = param(6, 4)
    p.grad = torch.randn(6, 4)
    if name == "complex":
        p = param(6, 4, dtype=torch.complex64)
        p.grad = torch.randn(6, 4, dtype=torch.complex64)
    elif name == "scalar":
        p = param()
        p.grad = torch.tensor(-3.0)
    elif name == "transposed gradient":
        p.grad = torch.randn(4, 6).t()
    elif name == "transposed weight":
        p = nn.Parameter(torch.randn(4, 6).t())
        p.grad = torch.randn(6, 4)
    elif name == "channels last":
        p = nn.Parameter(torch.randn(3, 4, 2, 2).to(memory_format=torch.channels_last))
        p.grad = torch.randn(3, 4, 2, 2)
    elif name == "expanded gradient":
        p.grad = torch.tensor(2.0).expand(6, 4)
    elif name in ("bfloat16", "float16", "float64"):
        p = param(6, 4, dtype=getattr(torch, name))
        p.grad = torch.randn(6, 4, dtype=getattr(torch, name))
    elif name == "subclass":

        class Named(nn.Parameter):
            pass

        p = Named(torch.randn(6, 4))
        p.grad = torch.randn(6, 4)
    return p


@pytest.mark.parametrize(
    "name",
    [
        "plain",
        "complex",
        "scalar",
        "transposed gradient",
        "transposed weight",
        "channels last",
        "expanded gradient",
        "bfloat16",
        "float16",
        "float64",
        "subclass",
    ],
)
def test_zoo(name):
    p = strange(name)
    optimizer = torch.optim.Adam([p], lr=0.01, eps=1e-3)
    old, grad = real64(p), real64(p.grad)
    (stats,) = look(optimizer, [p])
    assert stats.grad_max_abs == pytest.approx(float(grad.abs().max()), rel=1e-6)
    assert stats.weight_norm == pytest.approx(float(old.norm()), rel=1e-6)
    assert stats.update_ratio == pytest.approx(float((real64(p) - old).norm() / old.norm()), rel=1e-5)
    low = p.element_size() == 2
    v_hat = real64(optimizer.state[p]["exp_avg_sq"]) / (1 - 0.999)
    assert stats.adam_rms == pytest.approx(float((grad**2 / v_hat).mean().sqrt()), rel=1e-4)
    assert stats.adam_rms == pytest.approx(1.0, abs=0.3 if low else 1e-3)


def test_sparse_gradients_are_coalesced_before_they_are_read():
    p = param(5, 2)
    p.grad = torch.sparse_coo_tensor(
        [[0, 0, 3]], torch.tensor([[1.0, 2.0], [1.0, 2.0], [-3.5, 0.0]]), (5, 2), check_invariants=True
    )
    (stats,) = look(torch.optim.SGD([p], lr=0.1), [p])
    assert stats.grad_max_abs == 4.0
    p.grad = torch.sparse_coo_tensor(
        torch.zeros(1, 0, dtype=torch.long), torch.zeros(0, 2), (5, 2), check_invariants=True
    )
    (stats,) = look(torch.optim.SparseAdam([p]), [p])
    assert stats.grad_max_abs == 0.0 and math.isnan(stats.adam_rms)


def test_what_cannot_be_read_is_left_out():
    present = param(3)
    present.grad = torch.ones(3)
    params = [
        nn.Parameter(torch.zeros(0, 4)),
        nn.Parameter(torch.ones(3), requires_grad=False),
        nn.Parameter(torch.empty(3, device="meta")),
        present,
        param(2),  # no gradient
    ]
    stats = look(torch.optim.SGD([params[3], params[4]], lr=0.1), params)
    assert [s.param for s in stats] == [3, 4]
    assert math.isnan(stats[1].grad_max_abs) and stats[1].update_ratio == 0.0


def test_nothing_to_look_at():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(0))], lr=0.1)
    assert look(optimizer, []) == ()
    assert Rotation().after(optimizer, True) == ()  # no before


def test_sharded_parameters_are_read_here(tmp_path):
    from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        whole, grad = torch.randn(6, 4), torch.randn(6, 4)
        p = nn.Parameter(distribute_tensor(whole, mesh, [Shard(0)]))
        p.grad = distribute_tensor(grad, mesh, [Shard(0)])
        (stats,) = look(torch.optim.AdamW([p], lr=0.1), [p])
    finally:
        torch.distributed.destroy_process_group()
    plain = nn.Parameter(whole)
    plain.grad = grad
    (expected,) = look(torch.optim.AdamW([plain], lr=0.1), [plain])
    assert stats == expected


def test_conjugated_views_are_read():
    z = torch.tensor([1 + 2j])
    assert readable(z.conj()).tolist() == [[1.0, -2.0]] and readable(z.conj().imag).tolist() == [-2.0]


def test_readable_refuses_what_has_no_memory_of_its_own():
    assert readable(None) is None and readable(torch.eye(3).to_sparse()) is None
    assert readable(torch.ones(2, dtype=torch.bool)) is None
    seen = []
    torch.func.vmap(lambda x: seen.append(readable(x)) or x)(torch.ones(2, 3))
    assert seen == [None]


# ---------------------------------------------------------------------- the rotation
MODELS = {
    "half in one tensor": [(1000, 512), *[(160, 200)] * 16],
    "one tensor": [(4096, 64)],
    "two rows": [(2, 400_000), (300, 300)],
    "many small ones at the end": [(2000, 512), *[(512,)] * 150],
    "convolutions": [(64 * k, 64, 3, 3) for k in range(1, 8)],
}


@pytest.mark.parametrize("model", MODELS)
def test_every_element_is_looked_at_once_in_16_steps_and_no_part_is_much_larger(model):
    params = [nn.Parameter(torch.empty(shape)) for shape in MODELS[model]]
    plan = Plan(params, 16)
    counts = [torch.zeros(shape, dtype=torch.int8) for shape in MODELS[model]]
    firsts = [0] * len(params)
    for part in plan.parts:
        assert len({piece.position for piece in part}) == len(part)  # one entry per parameter and step
        for piece in part:
            piece.of(counts[piece.position]).add_(1)
            firsts[piece.position] += piece.first
    assert all((count == 1).all() for count in counts)
    assert firsts == [1] * len(params)
    costs = [sum(piece.numel + OVERHEAD for piece in part) for part in plan.parts]
    assert max(costs) <= 1.5 * sum(costs) / 16
    if model != "many small ones at the end":
        sizes = [sum(piece.numel for piece in part) for part in plan.parts]
        assert max(sizes) <= 1.5 * sum(sizes) / 16


def test_of_many_tensors_a_step_looks_at_few_when_two_turns_are_over():
    params = [param(10 + i % 7) for i in range(100)]
    optimizer = torch.optim.SGD(params, lr=1e-3)
    for p in params:
        p.grad = torch.ones_like(p)
    rotation = Rotation(16, state_turns=4, most_tensors=4)
    seen = [[s.param for s in look(optimizer, params, rotation, step)] for step in range(32 + 2 * 25)]
    every = list(range(100))
    assert [sum(part, []) for part in (seen[:16], seen[16:32], seen[32:57], seen[57:])] == [every] * 4
    assert max(map(len, seen[:32])) >= 6 and max(map(len, seen[32:])) <= 5
    # The part depends on the step alone: a run that goes on from a checkpoint looks at the same.
    resumed = Rotation(16, state_turns=4, most_tensors=4)
    for step in (40, 60, 5):
        assert [s.param for s in look(optimizer, params, resumed, step)] == seen[step]


def test_of_few_tensors_the_bound_changes_nothing():
    params = [param(10) for _ in range(64)]
    optimizer = torch.optim.SGD(params, lr=1e-3)
    rotation = Rotation(16, state_turns=4, most_tensors=4)
    seen = [[s.param for s in look(optimizer, params, rotation, step)] for step in range(64)]
    assert [sum(seen[i : i + 16], []) for i in range(0, 64, 16)] == [list(range(64))] * 4


def test_a_small_net_is_looked_at_every_few_steps_at_as_many_parts_together():
    params = [param(100, 50), *[param(50) for _ in range(9)]]
    optimizer = torch.optim.SGD(params, lr=1e-3)
    rotation = Rotation(16, state_turns=4, small_every=4)
    seen = [[s.param for s in look(optimizer, params, rotation, step)] for step in range(32)]
    assert [step for step in range(32) if seen[step]] == list(range(0, 32, 4))
    assert sum(seen[:16], []) == sum(seen[16:], []) == list(range(10))
    large = [param(600, 500), param(50)]  # is looked at in every step as ever
    optimizer = torch.optim.SGD(large, lr=1e-3)
    assert all(look(optimizer, large, rotation, step) for step in range(16))


@pytest.mark.parametrize("every", [1, 3, 4, 16, 100])
def test_each_element_of_a_small_net_is_in_one_part(every):
    shapes = [(300, 40), (7,), (20, 900), ()]
    params = [nn.Parameter(torch.empty(shape)) for shape in shapes]
    plan = Plan(params, 16, small_every=every)
    counts = [torch.zeros(shape, dtype=torch.int8) for shape in shapes]
    for part in plan.parts:
        assert len({piece.position for piece in part}) == len(part)
        for piece in part:
            assert piece.old.shape == piece.of(counts[piece.position]).shape
            piece.of(counts[piece.position]).add_(1)
    assert all((count == 1).all() for count in counts)


@pytest.mark.parametrize("shape", [(512, 300), (3, 60_000), (150_000,)])
def test_of_a_large_part_the_update_is_that_of_some_rows_in_each_turn_of_others(shape):
    torch.manual_seed(0)
    p = param(*shape)
    optimizer = torch.optim.SGD([p], lr=1.0)
    rotation, turns, most = Rotation(1, most_compared=20_000), 10, 20_000
    moved = torch.zeros(shape, dtype=torch.int)
    for turn in range(turns):
        old, p.grad = real64(p), torch.randn_like(p)
        (seen,) = look(optimizer, [p], rotation, turn)
        (piece,) = rotation._plans[optimizer].part(turn)
        assert piece.old.numel() <= most
        rows = piece.window(torch.arange(p.numel()).view(shape), turn)
        moved.view(-1)[rows.reshape(-1)] += 1
        change = p.detach().double() - old
        ratio = change.view(-1)[rows.reshape(-1)].norm() / old.view(-1)[rows.reshape(-1)].norm()
        assert seen.update_ratio == pytest.approx(float(ratio), rel=1e-5)
        assert seen.weight_norm == pytest.approx(float(old.norm()), rel=1e-5)
    assert (moved > 0).all()  # all of it has had its turn


def test_what_is_compared_of_a_part_may_be_too_small_for_float32():
    p = nn.Parameter(torch.full((100, 100), 1e-25))
    optimizer = torch.optim.SGD([p], lr=1.0)
    p.grad = torch.full_like(p, 1e-27)
    (seen,) = look(optimizer, [p], Rotation(1, most_compared=1000))
    assert seen.update_ratio == pytest.approx(0.01, rel=1e-3)
    assert seen.weight_norm == pytest.approx(1e-23, rel=0.02)  # as it is after the step: nobody kept it all


def test_slices_scale_their_weight_norm():
    p = nn.Parameter(torch.full((64, 1024), 2.0))
    optimizer = torch.optim.SGD([p], lr=0.5)
    p.grad = torch.ones_like(p)
    p.grad[0, 0] = 9.0
    rotation = Rotation()
    seen = [look(optimizer, [p], rotation, step)[0] for step in range(16)]
    assert [s.grad_max_abs for s in seen] == [9.0] + [1.0] * 15
    assert seen[0].weight_norm == pytest.approx(2.0 * 256, rel=1e-6)  # of 65536 elements
    # A later slice was changed by the steps before it.
    assert seen[2].weight_norm == pytest.approx(1.0 * 256, rel=1e-6)
    assert seen[2].update_ratio == pytest.approx(0.5, rel=1e-6)


def test_slices_have_the_state_and_the_gradient_of_their_place():
    torch.manual_seed(0)
    p = param(64, 1024)
    optimizer = torch.optim.Adam([p], lr=0.01)
    p.grad = torch.randn_like(p)
    optimizer.step()
    optimizer.state[p]["exp_avg"][63, 5] = math.nan
    rotation = Rotation(state_turns=1)
    finite = [look(optimizer, [p], rotation, step, applied=False)[0].state_finite for step in range(16)]
    assert finite == [True] * 15 + [False]
    optimizer.state[p]["exp_avg"][63, 5] = 0.0
    rows = torch.arange(64) // 4
    for step in range(16):
        p.grad = torch.randn_like(p) * (1 + rows)[:, None]
        old = real64(p)
        (stats,) = look(optimizer, [p], rotation, step)
        mine = rows == step
        v_hat = optimizer.state[p]["exp_avg_sq"].double()[mine] / (
            1 - 0.999 ** float(optimizer.state[p]["step"])
        )
        assert stats.adam_rms == pytest.approx(
            float((p.grad[mine].double() ** 2 / v_hat).mean().sqrt()), rel=1e-4
        )
        assert stats.weight_norm == pytest.approx(4 * float(old[mine].norm()), rel=1e-6)


def test_the_mean_over_a_large_slice_is_taken_on_a_sample():
    torch.manual_seed(0)
    p = param(500, 1000)
    optimizer = torch.optim.Adam([p], lr=0.01)
    for _ in range(3):
        p.grad = torch.randn_like(p)
        (stats,) = look(optimizer, [p])
    v_hat = optimizer.state[p]["exp_avg_sq"] / (1 - 0.999**3)
    assert stats.adam_rms == pytest.approx(float((p.grad**2 / v_hat).mean().sqrt()), rel=0.02)


def test_the_plan_follows_the_parameters():
    a, b = param(4), param(4)
    optimizer = torch.optim.SGD([a], lr=0.1)
    rotation = Rotation(1)
    assert [s.param for s in look(optimizer, [a], rotation)] == [0]
    optimizer.add_param_group({"params": [b]})
    assert [s.param for s in look(optimizer, [a, b], rotation)] == [0, 1]
    a.requires_grad_(False)
    assert [s.param for s in look(optimizer, [a, b], rotation)] == [1]
    a.requires_grad_(True)
    c = nn.Parameter(torch.full((4,), 3.0))
    optimizer.param_groups[0]["params"][0] = c
    assert [s.weight_norm for s in look(optimizer, [c, b], rotation)][0] == 6.0
    c.data = torch.full((9,), 3.0)  # resized in place
    assert look(optimizer, [c, b], rotation)[0].weight_norm == 9.0
    c.data = c.data.double()
    assert look(optimizer, [c, b], rotation)[0].weight_norm == 9.0


def test_the_decay_is_that_of_the_group_that_a_parameter_is_in_now():
    """As under ``clip.clipped_updates``: the groups are split for one step, and whole in the next."""
    a, b = param(3), param(4)
    optimizer = torch.optim.Adam([a, b], lr=0.0, betas=(0.9, 0.999))
    rotation, (whole,) = Rotation(1, state_turns=1), optimizer.param_groups
    rest, of_a = {**whole, "params": []}, {**whole, "params": [a]}
    of_b = {**whole, "params": [b], "betas": (0.9, 0.9)}
    for step, groups in enumerate([[rest, of_a, of_b], [of_b, of_a], [rest, of_a, of_b]]):
        optimizer.param_groups = groups
        a.grad, b.grad = torch.ones_like(a), torch.ones_like(b)
        seen = look(optimizer, [a, b], rotation, step)
        assert [s.adam_rms for s in seen] == pytest.approx([1.0, 1.0], rel=1e-3)


def test_a_parameter_that_is_replaced_during_the_step():
    p = param(4)
    optimizer = torch.optim.SGD([p], lr=0.1)
    rotation = Rotation(1)
    rotation.before(optimizer, [p], [0], 0)
    p.data = torch.ones(7)
    (stats,) = rotation.after(optimizer, True)
    assert math.isnan(stats.update_ratio)


def test_a_step_that_raised_leaves_nothing_behind():
    p = param(4)
    p.grad = torch.ones(4)
    optimizer = torch.optim.SGD([p], lr=0.1)
    rotation = Rotation(1)
    rotation.before(optimizer, [p], [0], 0)
    (stats,) = look(optimizer, [p], rotation)
    assert stats.update_ratio > 0
    assert rotation.after(optimizer, True) == ()


def test_no_tensor_outlives_its_optimizer():
    import gc
    import weakref

    p = param(4)
    p.grad = torch.ones(4)
    optimizer = torch.optim.SGD([p], lr=0.1)
    rotation = Rotation(1)
    look(optimizer, [p], rotation)
    alive = weakref.ref(p)
    del p, optimizer
    gc.collect()
    assert alive() is None


def test_two_optimizers_do_not_disturb_each_other():
    a, b = param(8), param(8)
    optimizers = [torch.optim.SGD([a], lr=0.1), torch.optim.SGD([b], lr=0.1)]
    rotation = Rotation(1)
    for p, optimizer in zip((a, b), optimizers, strict=True):
        p.grad = torch.ones(8)
        rotation.before(optimizer, [p], [0], 0)
    for p, optimizer in zip((a, b), optimizers, strict=True):
        old = p.detach().clone()
        optimizer.step()
        (stats,) = rotation.after(optimizer, True)
        assert stats.update_ratio == pytest.approx(float((p.detach() - old).norm() / old.norm()), rel=1e-5)


def test_bad_numbers():
    with pytest.raises(ValueError, match="num_parts must be at least 1, got 0"):
        Rotation(0)
    with pytest.raises(ValueError, match="state_turns must be at least 1, got 0"):
        Rotation(state_turns=0)
    with pytest.raises(ValueError, match="most_tensors must be at least 1, got 0"):
        Rotation(most_tensors=0)
    with pytest.raises(ValueError, match="small_every must be at least 1, got 0"):
        Rotation(small_every=0)
    with pytest.raises(ValueError, match="most_compared must be at least 1, got 0"):
        Rotation(most_compared=0)


# ---------------------------------------------------------------------- do no harm
def test_reading_changes_nothing():
    def train(watch):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 64), nn.Dropout(0.2), nn.Linear(64, 4))
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        params, rotation = list(model.parameters()), Rotation()
        for step in range(40):
            optimizer.zero_grad()
            model(torch.randn(16, 8)).square().mean().backward()
            versions = [p._version for p in params] + [p.grad._version for p in params]
            if watch:
                rotation.before(optimizer, params, range(len(params)), step)
            assert versions == [p._version for p in params] + [p.grad._version for p in params]
            optimizer.step()
            if watch:
                rotation.after(optimizer, True)
        return [*params, *(t for s in optimizer.state.values() for t in s.values()), torch.get_rng_state()]

    for a, b in zip(train(False), train(True), strict=True):
        assert torch.equal(a, b)


@pytest.mark.gpu
def test_only_one_copy_to_the_host_on_a_gpu():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    params = [
        nn.Parameter(torch.randn(300, 300, device="cuda")),
        nn.Parameter(torch.randn(300, device="cuda")),
    ]
    optimizer = torch.optim.AdamW(params, lr=0.01)
    for p in params:
        p.grad = torch.randn_like(p)
    rotation = Rotation(1)
    look(optimizer, params, rotation)
    torch.cuda.set_sync_debug_mode("error")
    try:
        rotation.before(optimizer, params, range(len(params)), 1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    optimizer.step()
    assert all(s.adam_rms == pytest.approx(1.0, abs=0.5) for s in rotation.after(optimizer, True))
