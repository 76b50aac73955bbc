"""What a weight must be before it becomes a computed one: used in one place, and no computed one yet."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import nn

from steadygrad.nn.norm import _ties, sigma_reparam, weight_standardisation

REPARAMETRISATIONS = (sigma_reparam, weight_standardisation)
over = pytest.mark.parametrize("put", REPARAMETRISATIONS, ids=lambda f: f.__name__)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wte = nn.Embedding(7, 4)
        self.block = nn.Linear(4, 4)
        self.lm_head = nn.Linear(4, 7, bias=False)
        self.lm_head.weight = self.wte.weight

    def forward(self, ids):
        return self.lm_head(self.block(self.wte(ids)))


@pytest.mark.parametrize("first", REPARAMETRISATIONS, ids=lambda f: f.__name__)
@over
def test_a_second_time_is_refused(put, first):
    layer = first(nn.Linear(5, 4))
    held, weight = list(layer.state_dict()), layer.weight.detach().clone()
    with pytest.raises(ValueError, match="'weight' has a parametrization already: remove it with"):
        put(layer.eval())
    assert list(layer.state_dict()) == held and len(layer.parametrizations.weight) == 1
    assert torch.equal(layer.weight, weight)


@over
def test_a_frozen_layer_stays_frozen(put):
    layer = put(nn.Linear(5, 4).requires_grad_(False))
    assert [n for n, p in layer.named_parameters() if p.requires_grad] == []
    assert not layer(torch.randn(2, 5)).requires_grad
    layer = nn.Linear(5, 4)
    layer.weight.requires_grad_(False)
    assert [n for n, p in put(layer).named_parameters() if p.requires_grad] == ["bias"]
    assert all(p.requires_grad for p in put(nn.Linear(5, 4)).parameters())


def test_tied_weights_are_refused_by_both_places():
    model = Tied()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)  # holds the weights, and is no place of them
    model(torch.tensor([1, 2])).sum().backward()
    before = list(model.state_dict())
    for layer in (model.lm_head, model.wte):
        with pytest.raises(
            ValueError, match=r"^lm_head.weight and wte.weight are one tied parameter.*Leave this"
        ):
            sigma_reparam(layer)
    assert list(model.state_dict()) == before and model.lm_head.weight is model.wte.weight
    sigma_reparam(model.block)
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())  # the way the message names
    sigma_reparam(model.lm_head)
    model(torch.tensor([1, 2])).sum().backward()
    assert len(optimizer.param_groups[0]["params"]) == 3


def test_every_layer_of_a_tied_model_in_a_loop():
    """As the paper has it, over all linear layers: the tie is met in the middle."""
    model = Tied()
    with pytest.raises(ValueError, match="lm_head.weight and wte.weight"):
        for layer in model.modules():
            if isinstance(layer, nn.Linear):
                weight_standardisation(layer)
    assert model.lm_head.weight is model.wte.weight


def test_tied_layers_that_are_in_no_model_are_named_by_their_types():
    embedding, head = nn.Embedding(7, 4), nn.Linear(4, 7)
    head.weight = embedding.weight
    with pytest.raises(ValueError, match="are one tied parameter") as caught:
        sigma_reparam(head)
    assert "Embedding.weight" in str(caught.value) and "Linear.weight" in str(caught.value)


def test_what_only_looks_tied_is_not():
    """One module in two places is one module; a list of parameters is no module; a model that is gone ties nothing."""
    shared = nn.Linear(4, 4)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    listed = list(model.parameters())
    sigma_reparam(shared)
    assert model[0].weight.requires_grad and len(listed) == 2
    gone = Tied()
    gone.itself = [gone]  # a cycle: only the collector ends it
    head = gone.lm_head
    gc.disable()
    try:
        del gone
        sigma_reparam(head)
    finally:
        gc.enable()


def test_a_weight_that_nobody_else_holds_needs_no_search(monkeypatch):
    searched = []
    monkeypatch.setattr(_ties, "_places", lambda p: searched.append(id(p)) or [])
    layer = nn.Linear(5, 4)
    layer(torch.randn(2, 5)).sum().backward()
    sigma_reparam(layer)
    _ties.check_alone(nn.LSTM(3, 4), ["weight_hh_l0"])
    assert searched == []
    held = nn.Linear(5, 4)
    torch.optim.SGD(held.parameters(), lr=0.1), (weight := held.weight)
    sigma_reparam(held)
    assert searched == [id(weight)]
