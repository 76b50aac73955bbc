"""Recurrent batch norm: the paper's equations, a row of statistics for each step, padding that counts for nothing."""

import math

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence

from steadygrad.nn.norm import BatchNormLSTM
from tests.nn.norm import oracles
from tests.nn.norm.cases import output
from tests.nn.norm.test_conformance import bits


def drawn(seed=0, **settings):
    torch.manual_seed(seed)
    layer = BatchNormLSTM(3, 4, dtype=torch.float64, **settings)
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(0.1 * torch.randn(p.shape))
    return layer


def sequences(*lengths, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, 3, generator=generator).double() for n in lengths]


@pytest.mark.parametrize("momentum", [0.1, 1.0])
def test_training_is_the_papers(momentum):
    layer = drawn(max_length=5, momentum=momentum)
    p, inputs = oracles.arrays(layer), sequences(5, 5, 5, 5)
    y, _ = layer(torch.stack(inputs, 1))
    want, statistics = oracles.batch_norm_lstm(p, [s.numpy() for s in inputs], "_l0", 1e-5)
    np.testing.assert_allclose(y.detach().numpy(), np.stack(want, 1), rtol=1e-9)
    for t, found in enumerate(statistics):
        for site, (mean, var) in found.items():
            got_mean = getattr(layer, f"running_mean_{site}_l0")[t].numpy()
            got_var = getattr(layer, f"running_var_{site}_l0")[t].numpy()
            np.testing.assert_allclose(got_mean, momentum * mean, rtol=1e-9, atol=1e-12)
            np.testing.assert_allclose(got_var, 1 - momentum + momentum * var, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("backward", [False, True])
def test_padding_enters_no_statistics(backward):
    """Lengths 5, 3, 2, 3, 2 against the twin, which never sees a padded step; the backward way on turned sequences."""
    inputs = sequences(5, 3, 2, 3, 5)
    layer = drawn(max_length=5, momentum=1.0, bidirectional=True)
    p, suffix = oracles.arrays(layer), "_l0_reverse" if backward else "_l0"
    y, lengths = pad_packed_sequence(layer(pack_sequence(inputs, enforce_sorted=False))[0])
    assert lengths.tolist() == [5, 3, 2, 3, 5]
    given = [s.flip(0).numpy() if backward else s.numpy() for s in inputs]
    want, statistics = oracles.batch_norm_lstm(p, given, suffix, 1e-5)
    for b, expected in enumerate(want):
        got = y[: len(expected), b].detach().numpy()
        got = got[::-1, 4:] if backward else got[:, :4]
        np.testing.assert_allclose(got, expected, rtol=1e-9)
    for t, found in enumerate(statistics):
        for site, (mean, var) in found.items():
            buffers = (getattr(layer, f"running_{kind}_{site}{suffix}")[t] for kind in ("mean", "var"))
            for got, expected in zip(buffers, (mean, var), strict=True):
                np.testing.assert_allclose(got.numpy(), expected, rtol=1e-9, atol=1e-12)


def test_a_step_with_one_sequence_left_takes_the_running_statistics_and_teaches_none():
    layer = drawn(max_length=6)
    for seed in range(3):
        layer(torch.stack(sequences(4, 4, 4, seed=seed), 1))
    before = bits(layer)
    layer(pack_sequence(sequences(6, 2, 2)))
    assert layer.num_batches_tracked.tolist() == [4, 4, 3, 3, 0, 0]
    for name, buffer in layer.named_buffers():
        if name.startswith("running"):
            assert buffer[2:].numpy().tobytes() in before[name][2]
    plain = drawn(max_length=6)
    plain.load_state_dict(layer.state_dict())
    x = pack_sequence(sequences(3, 1, 1))
    tail = layer(x)[0].data[-1]
    assert tail.isfinite().all()


def test_evaluation_takes_the_last_trained_step_beyond_the_trained_ones():
    """Rows of the buffers that no batch has reached, and steps beyond the last row, are the last trained row."""
    inputs = torch.stack(sequences(7, 7, 7), 1)
    short = drawn(max_length=4)
    long = drawn(max_length=9)
    for seed in range(3):
        for layer in (short, long):
            layer(torch.stack(sequences(3, 3, 3, seed=seed), 1))
    assert long.num_batches_tracked.tolist() == [3] * 3 + [0] * 6
    same = drawn(max_length=7).eval()
    rows = torch.tensor([0, 1, 2, 2, 2, 2, 2])
    state = {n: t[rows] if "running" in n else t for n, t in long.state_dict().items()}
    same.load_state_dict({**state, "num_batches_tracked": torch.ones(7, dtype=torch.long)})
    want = output(same(inputs))
    torch.testing.assert_close(output(long.eval()(inputs)), want, rtol=1e-12, atol=0)
    torch.testing.assert_close(output(short.eval()(inputs)), want, rtol=1e-12, atol=0)


def test_training_beyond_max_length_normalises_with_the_batch():
    long, short = drawn(max_length=6), drawn(max_length=2)
    inputs = torch.stack(sequences(6, 6, 6), 1)
    torch.testing.assert_close(output(long(inputs)), output(short(inputs)), rtol=0, atol=0)
    assert short.num_batches_tracked.tolist() == [1, 1]
    assert torch.equal(short.running_var_hh_l0, long.running_var_hh_l0[:2])


def test_momentum_none_is_the_plain_average():
    layer = drawn(max_length=3, momentum=None)
    p, seen = oracles.arrays(layer), []
    for seed in range(4):
        inputs = sequences(3, 3, 3, seed=seed)
        layer(torch.stack(inputs, 1))
        seen.append(oracles.batch_norm_lstm(p, [s.numpy() for s in inputs], "_l0", 1e-5)[1])
    for t in range(3):
        mean = sum(found[t]["c"][0] for found in seen) / 4
        np.testing.assert_allclose(layer.running_mean_c_l0[t].numpy(), mean, rtol=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_nan_in_the_last_step_of_the_last_layer_leaves_all_statistics(bad):
    layer = drawn(max_length=5, num_layers=2, bidirectional=True)
    layer(torch.stack(sequences(5, 5, 5), 1))
    before = bits(layer)
    x = torch.stack(sequences(5, 5, 5, seed=2), 1)
    x[4, 1, 0] = bad
    assert not output(layer(x)).isfinite().all()
    assert bits(layer) == before
    weight = layer.weight_hh_l1_reverse.data.clone()
    layer.weight_hh_l1_reverse.data[0, 0] = bad
    layer(torch.stack(sequences(5, 5, 5, seed=2), 1))
    layer.weight_hh_l1_reverse.data.copy_(weight)
    assert bits(layer) == before


def test_gains_start_small_and_gradients_are_right():
    layer = BatchNormLSTM(3, 4, max_length=3, num_layers=2, dtype=torch.float64)
    gains = {n: p for n, p in layer.named_parameters() if n.startswith("norm_weight")}
    assert len(gains) == 6 and all((p == 0.1).all() for p in gains.values())
    layer = drawn(max_length=3, bidirectional=True)
    x = torch.stack(sequences(3, 3, 3), 1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: output(layer(x)), (x,))
    layer.eval()
    assert torch.autograd.gradcheck(lambda x: output(layer(x)), (x,))


def test_sequences_that_begin_alike_need_a_noisy_first_state():
    x = torch.cat((torch.zeros(40, 16, 3), torch.randn(5, 16, 3)))
    finite = []
    for noise in (0.0, 0.1):
        lstm = BatchNormLSTM(3, 8, max_length=45)
        state = noise * torch.randn(1, 16, 8), torch.zeros(1, 16, 8)
        lstm(x, state)[1][0].square().sum().backward()
        finite.append(all(bool(p.grad.isfinite().all()) for p in lstm.parameters()))
    assert finite == [False, True]


def test_one_sequence_in_training_is_refused():
    layer = BatchNormLSTM(3, 4, max_length=3)
    for x in (torch.randn(3, 1, 3), torch.randn(3, 3)):
        with pytest.raises(ValueError, match="one sequence has no batch statistics.*LayerNormLSTM"):
            layer(x)
        assert output(layer.eval()(x)).isfinite().all()
        layer.train()
    assert layer.num_batches_tracked.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_length": 0}, "max_length must be at least 1, got 0"),
        ({"max_length": 3, "momentum": 1.5}, "momentum must be between 0 and 1.*got 1.5"),
        ({"max_length": 3, "gain_init": math.nan}, "gain_init must be finite, got nan"),
        ({"max_length": 3, "eps": -1.0}, "eps must be positive and finite, got -1.0"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        BatchNormLSTM(3, 4, **settings)


def test_reset_running_stats_forgets_and_keeps_the_weights():
    layer = drawn(max_length=3)
    fresh = bits(layer)
    layer(torch.stack(sequences(3, 3, 3), 1))
    assert bits(layer) != fresh
    layer.reset_running_stats()
    assert bits(layer) == fresh
