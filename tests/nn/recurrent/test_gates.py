"""What is common to the constraints on torch's recurrent weights: frozen weights, tied ones, and a second time."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from steadygrad.nn.recurrent import bound_recurrent_spectral_norm, orthogonal_recurrence

CONSTRAINTS = (orthogonal_recurrence, bound_recurrent_spectral_norm)
over = pytest.mark.parametrize("constrain", CONSTRAINTS, ids=lambda f: f.__name__)


@over
def test_frozen_weights_stay_frozen(constrain):
    module = constrain(nn.LSTM(3, 4, num_layers=2).requires_grad_(False))
    assert [n for n, p in module.named_parameters() if p.requires_grad] == []
    assert not module(torch.randn(5, 2, 3))[0].requires_grad
    half = nn.GRU(3, 4)
    half.weight_hh_l0.requires_grad_(False)
    frozen = [n for n, p in constrain(half).named_parameters() if not p.requires_grad]
    assert frozen == ["parametrizations.weight_hh_l0.original"]


@over
def test_tied_weights_are_refused(constrain):
    model = nn.ModuleDict({"encoder": nn.GRU(3, 4), "decoder": nn.GRU(3, 4, num_layers=2)})
    model["decoder"].weight_hh_l1 = model["encoder"].weight_hh_l0
    for name in ("encoder", "decoder"):
        with pytest.raises(ValueError, match="decoder.weight_hh_l1 and encoder.weight_hh_l0 are one tied"):
            constrain(model[name])
        assert type(model[name]) is nn.GRU
    model["decoder"].weight_hh_l1 = nn.Parameter(model["decoder"].weight_hh_l1.detach().clone())
    constrain(model["encoder"])
    constrain(model["decoder"])


@pytest.mark.parametrize("first", CONSTRAINTS, ids=lambda f: f.__name__)
@over
def test_a_second_constraint_is_refused(constrain, first):
    module = first(nn.RNN(3, 4))
    before = list(module.state_dict())
    with pytest.raises(ValueError, match="'weight_hh_l0' has a parametrization already: remove it with"):
        constrain(module)
    assert list(module.state_dict()) == before and len(module.parametrizations.weight_hh_l0) == 1
