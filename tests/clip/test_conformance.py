"""Every rule keeps the same contract: one suite over the table in rules.py."""

from __future__ import annotations

import copy
import functools
import io
import math

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.clip.rules import RULES, SHAPES, Case, arrays, gradients, healthy, parameters

BIG = 80.3
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
EPS = {torch.float32: 2e-6, torch.float64: 1e-12, torch.bfloat16: 8e-3, torch.float16: 2e-3}
MEMORY = [c for c in RULES if c.remembers]


def over(cases):
    return pytest.mark.parametrize("case", cases, ids=lambda c: c.name)


def bits(tensors):
    """Everything about the values, -0.0 and dtype included; only that a nan is a nan, not which."""
    return (
        [t.dtype, *map(repr, t.flatten().tolist())]
        if isinstance(t := tensors, torch.Tensor)
        else [*map(bits, t)]
    )


def clones(tensors):
    return [t.clone() for t in tensors]


def joint(values: list[np.ndarray], p: float) -> float:
    flat = np.abs(np.concatenate([v.ravel() for v in values]))
    return float(flat.max() if math.isinf(p) else (flat**p).sum() ** (1 / p))


def same(a, b) -> bool:
    """Equal in every bit, through nested dicts and lists."""
    if isinstance(a, torch.Tensor):
        return a.shape == b.shape and bits(a) == bits(b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@over([c for c in RULES if c.leaves_small])
def test_small_gradients_are_untouched_bit_for_bit(case: Case, dtype):
    rule = case.primed(parameters())
    grads = gradients(3, 1e-3, dtype)
    before = bits(grads)
    stats = rule(grads)
    assert bits(grads) == before
    assert stats.scale == 1 and stats.clipped == 0 and bool(stats.finite)


@over([c for c in RULES if c.leaves_small])
def test_healthy_steps_are_left_alone(case: Case):
    """The next step of the run that the memory was made of, which the slow twin leaves alone too."""
    grads = healthy(500)
    before = arrays(grads)
    expected = case.primed_twin(parameters())(arrays(grads))
    case.primed(parameters())(grads)
    if all(np.array_equal(a, b) for a, b in zip(before, expected, strict=True)):
        assert all(np.array_equal(a, b) for a, b in zip(arrays(grads), before, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@over(RULES)
def test_agrees_with_the_float64_twin(case: Case, dtype):
    weights = torch.float64 if dtype == torch.float64 else torch.float32
    rule, twin = case.primed(parameters(weights)), case.primed_twin(parameters(weights))
    grads = gradients(3, BIG, dtype)
    seen = arrays(grads)
    expected = twin(seen)
    stats = rule(grads)
    # a memory is float32 whatever the gradients are
    tolerance = max(EPS[dtype], 5e-6 if case.remembers else 0.0)
    for got, want in zip(arrays(grads), expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance * float(np.abs(want).max()))
    exact = dtype == torch.float64 and not case.remembers
    np.testing.assert_allclose(stats.norm.item(), joint(seen, case.norm_type), rtol=1e-12 if exact else 1e-6)


@over(RULES)
def test_norm_is_at_least_float32(case: Case):
    """In bf16 the norm of these would keep 8 bits: off by up to 0.4 %."""
    for dtype in DTYPES:
        stats = case.primed(parameters())(gradients(3, BIG, dtype))
        assert stats.norm.dtype in (torch.float32, torch.float64)
        assert stats.norm.ndim == stats.scale.ndim == stats.limit.ndim == stats.clipped.ndim == 0
        assert stats.finite.dtype == torch.bool


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@over([c for c in RULES if c.leaves_small])
def test_bound(case: Case, dtype):
    """Gradients a million times too large come out as small as those a hundred times too large, or smaller."""
    sizes = []
    for size in (BIG, 1e6):
        grads = gradients(3, size, dtype)
        stats = case.primed(parameters())(grads)
        assert 0 < stats.scale < 1 and 0 < stats.clipped <= 1
        sizes.append(joint(arrays(grads), 2.0))
    assert sizes[0] < BIG / 2
    if not case.entrywise and case.name != "chain":  # entries below a bound of their own may grow up to it
        assert sizes[1] <= sizes[0] * (1 + 4 * EPS[dtype])
    else:
        assert sizes[1] < 1e3


@over([c for c in RULES if c.idempotent])
def test_idempotent(case: Case):
    """What a rule has let through it lets through again, given the same memory."""
    first = case.primed(parameters())
    second = copy.deepcopy(first)
    grads = gradients(3, BIG)
    first(grads)
    once = arrays(grads)
    second(grads)
    for a, b in zip(arrays(grads), once, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=4e-6)


@over(RULES)
def test_empty(case: Case):
    rule = case.primed(parameters())
    state = copy.deepcopy(rule.state_dict()) if case.remembers else None
    for nothing in ([], [None] * len(SHAPES), [torch.zeros(s)[:0].reshape(0) for s in [(1,)]]):
        if case.name == "adagc" and len(nothing) != len(SHAPES):
            with pytest.raises(ValueError, match="memory of 4 gradients"):
                rule(nothing)
            continue
        if case.name in ("unit_norm", "spam") and len(nothing) == 1:
            continue  # its shape is not the parameter's: see test_zero_size
        stats = rule(nothing)
        assert stats.norm == 0 and stats.scale == 1 and stats.clipped == 0 and bool(stats.finite)
    assert state is None or same(rule.state_dict(), state)


@over(RULES)
def test_none_and_zero_size_do_not_shift_the_others(case: Case):
    """A parameter without a gradient keeps its place: the others are treated as if it had a zero gradient."""
    dense, holes = gradients(3, BIG), gradients(3, BIG)
    dense[1].zero_()
    holes[1] = None
    case.primed(parameters())(dense)
    case.primed(parameters())(holes)
    assert holes[1] is None
    for i in (0, 2, 3):
        np.testing.assert_allclose(arrays([holes[i]])[0], arrays([dense[i]])[0], rtol=1e-6)


@over([c for c in RULES if not c.remembers])
def test_zero_size(case: Case):
    params = [*parameters(), torch.nn.Parameter(torch.zeros(0, 3))]
    with_empty, without = [*gradients(3, BIG), torch.zeros(0, 3)], gradients(3, BIG)
    stats = case.make(params)(with_empty)
    expected = case.make(params[:-1])(without)
    assert same(with_empty[:-1], without) and stats.norm == expected.norm and stats.scale == expected.scale


@over(RULES)
def test_zero_gradient(case: Case):
    rule = case.primed(parameters())
    grads = [torch.zeros(s) for s in SHAPES]
    grads[0][0, 0] = -0.0
    before = bits(grads)
    stats = rule(grads)
    assert [g.abs().max().item() for g in grads] == [0.0] * 4
    assert stats.norm == 0 and stats.scale == 1 and bool(stats.finite)
    if case.name != "centralise":  # -0.0 - 0.0 may lose its sign there
        assert bits(grads) == before


@pytest.mark.parametrize(
    ("bad", "dtype"),
    [
        (math.nan, torch.float32),
        (math.inf, torch.float32),
        (-math.inf, torch.bfloat16),
        (math.nan, torch.float16),
        (math.inf, torch.float64),
    ],
)
@over(RULES)
def test_nonfinite_gradients_are_reported_and_nothing_is_changed(case: Case, bad, dtype):
    params = parameters()
    rule = case.primed(params)
    state = copy.deepcopy(rule.state_dict()) if case.remembers else None
    weights = bits(params)
    grads = gradients(3, BIG, dtype)
    grads[2][1, 0, 1, 0] = bad
    before = bits(grads)
    stats = rule(grads)
    assert not stats.finite and not stats.norm.isfinite() and stats.scale.isnan() and stats.clipped == 0
    assert bits(grads) == before, "a nan is never hidden, spread or scaled"
    assert state is None or same(rule.state_dict(), state)
    assert bits(params) == weights


@over(RULES)
def test_overflow(case: Case):
    """Finite entries whose squares overflow float32: rules on entries clip them, rules on the norm report them."""
    rule = case.primed(parameters())
    grads = [g * 1e30 for g in gradients(3, 1.0)]
    before = bits(grads)
    stats = rule(grads)
    if case.entrywise or case.name == "chain":
        assert max(g.abs().max().item() for g in grads) < 1e3
        assert bool(stats.finite) == case.entrywise  # a chain reports what its first rule could not measure
    elif case.norm_type == 1:  # no squares, no overflow
        assert bool(stats.finite) and bits(grads) != before
    else:
        assert not stats.finite and bits(grads) == before


@over([c for c in RULES if c.sparse])
def test_sparse_equals_dense(case: Case):
    """An embedding's gradient, with a row that occurs twice; the dense form of it must come out the same."""
    rows, values = torch.tensor([[2, 0, 2]]), gradients(3, BIG)[0][:3]
    sparse = torch.sparse_coo_tensor(rows, values, (4, 3), check_invariants=True)
    assert not sparse.is_coalesced()
    dense = sparse.to_dense()
    rest = gradients(3, BIG)[1:]
    a, b = [sparse, *clones(rest)], [dense, *clones(rest)]
    stats = case.primed(parameters())(a)
    expected = case.primed(parameters())(b)
    if case.name == "block_rms":  # the mean of a sparse gradient runs over the rows that it holds
        held = sparse.coalesce().values()
        assert held.square().mean().sqrt() <= 1.5 * (1 + 1e-6)
        b[0] = dense * (stats.scale * 0 + held[0, 0] / dense[0, 0])
    assert a[0] is sparse and sparse.is_sparse
    torch.testing.assert_close(sparse.to_dense(), b[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(a[1:], b[1:], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(stats.norm, expected.norm)


@over([c for c in RULES if not c.sparse])
def test_sparse_is_refused_where_it_has_no_meaning(case: Case):
    rule = case.primed(parameters())
    sparse = torch.sparse_coo_tensor(torch.tensor([[2, 0]]), torch.ones(2, 3), (4, 3), check_invariants=True)
    with pytest.raises(TypeError, match=r"grads\[0\] is sparse.*sparse=False"):
        rule([sparse, *gradients(3, BIG)[1:]])


@over(RULES)
def test_mixed_dtypes_and_layouts(case: Case):
    """fp32, bf16, fp64 and fp16 in one list, one of them a transposed view."""
    grads = gradients(3, BIG)
    mixed = [g.to(d) for g, d in zip(grads, DTYPES, strict=True)]
    mixed[0] = grads[0].t().contiguous().t()
    assert not mixed[0].is_contiguous()
    expected = case.primed_twin(parameters())(arrays(mixed))
    case.primed(parameters())(mixed)
    assert [g.dtype for g in mixed] == DTYPES
    for got, want, d in zip(arrays(mixed), expected, DTYPES, strict=True):
        np.testing.assert_allclose(got, want, rtol=max(EPS[d], 5e-6), atol=EPS[d] * float(np.abs(want).max()))


@over(RULES)
def test_in_place_on_views_of_one_buffer(case: Case):
    """DDP hands out views of its buckets: a rule must write there and nowhere else."""
    grads = gradients(3, BIG)
    buffer = torch.cat([g.reshape(-1) for g in grads] + [torch.full((3,), 7.0)])
    views, offset = [], 0
    for g in grads:
        views.append(buffer[offset : offset + g.numel()].view(g.shape))
        offset += g.numel()
    places = [v.data_ptr() for v in views]
    case.primed(parameters())(views)
    case.primed(parameters())(grads)
    assert [v.data_ptr() for v in views] == places
    assert bits(views) == bits(grads) and buffer[-3:].tolist() == [7.0] * 3


@over(RULES)
def test_harmless(case: Case):
    """No random number is drawn, no graph is kept, the parameters stay (but for SPAM's own optimizer steps)."""
    params = parameters()
    rule = case.primed(params)
    rng, weights = torch.get_rng_state(), bits(params)
    x = torch.ones((), requires_grad=True)
    grads = [g * x for g in gradients(3, BIG)]
    stats = rule([g.detach() for g in grads])
    assert not any(t.requires_grad for t in stats)
    assert torch.equal(torch.get_rng_state(), rng)
    if case.name != "spam":
        assert bits(params) == weights


class NoHostRead(TorchDispatchMode):
    """Fails when a number leaves the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            raise AssertionError(f"host read: {func}")
        return func(*args, **(kwargs or {}))


@over([c for c in RULES if not c.syncs])
def test_no_host_sync(case: Case):
    rule, steps = case.primed(parameters()), [gradients(step, BIG) for step in range(2)]
    with NoHostRead():
        for grads in steps:
            rule(grads)


def test_the_sync_detector_detects():
    with NoHostRead(), pytest.raises(AssertionError, match="host read"):
        torch.ones(()).item()


@over([c for c in RULES if not c.syncs])
def test_compiles_without_a_graph_break(case: Case):
    torch._dynamo.reset()
    rule, plain = case.primed(parameters()), case.primed(parameters())
    compiled = torch.compile(lambda grads: rule(grads), fullgraph=True, backend="eager")
    for step in range(3):
        a, b = gradients(step, BIG if step == 1 else 1.0), gradients(step, BIG if step == 1 else 1.0)
        got, want = compiled(a), plain(b)
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(tuple(got), tuple(want), rtol=1e-6, atol=1e-7)
    if case.remembers:
        assert same(rule.state_dict(), plain.state_dict())


@over(MEMORY)
def test_state_dict_round_trip_bit_for_bit(case: Case):
    params_a, params_b = parameters(), parameters()
    rule = case.make(params_a)
    for step in range(HALF := 30):
        rule(healthy(step))
    file = io.BytesIO()
    torch.save(rule.state_dict(), file)
    file.seek(0)
    other = case.make(params_b)
    other.load_state_dict(torch.load(file, weights_only=True))
    with torch.no_grad():
        for p, q in zip(params_b, params_a, strict=True):
            p.copy_(q)
    assert same(other.state_dict(), rule.state_dict())
    for step in range(HALF, HALF + 20):
        a, b = healthy(step), healthy(step)
        if step == HALF + 10:
            a, b = gradients(3, BIG), gradients(3, BIG)
        assert same(tuple(rule(a)), tuple(other(b)))
        assert bits(a) == bits(b)
    assert same(other.state_dict(), rule.state_dict())


@over(MEMORY)
def test_state_dict_is_a_copy(case: Case):
    rule = case.primed(parameters())
    saved = rule.state_dict()
    kept = copy.deepcopy(saved)
    for step in range(5):
        rule(healthy(step))
    assert same(saved, kept) and not same(rule.state_dict(), kept)
    rule.load_state_dict(saved)
    for state in saved.values():  # whoever writes into what was saved does not write into the rule
        if isinstance(state, torch.Tensor):
            state.fill_(7)
    assert same(rule.state_dict(), kept)
    for state in rule.state_dict().values():
        if isinstance(state, torch.Tensor):
            state.fill_(7)
    assert same(rule.state_dict(), kept)


@over(MEMORY)
def test_a_state_that_does_not_fit_is_refused(case: Case):
    rule = case.primed(parameters())
    before = copy.deepcopy(rule.state_dict())
    with pytest.raises((ValueError, KeyError)):
        rule.load_state_dict({"nonsense": torch.zeros(3)})
    assert same(rule.state_dict(), before)


def run_of_300(case: Case, bad: float | None = None, at: int = 0):
    """What 300 steps left of their gradients and reported, and the memory at the end; spikes in between."""
    rule = case.make(parameters())
    run = []
    for step in range(300):
        if bad is not None and step == at:
            poisoned = healthy(999)
            poisoned[0][0, 0] = bad
            assert not rule(poisoned).finite
        grads = gradients(step, BIG) if step % 97 == 96 else healthy(step)
        stats = rule(grads)
        run.append(torch.cat([g.flatten() for g in [*grads, *stats]]))
    return run, rule.state_dict()


clean_run_of_300 = functools.cache(run_of_300)


@pytest.mark.parametrize(
    ("case", "bad", "at"),
    [
        # nan at every place, the others at one of them; the long run has all of them everywhere
        pytest.param(c, bad, at, id=f"{c.name}-{bad}-{at}", marks=[] if at in quick else pytest.mark.slow)
        for c in MEMORY
        for bad, quick in ((math.nan, (0, 3, 150)), (math.inf, (150,)), (1e30, (0,)))
        for at in (0, 3, 150)
        if bad != 1e30 or not c.entrywise  # a norm beyond float32 is no obstacle to a rule on entries
    ],
)
def test_one_bad_step_among_300(case: Case, bad, at):
    """The whole run after one bad step is the run in which it never was: not one further step skipped or changed."""
    clean, state = clean_run_of_300(case)
    poisoned, state_after = run_of_300(case, bad, at)
    assert sum(not torch.equal(a, b) for a, b in zip(clean, poisoned, strict=True)) == 0
    assert same(state, state_after)


BAD_GRADIENTS = {
    "float": (1.0, r"grads\[3\] must be a tensor or None, got float"),
    "parameter": (torch.nn.Parameter(torch.ones(())), r"grads\[3\] is a Parameter.*p.grad"),
    "integer": (torch.ones((), dtype=torch.long), r"grads\[3\] has dtype torch.int64; known are float32"),
    "complex": (torch.ones((), dtype=torch.complex64), r"grads\[3\] has dtype .*view_as_real"),
    "layout": (torch.ones(2).to_mkldnn(), r"grads\[3\] has layout torch._mkldnn|params\[3\] has shape"),
}


@pytest.mark.parametrize(("bad", "message"), BAD_GRADIENTS.values(), ids=BAD_GRADIENTS)
@over(RULES)
def test_a_bad_gradient_is_refused_before_anything_is_changed(case: Case, bad, message):
    rule = case.primed(parameters())
    state = copy.deepcopy(rule.state_dict()) if case.remembers else None
    good = gradients(3, BIG)[:3]
    before = bits(good)
    with pytest.raises((TypeError, ValueError), match=message):
        rule([*good, bad])
    assert bits(good) == before
    assert state is None or same(rule.state_dict(), state)


@pytest.mark.parametrize(
    ("bad", "message"),
    [(torch.ones(4, 3), r"got Tensor: write .*\[g\]"), (iter([torch.ones(3)]), "list of tensors, got")],
    ids=["tensor", "iterator"],
)
@over([c for c in RULES if c.name not in ("unit_norm", "spam")])
def test_something_else_than_a_list_is_refused(case: Case, bad, message):
    with pytest.raises(TypeError, match=message):
        case.make(parameters())(bad)
