"""Zoneout, dropout with one mask, and chrono initialisation."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from torch import nn

from steadygrad.nn.recurrent import VariationalDropout, Zoneout, chrono_bias_, zoneout


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_zoneout_takes_each_unit_from_one_of_the_two(dtype):
    old, new = torch.full((200, 100), -1.0, dtype=dtype), torch.full((200, 100), 2.0, dtype=dtype)
    mixed = Zoneout(0.3)(old, new)
    assert mixed.dtype == dtype and set(mixed.float().unique().tolist()) == {-1.0, 2.0}
    assert (mixed == -1).float().mean().item() == pytest.approx(0.3, abs=0.02)
    assert Zoneout(0.3).eval()(old, new).float().mean().item() == pytest.approx(0.3 * -1 + 0.7 * 2, rel=1e-2)
    for training in (True, False):
        assert torch.equal(zoneout(old, new, 0.0, training), new)
        assert torch.equal(zoneout(old, new, 1.0, training), old)


def test_zoneout_hands_the_gradient_to_where_the_value_came_from():
    old, new = torch.zeros(50, requires_grad=True), torch.ones(50, requires_grad=True)
    mixed = zoneout(old, new, 0.5)
    mixed.sum().backward()
    assert torch.equal(new.grad, mixed.detach()) and torch.equal(old.grad, 1 - mixed.detach())


def test_zoneout_and_nan():
    new = torch.full((4,), math.nan)
    assert (
        zoneout(torch.ones(4), new, 1.0).isfinite().all() and zoneout(torch.ones(4), new, 0.0).isnan().all()
    )
    assert zoneout(torch.ones(4), new, 0.5, training=False).isnan().all()
    assert zoneout(torch.zeros(0), torch.zeros(0), 0.5).shape == (0,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dim", [0, 1, -2])
def test_one_mask_for_all_steps(dim, dtype):
    drop, x = VariationalDropout(0.4, dim), torch.ones(40, 50, 60, dtype=dtype)
    y = drop(x)
    assert y.dtype == dtype and torch.equal(y, y.narrow(dim, 0, 1).expand_as(y))
    assert (y == 0).float().mean().item() == pytest.approx(0.4, abs=0.04)
    assert y.float().max().item() == pytest.approx(1 / 0.6, rel=1e-2)
    assert drop.eval()(x) is x and VariationalDropout(0.0)(x) is x


def test_dropout_keeps_a_nan_visible_and_empties_empty():
    drop = VariationalDropout(0.9)
    assert drop(torch.full((3, 2, 50), math.nan)).isnan().all()
    assert drop(torch.zeros(0, 2, 3)).shape == (0, 2, 3)


@pytest.mark.parametrize("module", [Zoneout(0.2), VariationalDropout(0.2, 1)], ids=repr)
def test_copies_and_compile(module):
    assert repr(copy.deepcopy(module)) == repr(pickle.loads(pickle.dumps(module))) == repr(module)
    torch._dynamo.reset()
    args = [torch.randn(3, 4, 5)] * (2 if isinstance(module, Zoneout) else 1)
    module.eval()
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*args), module(*args))
    module.train()
    assert compiled(*args).shape == (3, 4, 5)


@pytest.mark.parametrize("make", [nn.LSTM, nn.GRU, nn.LSTMCell, nn.GRUCell])
def test_chrono(make):
    settings = {} if "Cell" in make.__name__ else {"num_layers": 2, "bidirectional": True}
    module = make(3, 2000, **settings) if settings == {} else make(3, 200, **settings)
    before = {k: v.detach().clone() for k, v in module.named_parameters()}
    chrono_bias_(module, 50.0, torch.Generator().manual_seed(0))
    for name in [n for n in before if n.startswith("bias_ih")]:
        value, other = getattr(module, name).detach(), name.replace("_ih", "_hh")
        hidden = getattr(module, other).detach()
        gates = 4 if "LSTM" in make.__name__ else 3
        first, keeps, *rest = value.chunk(gates)
        assert 0 <= keeps.min() and keeps.max() <= math.log(49)
        assert keeps.exp().mean().item() == pytest.approx(25, rel=0.1)
        assert not hidden.chunk(gates)[1].any()
        size = len(keeps)
        if gates == 4:
            assert torch.equal(first, -keeps) and not hidden[:size].any()
        else:
            assert torch.equal(first, before[name][:size])
        assert torch.equal(torch.cat(rest), before[name][2 * size :])
        assert torch.equal(hidden[2 * size :], before[other][2 * size :])
    assert all(torch.equal(v, before[k]) for k, v in module.named_parameters() if "weight" in k)


@pytest.mark.parametrize("make", [nn.LSTM, nn.GRU])
def test_chrono_gives_the_memory_that_it_says(make):
    """Without input and with other weights at 0, the state decays by 1 - 1/T each step: to 1/e after T."""
    module = make(1, 500)
    with torch.no_grad():
        for p in module.parameters():
            p.zero_()
    chrono_bias_(module, 1000.0)
    start = torch.ones(1, 1, 500)
    state = (torch.zeros(1, 1, 500), start) if make is nn.LSTM else start
    _, after = module(torch.zeros(100, 1, 1), state)
    left = (after[1] if make is nn.LSTM else after).flatten()
    keeps = module.bias_ih_l0.detach()[500:1000]
    torch.testing.assert_close(left, torch.sigmoid(keeps) ** 100, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Zoneout(1.5), ValueError, "p must be a probability between 0 and 1, got 1.5"),
        (lambda: Zoneout("x"), ValueError, "got 'x'"),
        (lambda: zoneout(torch.zeros(3), torch.zeros(4), 0.5), ValueError, "one shape, got"),
        (lambda: VariationalDropout(1.0), ValueError, "p must be below 1"),
        (lambda: VariationalDropout(0.5, 3)(torch.zeros(2, 3)), ValueError, "no dimension 3"),
        (lambda: chrono_bias_(nn.RNN(2, 3), 10), TypeError, "got RNN, which has no gates"),
        (lambda: chrono_bias_(nn.Linear(2, 3), 10), TypeError, "got Linear"),
        (lambda: chrono_bias_(nn.LSTM(2, 3, bias=False), 10), ValueError, "build it with bias=True"),
        (lambda: chrono_bias_(nn.LSTM(2, 3), 2), ValueError, "t_max must be finite and above 2, got 2"),
        (lambda: chrono_bias_(nn.LSTM(2, 3), math.inf), ValueError, "t_max must be finite"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
