"""ResidualRecurrence: torch's call, the equation layer by layer, packed sequences and states."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence

from steadygrad.nn.residual import ResidualRecurrence

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")

CASES = {
    "lstm": lambda: nn.LSTM(4, 4, 3),
    "gru": lambda: nn.GRU(3, 4, 3, batch_first=True),
    "relu": lambda: nn.RNN(4, 4, 2, nonlinearity="relu", bias=False),
    "both": lambda: nn.LSTM(8, 4, 3, bidirectional=True),
    "projected": lambda: nn.LSTM(2, 4, 3, proj_size=2),
}


@pytest.fixture(params=CASES.values(), ids=CASES)
def rnn(request):
    torch.manual_seed(0)
    return request.param()


def inputs(rnn, *shape):
    return torch.randn(*shape, rnn.input_size)


def width(rnn):
    return (rnn.proj_size or rnn.hidden_size) * (2 if rnn.bidirectional else 1)


def test_the_call_is_that_of_torch(rnn):
    net = ResidualRecurrence(rnn)
    x = inputs(rnn, 5, 2)
    wanted, got = rnn(x), net(x)
    assert got[0].shape == wanted[0].shape
    again = net(x, got[1])
    states, shapes = ((s if isinstance(s, tuple) else (s,)) for s in (got[1], wanted[1]))
    assert [s.shape for s in states] == [s.shape for s in shapes]
    assert not torch.equal(again[0], got[0])


def test_frozen_weights_stay_frozen(rnn):
    rnn.requires_grad_(False)
    rnn.weight_hh_l1.requires_grad_(True)
    layers = ResidualRecurrence(rnn).layers
    trained = [i for i, layer in enumerate(layers) for p in layer.parameters() if p.requires_grad]
    assert trained == [1] and layers[1].weight_hh_l0.requires_grad


def test_the_equation(rnn):
    net = ResidualRecurrence(rnn)
    x = inputs(rnn, 5, 2)
    h = x
    for layer in net.layers:
        skips = h.shape[-1] == width(rnn)
        out = layer(F.layer_norm(h, h.shape[-1:]) if skips else h)[0]
        h = h + out if skips else out
    torch.testing.assert_close(net(x)[0], F.layer_norm(h, h.shape[-1:]))


def test_each_layer_has_the_weights_of_the_whole(rnn):
    net = ResidualRecurrence(rnn)
    for name, value in rnn.named_parameters():
        index = int(name.split("_l")[1].split("_")[0])
        own = net.layers[index].get_parameter(name.replace(f"_l{index}", "_l0"))
        assert torch.equal(own, value) and own is not value


def test_packed_sequences_are_those_alone(rnn):
    net = ResidualRecurrence(rnn)
    alone = [inputs(rnn, n) for n in (5, 3, 1)]
    out, state = net(pack_sequence(alone))
    padded, lengths = pad_packed_sequence(out)
    for i, x in enumerate(alone):
        single = net(x.unsqueeze(0 if rnn.batch_first else 1))
        torch.testing.assert_close(padded[: lengths[i], i], single[0].squeeze(0 if rnn.batch_first else 1))
        h, own = (s[0] if isinstance(s, tuple) else s for s in (state, single[1]))
        torch.testing.assert_close(h[:, i], own[:, 0])


def test_survives_copies_and_state(rnn):
    net = ResidualRecurrence(rnn)
    x = inputs(rnn, 4, 2)
    other = ResidualRecurrence(rnn)
    other.load_state_dict(net.state_dict())
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net)), other):
        twin.flatten_parameters()
        assert torch.equal(twin(x)[0], net(x)[0])


def test_dropout_is_on_in_training_only():
    net = ResidualRecurrence(nn.GRU(4, 4, 2, dropout=0.5))
    x = torch.randn(3, 2, 4)
    assert net.dropout == 0.5 and not torch.equal(net(x)[0], net(x)[0])
    net.eval()
    assert torch.equal(net(x)[0], net(x)[0])


def test_a_nan_stays_in_its_sequence_from_its_step_on():
    net = ResidualRecurrence(nn.LSTM(4, 4, 3))
    x = torch.randn(5, 2, 4)
    x[2, 0, 0] = float("nan")
    bad = net(x)[0].isnan().any(-1)
    assert bad.tolist() == [[False, False], [False, False], [True, False], [True, False], [True, False]]


def test_empty_batch():
    out, (h, c) = ResidualRecurrence(nn.LSTM(4, 4, 2))(torch.zeros(3, 0, 4))
    assert out.shape == (3, 0, 4) and h.shape == c.shape == (2, 0, 4)


def test_deep_gradients_hold():
    """40 layers: the first layer's gradient is within a factor of 100 of the last's; without skips it is not."""
    torch.manual_seed(0)
    rnn = nn.LSTM(16, 16, 40)
    x = torch.randn(6, 4, 16)

    def ratio(net, first, last):
        net.zero_grad()
        net(x)[0].square().mean().backward()
        return (first.grad.norm() / last.grad.norm()).item()

    net = ResidualRecurrence(rnn)
    assert 0.01 < ratio(net, net.layers[0].weight_ih_l0, net.layers[-1].weight_ih_l0) < 100
    assert ratio(rnn, rnn.weight_ih_l0, rnn.weight_ih_l39) < 1e-6


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: ResidualRecurrence(nn.Linear(2, 2)), TypeError, "got Linear"),
        (lambda: ResidualRecurrence(nn.LSTM(2, 2, 2), dropout=1.5), ValueError, "1.5"),
        (
            lambda: ResidualRecurrence(nn.GRU(2, 2, 2))(torch.zeros(1, 1, 2), torch.zeros(3, 1, 2)),
            ValueError,
            "3 layers",
        ),
    ],
)
def test_bad_input(make, error, words):
    with pytest.raises(error, match=words):
        make()
