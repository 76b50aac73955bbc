import pytest
import torch
from torch import nn

from steadygrad.repair.effects.change import Change
from steadygrad.repair.effects.effect import NotApplicable
from steadygrad.repair.effects.train_mode import TrainMode
from steadygrad.repair.prescription import Prescription


@pytest.fixture
def change():
    change = Change({"train_mode": 1})
    change.install()
    yield change
    change.remove()


def test_only_passes_with_gradients_of_models_that_are_trained(change: Change) -> None:
    model, teacher = (nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout(0.5)) for _ in range(2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    change.optimizer_built(optimizer)
    seen = []
    for each in (model, teacher):
        each.eval()
        each[1].register_forward_hook(lambda module, args, out: seen.append(module.training))
    x = torch.randn(8, 2)
    model(x)
    with torch.no_grad():
        model(x)
    teacher(x)
    assert seen == [True, False, False]
    assert not any(m.training for m in model.modules())


def test_parts_that_were_frozen_by_choice_stay_frozen(change: Change) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    change.optimizer_built(optimizer)
    model[1].eval()
    model(torch.randn(8, 2))
    assert int(model[1].num_batches_tracked) == 0


def test_modes_are_given_back_after_an_error(change: Change) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    change.optimizer_built(optimizer)
    model.eval()
    with pytest.raises(RuntimeError):
        model(torch.randn(8, 3))
    assert not any(m.training for m in model.modules())
    model(torch.randn(8, 2))
    assert int(model[1].num_batches_tracked) == 1


def test_values_that_mean_nothing() -> None:
    with pytest.raises(NotApplicable):
        TrainMode(0.5)


def test_a_compiled_model_runs_plainly_under_it() -> None:
    assert Prescription({"train_mode": 1}).eager  # in whose graph dynamo would trace the hooks, and fail
