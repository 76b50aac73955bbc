"""What every layer of the room does, whatever its maths."""

import copy
import io
import math
import pickle

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.nn.norm.cases import CASES, Case, output

# relative errors to expect: a norm over 4 numbers or 5 examples magnifies the rounding of the state it divides
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9, torch.bfloat16: 0.2, torch.float16: 0.04}


def over(cases):
    return pytest.mark.parametrize("case", cases, ids=lambda c: c.name)


def bits(module):
    """The state, comparable bit for bit: nan equals itself."""
    return {name: (t.dtype, t.shape, t.numpy().tobytes()) for name, t in module.state_dict().items()}


def train_step(module, x):
    """Forward and backward; the output and the gradients of input and parameters."""
    x = x.clone().requires_grad_()
    module.zero_grad()
    y = output(module(x))
    probe = torch.randn(y.shape, generator=torch.Generator().manual_seed(5))
    (y * probe).sum().backward()
    return [y.detach(), x.grad, *(p.grad for p in module.parameters())]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@over(CASES)
def test_dtypes_agree_with_float64(case: Case, dtype):
    exact = case.build().double()
    module = case.build()
    module.load_state_dict(exact.state_dict())
    module.to(dtype)
    x = case.input(dtype=dtype)
    exact.load_state_dict(module.state_dict())  # the rounded parameters
    for training in (True, False):
        got = train_step(module.train(training), x)
        want = train_step(exact.train(training), x.double())
        assert got[0].dtype == dtype
        for g, w in zip(got, want, strict=True):
            assert g.isfinite().all()
            assert (g.double() - w).norm() <= TOLERANCE[dtype] * w.norm().clamp(min=0.1)


@over(CASES)
def test_device_and_dtype_arguments(case: Case):
    module = case.build(dtype=torch.float64)
    assert all(p.dtype == torch.float64 for p in module.parameters())
    assert output(module(case.input(dtype=torch.float64))).dtype == torch.float64
    if not case.reparametrises:
        meta = case.make(device="meta")
        assert all(t.device.type == "meta" for t in meta.state_dict().values())


@over(CASES)
def test_empty_batch(case: Case):
    module = case.build()
    before = bits(module)
    full = output(module(case.input()))
    module = case.build()
    x = case.input(batch=0).requires_grad_()
    y = output(module(x))
    want = list(full.shape)
    want[case.batch_dim] = 0
    assert list(y.shape) == want
    y.sum().backward()
    assert x.grad.shape == x.shape
    if not case.reparametrises:  # the power iteration is of the weight, which is there
        assert bits(module) == before


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@over([c for c in CASES if c.per_example])
def test_a_bad_example_stays_alone(case: Case, bad):
    module = case.build().eval()
    x = case.input()
    want = output(module(x))
    poisoned = x.clone()
    poisoned.select(case.batch_dim, 2)[(0,) * (x.dim() - 1)] = bad
    got = output(module(poisoned))
    others = torch.tensor([0, 1, 3, 4])
    assert torch.equal(got.index_select(case.batch_dim, others), want.index_select(case.batch_dim, others))
    hidden = case.hides_inf and math.isinf(bad)
    assert got.select(case.batch_dim, 2).isfinite().all() == hidden


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30])
@over([c for c in CASES if c.learns])
def test_a_bad_batch_teaches_nothing(case: Case, bad):
    """After one bad step the run is the run in which it never was."""
    module, clean = case.build(), case.build()
    for step in range(3):
        for m in (module, clean):
            m(case.input(seed=step))
    before = bits(module)
    x = case.input(seed=9)
    x.view(-1)[0] = bad
    y = output(module(x))
    assert bits(module) == before
    if not bad == 1e30:
        assert not y.isfinite().all(), "a non-finite value is never hidden"
    for step in range(3, 6):
        assert torch.equal(output(module(case.input(seed=step))), output(clean(case.input(seed=step))))
    assert bits(module) == bits(clean) != before


@over([c for c in CASES if c.learns])
def test_training_learns_and_evaluation_does_not(case: Case):
    module = case.build()
    fresh = bits(module)
    for seed in (1, 3):  # a controller moves by what the pass before has shown
        module(case.input(seed))
    learned = bits(module)
    changed = {name for name in fresh if fresh[name] != learned[name]}
    assert changed == {n for n, _ in module.named_buffers()} - set(case.by_neighbours)
    module.eval()
    first, second = output(module(case.input(seed=2))), output(module(case.input(seed=2)))
    assert torch.equal(first, second) and bits(module) == learned


@over([c for c in CASES if c.train_is_eval])
def test_training_and_evaluation_compute_the_same(case: Case):
    module = case.build()
    before = bits(module)
    y = output(module(case.input()))
    assert torch.equal(y, output(module.eval()(case.input()))) and bits(module) == before


@over(CASES)
def test_deepcopy_is_equal_and_independent(case: Case):
    module = case.build()
    module(case.input())
    other = copy.deepcopy(module)
    before = bits(module)
    assert bits(other) == before
    with torch.no_grad():
        for p in other.parameters():
            p.add_(1)
    other(case.input(seed=2))
    assert bits(module) == before
    fresh = copy.deepcopy(module)
    assert torch.equal(output(module(case.input(seed=3))), output(fresh(case.input(seed=3))))


@over([c for c in CASES if not c.reparametrises])
def test_pickle(case: Case):
    module = case.build()
    module(case.input())
    other = pickle.loads(pickle.dumps(module))
    assert type(other) is type(module) and bits(other) == bits(module) and repr(other) == repr(module)
    assert torch.equal(output(module(case.input(seed=3))), output(other(case.input(seed=3))))


@over(CASES)
def test_state_dict_round_trip_bit_for_bit(case: Case):
    module, other = case.build(), case.build(seed=7)
    for step in range(3):
        module(case.input(seed=step))
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    assert bits(other) != bits(module)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert bits(other) == bits(module)
    for step in range(3, 6):
        assert torch.equal(output(module(case.input(seed=step))), output(other(case.input(seed=step))))
    assert bits(other) == bits(module)


@over([c for c in CASES if c.compiles])
def test_compiles_without_a_graph_break(case: Case):
    torch._dynamo.reset()
    module, plain = case.build(), case.build()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for training in {True, case.train_is_eval}:
        module.train(training), plain.train(training)
        for got, want in zip(
            train_step(compiled, case.input()), train_step(plain, case.input()), strict=True
        ):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    for got, want in zip(module.state_dict().values(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(got, want)


@over(CASES)
def test_autocast(case: Case):
    module, plain = case.build(), case.build()
    with torch.autocast("cpu", torch.bfloat16):
        got = output(module(case.input()))
    want = output(plain(case.input()))
    assert (got - want).norm() < 0.1 * want.norm()
    got.float().sum().backward()
    assert all(p.grad.isfinite().all() and p.grad.dtype == torch.float32 for p in module.parameters())
    for got, want in zip(module.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(got, want, rtol=0.05, atol=0.05)


class NoHostRead(TorchDispatchMode):
    """Fails when a number leaves the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            raise AssertionError(f"host read: {func}")
        return func(*args, **(kwargs or {}))


@over(CASES)
def test_no_host_sync(case: Case):
    module = case.build()
    with NoHostRead():
        train_step(module, case.input())
        module.eval()(case.input())


@over(CASES)
def test_no_random_number_is_drawn(case: Case):
    module = case.build()
    rng = torch.get_rng_state()
    module(case.input())
    module.eval()(case.input())
    assert torch.equal(torch.get_rng_state(), rng)


@over(CASES)
def test_two_forward_passes_before_one_backward_pass(case: Case):
    """As a discriminator on real and fake: nothing that the first pass needs is overwritten by the second."""
    module = case.build()
    output(module.eval()(case.input())).sum().backward()
    module.train()
    loss = output(module(case.input())).sum() + output(module(case.input(seed=2))).sum()
    loss = loss + output(module.eval()(case.input(seed=3))).sum() + output(module.train()(case.input())).sum()
    loss.backward()


@over([c for c in CASES if not c.reparametrises])
def test_reset_parameters(case: Case):
    """Everything but the drawn weights is as in a fresh layer, and the drawn ones follow the same law."""
    module = case.build()
    module(case.input())
    torch.manual_seed(3)
    fresh = case.make()
    torch.manual_seed(4)
    module.reset_parameters()
    torch.manual_seed(4)
    fresh.reset_parameters()
    assert bits(module) == bits(fresh)


@over(CASES)
def test_repr_names_the_settings(case: Case):
    words = {"dyt": "alpha_init=0.5", "sigma": "n_power_iterations=1", "batch_norm_lstm": "max_length=2"}
    word = next((w for start, w in words.items() if case.name.startswith(start)), "eps=1e-0")
    assert word in repr(case.build())


@over(CASES)
def test_wrong_width_is_refused_and_teaches_nothing(case: Case):
    module = case.build()
    before = bits(module)
    shape = [n + 1 if n == 3 else n for n in case.shape]
    with pytest.raises((ValueError, RuntimeError), match="3"):
        module(torch.randn(shape))
    if not case.reparametrises:
        assert bits(module) == before
