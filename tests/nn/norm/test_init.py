"""The recurrent initialisations reach the layers with norms."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from steadygrad.init import forget_bias_, identity_recurrent_, initialise, orthogonal_recurrent_
from steadygrad.nn.norm import BatchNormLSTM, LayerNormGRU, LayerNormLSTM


@pytest.mark.parametrize(
    ("kind", "gates"), [(LayerNormLSTM, 4), (LayerNormGRU, 3), (partial(BatchNormLSTM, max_length=5), 4)]
)
def test_gates_are_orthogonal_and_the_identity(kind, gates):
    layer = kind(3, 6)
    orthogonal_recurrent_(layer)
    for block in layer.weight_hh_l0.detach().chunk(gates):
        torch.testing.assert_close(block @ block.T, torch.eye(6))
    identity_recurrent_(layer)
    assert torch.equal(layer.weight_hh_l0.detach(), torch.eye(6).repeat(gates, 1))


def test_forget_gate_opens():
    layer = LayerNormLSTM(3, 4)
    forget_bias_(layer, 2.0)
    assert torch.equal((layer.bias_ih_l0 + layer.bias_hh_l0)[4:8], torch.full((4,), 2.0))
    with pytest.raises(TypeError, match="LayerNormGRU"):
        forget_bias_(LayerNormGRU(3, 4))  # type: ignore[arg-type]


def test_initialise_knows_what_follows_their_weights():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = LayerNormLSTM(3, 8, batch_first=True), nn.Linear(8, 2)

        def forward(self, x):
            return self.head(self.rnn(x)[0][:, -1])

    net = Net()
    report = initialise(net, torch.randn(2, 4, 3))
    assert {row.weight for row in report.rows} >= {"rnn.weight_ih_l0", "rnn.weight_hh_l0", "head.weight"}
