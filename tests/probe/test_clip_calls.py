"""The user's clip under a watch: the same bits, fewer passes over the gradients, nothing trusted that may be stale."""

import math
import weakref
from collections import Counter
from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch.nn.utils import clip_grad, clip_grad_norm_

import steadygrad as sg
from steadygrad.probe import clip_calls
from steadygrad.probe.norms import gradient_norms
from tests.probe.counting import Counting
from tests.probe.watching import Watching

F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
SIZE = 3 * 5 + 7 + 1000


@contextmanager
def watched(model, tried=()):
    """``tried``: dtypes for which torch has been tried out before."""
    with Watching(model, torch.optim.SGD(model.parameters(), lr=0.1)) as run:
        for dtype in tried:
            clip_grad_norm_(net(dtype).parameters(), 1.0)
        yield run


def net(*dtypes, seed=0):
    """A model with gradients of a joint norm near 30."""
    g = torch.Generator().manual_seed(seed)
    model = nn.ParameterList(
        [torch.zeros(shape, dtype=dtypes[i % len(dtypes)]) for i, shape in enumerate([(3, 5), (7,), (1000,)])]
    )
    for p in model:
        p.grad = torch.randn(p.shape, generator=g, dtype=F64).to(p.dtype)
    return model


def bits(t):
    return t.dtype, t.shape, t.detach().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()


def outcome(model, max_norm, params=None, **options):
    """What one clip leaves behind: its norm or error, the gradients, and how often each counts as written to."""
    before = [0 if p.grad is None or p.grad.is_inference() else p.grad._version for p in model]
    try:
        norm = bits(clip_grad_norm_(list(model) if params is None else params(model), max_norm, **options))
    except RuntimeError as error:
        norm = str(error)
    grads = [None if p.grad is None else bits(p.grad) for p in model]
    writes = [
        None if p.grad is None or p.grad.is_inference() else p.grad._version - v
        for p, v in zip(model, before, strict=True)
    ]
    return norm, grads, writes


@pytest.fixture(autouse=True)
def nothing_is_known_of_torch(monkeypatch):
    monkeypatch.setattr(clip_calls, "_agrees", {})


# ---------------------------------------------------------------------- the same bits
def spoilt(value, where=0):
    def make():
        model = net(F32)
        model[where].grad.view(-1)[3] = value
        return model

    return make


def scaled(factor, *dtypes):
    def make():
        model = net(*dtypes)
        for p in model:
            p.grad.mul_(factor)
        return model

    return make


def without(number):
    def make():
        model = net(F32)
        for p in list(model)[:number]:
            p.grad = None
        return model

    return make


def of_a_graph():
    model = net(F32)
    for p in model:
        p.data.copy_(p.grad)
        (p.grad,) = torch.autograd.grad((p**3).sum(), p, create_graph=True)
    return model


def replaced(make_grad):
    def make():
        model = net(F32)
        model[0].grad = make_grad(model[0].grad)
        return model

    return make


def as_inference(grad):
    with torch.inference_mode():
        return grad.clone()


GRADIENTS = {
    "float32": lambda: net(F32),
    "float64": lambda: net(F64),
    "bf16": lambda: net(BF16),
    "fp16": lambda: net(F16),
    "mixed": lambda: net(F32, F64),
    "low_and_high": lambda: net(F32, BF16),
    "nan": spoilt(math.nan),
    "inf": spoilt(-math.inf),
    "minus_zero": spoilt(-0.0),
    "zero": scaled(0.0, F32),
    "subnormal": scaled(1e-41, F32),
    "overflowing": scaled(1e25, F32),
    "one_missing": without(1),
    "all_missing": without(3),
    "of_a_graph": of_a_graph,
    "transposed": replaced(lambda g: g.t().contiguous().t()),
    "with_gaps": replaced(lambda g: torch.cat([g, g], 1)[:, ::2]),
    "expanded": replaced(lambda g: g[:, :1].expand(3, 5)),
    "inference": replaced(as_inference),
}
CALLS = {
    "plain": {},
    "foreach": {"foreach": True},
    "loop": {"foreach": False},
    "max": {"norm_type": math.inf},
    "sum": {"norm_type": 1},
    "int_two": {"norm_type": 2},
    "raising": {"error_if_nonfinite": True},
    "generator": {"params": lambda model: iter(model.parameters())},
    "one_tensor": {"params": lambda model: model[2]},
    "twice_the_same": {"params": lambda model: [*model, model[2]]},
}


# Every kind in the calls that torch computes in ways of their own, every call with some kinds; the long run has all.
KINDS_FOR_EVERY_CALL = ("float32", "low_and_high", "nan", "one_missing")
CALLS_FOR_EVERY_KIND = ("plain", "loop", "max")


@pytest.mark.parametrize(
    ("kind", "call"),
    [
        pytest.param(kind, call, id=f"{kind}-{call}", marks=[] if quick else pytest.mark.slow)
        for kind in GRADIENTS
        for call in CALLS
        for quick in [kind in KINDS_FOR_EVERY_CALL or call in CALLS_FOR_EVERY_KIND]
    ],
)
def test_bits_and_writes_are_those_of_torch(kind, call):
    bounds = (0.5, 30.0, 1e4, math.inf, -1.0, 0)
    plain = [outcome(GRADIENTS[kind](), bound, **CALLS[call]) for bound in bounds]
    for model in (GRADIENTS[kind](), net(F32)):  # gradients of the watched optimizer, and of a stranger
        with watched(model, tried=(F32, F64)):
            for bound, expected in zip(bounds, plain, strict=True):
                for p, q in zip(model, GRADIENTS[kind](), strict=True):
                    p.data, p.grad = q.data, q.grad
                assert outcome(model, bound, **CALLS[call]) == expected


@pytest.mark.parametrize("flush", [False, True])
def test_subnormal_gradients_are_flushed_if_torch_would(flush):
    plain, model = GRADIENTS["subnormal"](), GRADIENTS["subnormal"]()
    small = bits(model[2].grad)
    if not torch.set_flush_denormal(flush):
        pytest.skip("this processor cannot flush")
    try:
        expected = outcome(plain, 1e4)
        with watched(net(F32), tried=(F32,)):
            assert outcome(model, 1e4) == expected
    finally:
        torch.set_flush_denormal(False)
    assert (bits(model[2].grad) != small) is flush


def test_in_inference_mode_gradients_count_as_written_to_as_ever():
    def clip(model):
        with torch.inference_mode():
            return outcome(model, 1e4)

    plain = clip(net(F32))
    with watched(net(F32), tried=(F32,)):
        assert clip(net(F32)) == plain


@pytest.mark.parametrize("max_norm", [0.5, 1e4])
def test_two_watchers_and_a_clip_by_parts_are_the_same_too(max_norm):
    halves = {"params": lambda model: list(model)[:2]}, {"params": lambda model: list(model)[2:]}
    model = net(F32)
    plain = [outcome(model, max_norm, **half) for half in halves]
    model = net(F32)
    raw = gradient_norms([p.grad for p in model])
    with watched(model) as run, watched(net(F32)):
        assert [outcome(model, max_norm, **half) for half in halves] == plain
        run._optimizer.step()
    assert run.records[0].grad_norms.tolist() == raw.tolist()


# ---------------------------------------------------------------------- how little is asked
@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize(("max_norm", "multiplied"), [(1e4, 0), (0.5, 1)])
def test_one_pass_for_the_clip_and_none_for_a_factor_of_one(dtype, max_norm, multiplied):
    mine, strangers = net(dtype), net(dtype)
    with watched(mine, tried=(dtype,)):
        for model in (mine, strangers):
            with Counting() as count:
                clip_grad_norm_(model.parameters(), max_norm)
            assert count.calls["_foreach_norm"] == 1
            assert count.bytes_read["_foreach_norm"] == SIZE * dtype.itemsize
            assert count.calls["_foreach_mul_"] == multiplied and count.calls["mul_"] == 0


OTHERS = [("float32", call) for call in ("loop", "max", "sum")]
OTHERS += [(kind, "plain") for kind in ("bf16", "fp16", "mixed", "low_and_high", "of_a_graph", "inference")]


@pytest.mark.parametrize(("kind", "call"), OTHERS)
def test_what_is_not_the_usual_clip_is_torchs_own_call(kind, call):
    def asked():
        model = GRADIENTS[kind]()
        with Counting() as count:
            clip_grad_norm_(model.parameters(), 1e4, **CALLS[call])
        return count.calls

    plain = asked()
    with watched(net(F32), tried=(F32, F64, BF16, F16)):
        assert asked() == plain


def test_torch_is_tried_out_once_for_each_dtype():
    calls = Counter()
    with watched(net(F32)):
        for dtype in (F32, F32, F64, F64, F32):
            model = net(dtype)
            with Counting() as count:
                clip_grad_norm_(model.parameters(), 1e4)
            calls[dtype] += count.calls["_foreach_norm"]
    assert calls == {F32: 2 + 1 + 1, F64: 2 + 1}


@pytest.mark.parametrize("dtype", [BF16, F16])
def test_norms_of_low_precision_are_not_shared(dtype):
    model = net(dtype)
    true = [float(p.grad.double().norm()) for p in model]
    with watched(model) as run:
        clip_grad_norm_(model.parameters(), 0.5)
        run._optimizer.step()
    assert run.records[0].grad_norms.tolist() == pytest.approx(true, rel=1e-6)


# ---------------------------------------------------------------------- what the probe reads
@pytest.mark.parametrize("max_norm", [0.5, 1e4])
@pytest.mark.parametrize("kind", ["float32", "float64", "bf16", "mixed", "one_missing", "overflowing", "nan"])
def test_the_norms_on_record_are_those_before_the_clip(kind, max_norm):
    twin = GRADIENTS[kind]()
    raw = gradient_norms([p.grad for p in twin])
    clip_grad_norm_(twin.parameters(), max_norm)
    clipped = gradient_norms([p.grad for p in twin])
    model = GRADIENTS[kind]()
    with watched(model, tried=(F32, F64)) as run:
        clip_grad_norm_(model.parameters(), max_norm)
        run._optimizer.step()
    (record,) = run.records
    assert str(record.grad_norms.tolist()) == str(raw.tolist())
    assert record.clipped_grad_norm == pytest.approx(math.hypot(*clipped[~(clipped != clipped)]), nan_ok=True)


@pytest.mark.parametrize("max_norm", [0.5, 1e4])
@pytest.mark.parametrize("write", ["data", "numpy"])
def test_a_nan_written_unseen_between_clip_and_step_is_not_applied(write, max_norm, tmp_path):
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with sg.watch(model, optimizer, runs=tmp_path) as watcher:
        for step in range(4):
            optimizer.zero_grad()
            model(torch.ones(2, 4)).square().mean().backward()
            clip_grad_norm_(model.parameters(), max_norm)
            grad, version = model.weight.grad, model.weight.grad._version
            if step == 2:
                (grad.data if write == "data" else grad.numpy())[1, 1] = math.nan
                kept = model.weight.detach().clone()
            assert grad._version == version, "the write was seen: this shows nothing"
            optimizer.step()
            if step == 2:
                assert torch.equal(model.weight, kept)
    assert [a.action for a in watcher.close().actions] == ["skip"]


# ---------------------------------------------------------------------- trust
def test_a_torch_that_takes_another_norm_has_its_way(monkeypatch):
    calls = []

    def other(tensors, norm_type=2.0, error_if_nonfinite=False, foreach=None):
        calls.append(1)
        return torch.tensor(7.0)

    monkeypatch.setattr(clip_grad, "_get_total_norm", other)
    model = net(F32)
    raw = gradient_norms([p.grad for p in model])
    with watched(model) as run:
        for _ in range(3):
            assert clip_grad_norm_(model.parameters(), 14.0).item() == 7.0
        run._optimizer.step()
    assert len(calls) == 4  # tried out once, and asked three times
    assert run.records[0].grad_norms.tolist() == raw.tolist()


def test_a_first_gradient_that_is_not_finite_decides_nothing():
    with watched(net(F32)):
        clip_grad_norm_(spoilt(math.nan)().parameters(), 1.0)
        assert clip_calls._agrees == {}
        clip_grad_norm_(net(F32).parameters(), 1.0)
        assert clip_calls._agrees == {("cpu", F32): True}


def test_a_factor_for_other_gradients_is_no_factor_for_these():
    model, other = net(F32), net(F32, seed=1)
    for write in (False, True):
        with watched(model):
            clip_grad_norm_(net(F32).parameters(), 1.0)
            small = clip_grad._get_total_norm([p.grad for p in other])
            if write:
                other[0].grad[0, 0] = math.nan
            with Counting() as count:
                clip_grad._clip_grads_with_norm_((other if write else model).parameters(), 1e4, small)
        assert count.calls["_foreach_mul_"] == 1


def test_a_norm_that_is_kept_keeps_no_gradient():
    model = net(F32)
    with watched(net(F32)):
        norms = [clip_grad_norm_(model.parameters(), 1.0) for _ in range(3)]
        norms.append(clip_grad._get_total_norm([p.grad for p in model]))  # of somebody who does not clip
        kept = [weakref.ref(p.grad) for p in model]
        for p in model:
            p.grad = None
    assert [ref() for ref in kept] == [None] * 3
    assert [vars(norm) for norm in norms[:3]] == [{}] * 3


def test_everything_is_torchs_own_again_afterwards():
    names = ("_get_total_norm", "_clip_grads_with_norm_", "clip_grad_norm_", "clip_grad_value_")
    before = [getattr(clip_grad, name) for name in names]
    with watched(net(F32)):
        assert [getattr(clip_grad, name) for name in names] != before
    assert [getattr(clip_grad, name) for name in names] == before
