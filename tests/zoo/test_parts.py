"""What families are built from, against formulas."""

import math
from functools import partial

import pytest
import torch
from torch import nn

from benchmarks.zoo import parts


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Identity])
def test_critical_gain_keeps_the_size_of_signals(activation):
    """On average over draws; with gain 1 the ReLU net would lose a factor e^4.9 over these seven layers."""
    growth = []
    for seed in range(10):
        torch.manual_seed(seed)
        model = parts.MLP(128, 128, 8, 4, activation)
        sizes: list[float] = []
        for block in model.blocks:
            block.linear.register_forward_hook(
                lambda m, i, o, s=sizes: s.append(float(o.detach().square().mean()))
            )
        model(torch.randn(256, 128))
        growth.append(math.log(sizes[-1] / sizes[0]))
    assert abs(sum(growth) / 10) < 0.5


@pytest.mark.parametrize("net", [partial(parts.MLP, 64, 16, 3, 10), partial(parts.CNN, 4, 3)])
def test_gain_scales_the_same_weights(net):
    torch.manual_seed(0)
    one = net(gain=1.0)
    torch.manual_seed(0)
    three = net(gain=3.0)
    for (name, a), b in zip(one.named_parameters(), three.parameters(), strict=True):
        assert torch.allclose(b, (3 if "blocks" in name else 1) * a), name


def test_residual_blocks_that_add_nothing_are_the_identity():
    shallow, deep = parts.MLP(8, 8, 0, 3), parts.MLP(8, 8, 5, 3, norm=nn.LayerNorm, residual=True, gain=0.0)
    deep.load_state_dict(shallow.state_dict(), strict=False)
    x = torch.randn(4, 8)
    assert torch.equal(shallow(x), deep(x))


def test_attention_does_not_look_ahead():
    model = parts.TransformerLM(norm="post")
    x = torch.randint(0, 16, (3, 16))
    changed = x.clone()
    changed[:, 9] = (changed[:, 9] + 1) % 16
    before, after = model(x), model(changed)
    assert torch.allclose(before[:, :9], after[:, :9])
    assert not torch.allclose(before[:, 9], after[:, 9])


def test_attention_is_torchs_own():
    attention = parts.Attention(16, 4)
    x = torch.randn(2, 7, 16)
    q, k, v = (layer(x).view(2, 7, 4, 4).transpose(1, 2) for layer in (attention.q, attention.k, attention.v))
    expected = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    expected = attention.out(expected.transpose(1, 2).reshape(2, 7, 16))
    assert torch.allclose(attention(x), expected, atol=1e-6)


def test_recurrent_matrices_are_orthogonal_times_gain():
    model = parts.Recurrent(2, 8, 1, nn.LSTM, gain=1.5)
    for gate in model.rnn.weight_hh_l0.split(8):
        assert torch.allclose(gate @ gate.T, 1.5**2 * torch.eye(8), atol=1e-5)
    x = torch.randn(3, 5, 2)
    assert model(x).shape == (3, 1)
    assert parts.Recurrent(2, 8, 1, nn.GRU, every_step=True)(x).shape == (3, 5, 1)


def test_digits_are_scaled_and_raw_ones_are_not():
    x = parts.digits().train_x
    assert x.mean(0).abs().max() < 1e-4 and 0.5 < x.std(0).max() <= 1
    assert parts.raw_digits().train_x.min() == 0 and parts.raw_digits().train_x.max() == 255
    assert torch.equal(parts.digits().test_y, parts.raw_digits().test_y)


def test_standardised_columns():
    data = parts.Data(
        torch.tensor([[1.0, 5], [3, 5]]), torch.zeros(2), torch.tensor([[2.0, 5]]), torch.zeros(1)
    )
    scaled = parts.standardised(data)
    half = math.sqrt(0.5)
    assert torch.allclose(scaled.train_x, torch.tensor([[-half, 0], [half, 0]]))
    assert torch.allclose(scaled.test_x, torch.zeros(1, 2))


def test_tokens_follow_a_permutation():
    data = parts.tokens(3, length=12, lag=2, noise=0.0)
    following: dict[int, set[int]] = {}
    for row in torch.cat([data.train_x, data.train_y[:, -1:]], 1).tolist():
        for a, b in zip(row, row[2:], strict=False):
            following.setdefault(a, set()).add(b)
    assert sorted(b for (b,) in following.values()) == list(range(16))
    assert torch.equal(data.train_x[:, 1:], data.train_y[:, :-1])


def test_sums_of_series():
    data = parts.adding(0, 10)
    values, marks = data.test_x.unbind(-1)
    assert (marks.sum(1) == 2).all() and torch.allclose((values * marks).sum(1), data.test_y[:, 0])
    recent = parts.recent_sum(0, 9)
    by_hand = sum(w * recent.test_x[:, 4 + k, 0] for k, w in enumerate([1.0, 0.825, 0.65, 0.475, 0.3]))
    assert torch.allclose(by_hand, recent.test_y[:, 0], atol=1e-6)


class Constant(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, x):
        return self.value.expand(len(x), *self.value.shape)


def test_scores_of_trivial_predictors():
    data = parts.regression(0, outputs=2).map(y=lambda y: y * torch.tensor([1.0, 1000.0]))
    mean = Constant(data.test_y.mean(0))
    n = len(data.test_y)
    assert parts.unexplained(mean, data)() == pytest.approx((n - 1) / n)
    lm = parts.tokens(0)
    assert parts.eval_loss(Constant(torch.zeros(16, 16)), parts.cross_entropy, lm)() == pytest.approx(
        math.log(16)
    )
    three = Constant(torch.nn.functional.one_hot(torch.tensor(3), 10).float())
    assert parts.eval_error(three, parts.digits())() == pytest.approx(
        1 - float((parts.digits().test_y == 3).float().mean())
    )
    assert parts.eval_error(Constant(torch.full((10,), math.nan)), parts.digits())() == 1


def test_a_change_spoils_its_batch_only():
    data = parts.digits()
    before = data.train_x.clone()

    def change(i, x, y):
        if i == 4:
            x[:] = math.nan
        return x, y

    batch = data.batches(0, 8, change)
    assert batch(4)[0].isnan().all()
    assert torch.equal(data.train_x, before)
    assert torch.equal(batch(3)[0], data.batches(0, 8)(3)[0])


def test_draws_stay_in_their_range():
    import numpy as np

    random = np.random.RandomState(0)
    assert {parts.integer(random, 2, 4) for _ in range(100)} == {2, 3, 4}
    logs = [math.log10(parts.log_uniform(random, 1, 1e4)) for _ in range(2000)]
    assert 0 <= min(logs) and max(logs) <= 4 and sum(logs) / 2000 == pytest.approx(2, abs=0.1)
