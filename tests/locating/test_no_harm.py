"""The locator changes no bit, leaves nothing behind, and lets the user's errors through."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules import module as torch_module
from torch.optim import optimizer as torch_optimizer
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from steadygrad.locating import Locator, capture_stacks
from tests.locating.nets import TRAININGS


@pytest.mark.parametrize("training", TRAININGS, ids=lambda f: f.__name__)
def test_same_numbers_bit_for_bit(training):
    torch.manual_seed(7)
    plain = training()
    torch.manual_seed(7)
    with Locator() as locator:
        watched = training()
    assert locator.notes == []
    assert locator.first is None
    assert len(plain) == len(watched)
    assert all(torch.equal(a, b) for a, b in zip(plain, watched, strict=True))


@pytest.mark.parametrize("training", TRAININGS[:3], ids=lambda f: f.__name__)
def test_stacks_change_no_number(training):
    torch.manual_seed(7)
    plain = training()
    torch.manual_seed(7)
    with capture_stacks():
        kept = training()
    assert all(torch.equal(a, b) for a, b in zip(plain, kept, strict=True))


def global_state():
    return (
        torch.is_anomaly_enabled(),
        torch.is_anomaly_check_nan_enabled(),
        len(_get_current_dispatch_mode_stack()),
        len(torch_module._global_forward_pre_hooks),
        len(torch_module._global_forward_hooks),
        len(torch_module._global_forward_hooks_always_called),
        len(torch_optimizer._global_optimizer_post_hooks),
    )


def test_nothing_is_left_behind():
    before = global_state()
    with Locator():
        assert global_state() != before
    assert global_state() == before


def test_user_errors_pass_through_and_nothing_is_left_behind():
    before = global_state()
    model = nn.Linear(2, 3)
    with pytest.raises(IndexError, match="out of bounds"):
        with Locator([model]):
            F.cross_entropy(model(torch.ones(2, 2)), torch.tensor([0, 9])).backward()
    assert global_state() == before


def test_batch_norm_of_one_sample_raises_as_without():
    with pytest.raises(ValueError, match="more than 1 value"):
        with Locator():
            nn.BatchNorm1d(3)(torch.ones(1, 3))


def test_anomaly_mode_of_the_user_stays_as_it_is():
    with torch.autograd.set_detect_anomaly(True, check_nan=True):
        with Locator():
            assert torch.is_anomaly_check_nan_enabled()
        assert torch.is_anomaly_enabled()


def test_an_error_of_ours_ends_the_watching_only(monkeypatch):
    locator = Locator()
    monkeypatch.setattr(locator._judge, "origin", None)  # not callable any more
    x = torch.tensor([0.0], requires_grad=True)
    with locator:
        loss = x.log().sum()
        loss.backward()
    assert loss.item() == -torch.inf
    assert locator.first is None
    assert [note for note in locator.notes if "given up" in note]


def test_tensors_are_let_go():
    gc.disable()
    try:
        with Locator() as locator:
            model = nn.Linear(3, 3)
            hidden = model(torch.full((2, 3), torch.inf))
            hidden.sum().backward()
            seen = weakref.ref(hidden)
            del hidden
            assert seen() is None
        kept = weakref.ref(model)
        del model
        gc.collect()
        assert kept() is None
        assert locator.first is not None
    finally:
        gc.enable()


def test_it_is_entered_once():
    locator = Locator()
    with locator:
        pass
    with pytest.raises(RuntimeError, match="make another one"), locator:
        pass
