"""torch's own recurrent and Transformer layers: what is changed in them, what is kept, and the way back."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from steadygrad.nn.residual import ResidualRecurrence
from steadygrad.recipes import layers
from steadygrad.recipes.edits import Edits


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(4, 4, 2)
        self.again = self.rnn

    def forward(self, x):
        return self.again(self.rnn(x)[0])[0]


def test_norms_first_and_a_last_norm():
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    todo = Edits(model)
    layers.norm_first(todo)
    wanted = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, norm_first=True),
        2,
        nn.LayerNorm(8),
        enable_nested_tensor=False,
    )
    wanted.load_state_dict(model.state_dict())
    x = torch.randn(3, 2, 8)
    torch.testing.assert_close(model(x), wanted(x))
    todo.undo()
    assert model.norm is None and not model.layers[0].norm_first


def test_a_recurrent_net_in_two_places_stays_one():
    model = Recurrent()
    old = model.rnn
    todo = Edits(model)
    layers.add_recurrent_residuals(todo, None)
    assert model.again is model.rnn and isinstance(model.rnn, ResidualRecurrence)
    todo.undo()
    assert model.again is model.rnn is old


def test_a_compiled_recurrent_net_stays():
    model = nn.ModuleDict({"rnn": torch.compile(nn.GRU(4, 4, 2), backend="eager")})
    todo = Edits(model)
    layers.add_recurrent_residuals(todo, None)
    assert todo.changes == ["rnn._orig_mod: kept (compiled)"]


@pytest.mark.parametrize("why", ["frozen", "hooked", "tied"])
def test_recurrent_nets_that_stay(why):
    model = Recurrent()
    rnn = model.rnn
    if why == "frozen":
        rnn.weight_hh_l0.requires_grad_(False)
    elif why == "hooked":
        rnn.register_forward_hook(lambda *_: None)
    else:
        rnn.weight_hh_l1 = rnn.weight_hh_l0
    todo = Edits(model)
    layers.add_recurrent_residuals(todo, None)
    assert model.rnn is rnn and todo.changes == [f"rnn: kept ({why})"]


def test_frozen_and_own_transformer_layers_stay():
    class OwnLayer(nn.TransformerEncoderLayer):
        pass

    model = nn.ModuleList(
        [
            nn.TransformerEncoder(kind(8, 2, 16, batch_first=True), 2)
            for kind in (nn.TransformerEncoderLayer, OwnLayer)
        ]
    )
    model[0].layers[0].requires_grad_(False)
    todo = Edits(model)
    layers.norm_first(todo)
    assert [layer.norm_first for stack in model for layer in stack.layers] == [False, True, False, False]
    assert model[0].norm is not None and model[1].norm is None
    assert todo.changes[:2] == [
        "1 Transformer layers put their norms first",
        "1 Transformer layers kept (frozen)",
    ]


def test_the_norm_of_a_stack_is_fresh_and_without_hooks():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.TransformerEncoder(layer, 2).double().eval()
    norm = model.layers[1].norm1
    norm.weight.data.fill_(3.0)
    norm.register_forward_hook(lambda *_: pytest.fail("a copy of the hook ran"))
    layers.norm_first(Edits(model))
    assert model.norm.weight.tolist() == [1.0] * 8 and not model.norm.training
    model.norm(torch.zeros(1, 8).double())


def test_no_nested_tensors_behind_norms_that_come_first():
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True), 2)
    todo = Edits(model)
    layers.norm_first(todo)
    assert not model.use_nested_tensor
    todo.undo()
    assert model.use_nested_tensor and model.norm is None
