import copy
import io

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steadygrad.repair.effects.change import Change
from steadygrad.repair.effects.effect import NotApplicable
from steadygrad.repair.effects.inputs import Scaler, StandardiseInputs

MEAN, STD = [1.0, -50.0, 3.0], [2.0, 400.0, 0.5]
PLAN = {"standardise_inputs": {"modules": {"enc.0": {"mean": MEAN, "std": STD, "axis": -1}}}}


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enc = nn.Sequential(nn.Linear(3, 4), nn.Tanh())
        self.dec = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.dec(self.enc(x))


class Patched(Model):
    """What the plan means in the code."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward((x - torch.tensor(MEAN)) / torch.tensor(STD))


@pytest.fixture
def in_force():
    changes = []

    def put(plan: dict) -> Change:
        changes.append(Change(plan))
        changes[-1].install()
        return changes[-1]

    yield put
    for change in changes:
        change.remove()


def train(kind: type[Model], change: Change | None = None) -> tuple[list[float], Model]:
    torch.manual_seed(0)
    model = kind()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    if change is not None:
        change.optimizer_built(optimizer)
    losses = []
    for _ in range(6):
        x = torch.randn(8, 3) * torch.tensor(STD) + torch.tensor(MEAN)
        loss = F.mse_loss(model(x), x.sign())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, model


def test_the_same_bits_as_a_patched_script(in_force) -> None:
    patched, _ = train(Patched)
    changed, _ = train(Model, in_force(PLAN))
    assert changed == patched


def test_in_force_in_evaluation_in_parts_and_in_copies_and_then_gone(in_force) -> None:
    change = in_force(PLAN)
    _, model = train(Model, change)
    x = torch.randn(4, 3)
    scaled = (x - torch.tensor(MEAN)) / torch.tensor(STD)
    expected = torch.tanh(F.linear(scaled, model.enc[0].weight, model.enc[0].bias))
    model.eval()
    saved = io.BytesIO()
    torch.save(model, saved)
    saved.seek(0)
    loaded = torch.load(saved, weights_only=False)
    with torch.no_grad():
        for each in (model, copy.deepcopy(model), loaded):
            assert torch.equal(each.enc(x), expected)
        change.remove()
        assert not torch.equal(model.enc(x), expected)
    assert "_steadygrad_inputs" not in model.enc[0].__dict__


def test_a_model_of_one_layer_from_its_first_call(in_force) -> None:
    change = in_force({"standardise_inputs": {"modules": {"": {"mean": 1.0, "std": 2.0}}}})
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    change.optimizer_built(optimizer)
    x = torch.randn(4, 3)
    assert torch.equal(model(x), F.linear((x - 1) / 2, model.weight, model.bias))


def test_channels(in_force) -> None:
    spec = {"mean": [1.0, 2.0], "std": [3.0, 4.0], "axis": 1}
    change = in_force({"standardise_inputs": {"modules": {"0": spec}}})
    model = nn.Sequential(nn.Conv2d(2, 1, 1), nn.Flatten())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    change.optimizer_built(optimizer)
    x = torch.randn(2, 2, 3, 3)
    scaled = (x - torch.tensor([1.0, 2.0]).view(2, 1, 1)) / torch.tensor([3.0, 4.0]).view(2, 1, 1)
    assert torch.equal(model(x), F.conv2d(scaled, model[0].weight, model[0].bias).flatten(1))


def test_attention_gets_the_same_thing_three_times(in_force) -> None:
    change = in_force({"standardise_inputs": {"modules": {"": {"mean": 5.0, "std": 2.0}}}})
    layer = nn.MultiheadAttention(4, 2, batch_first=True)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    change.optimizer_built(optimizer)
    x = torch.randn(2, 3, 4)
    out = layer(x, x, x)[0]
    change.remove()
    scaled = (x - 5) / 2
    assert torch.equal(out, layer(scaled, scaled, scaled)[0])


def test_other_widths_integers_and_nan_pass() -> None:
    effect = StandardiseInputs(PLAN["standardise_inputs"])
    effect.install()
    try:
        layer = nn.Linear(5, 1)
        from steadygrad.repair.effects.effect import Models

        effect.models(Models((layer,), {"enc.0": layer}))
        x = torch.randn(2, 5)
        assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))
        assert bool(layer(torch.full((2, 5), torch.nan)).isnan().all())
    finally:
        effect.remove()


@pytest.mark.parametrize(
    "value",
    [
        2.0,
        {"modules": {}},
        {"modules": {"a": {"mean": [1.0, 2.0], "std": [1.0]}}},
        {"modules": {"a": {"mean": 0.0, "std": 0.0}}},
        {"modules": {"a": {"mean": float("nan"), "std": 1.0}}},
    ],
)
def test_values_that_mean_nothing(value: object) -> None:
    with pytest.raises(NotApplicable):
        StandardiseInputs(value)


def test_a_module_that_is_not_there(in_force) -> None:
    change = in_force({"standardise_inputs": {"modules": {"no.such": {"mean": 0.0, "std": 1.0}}}})
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    change.optimizer_built(optimizer)
    with pytest.raises(NotApplicable, match=r"no\.such"):
        model(torch.randn(1, 2))


def test_learned_from_the_first_calls(in_force) -> None:
    in_force({"standardise_inputs": 1.0})
    model = Model()
    x = torch.randn(64, 3) * 100 + 300
    seen = []
    model.enc[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model.dec.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model(x)
    assert seen[0].mean().abs() < 1e-4 and seen[0].std() == pytest.approx(1.0, abs=0.02)
    assert seen[1].abs().max() <= 1.0  # the hidden layer is given what the model has made
    binary = torch.randint(2, (16, 3)).float()
    other = Model()
    other.enc[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    other(binary)
    assert torch.equal(seen[2], binary)


def test_a_scaler_of_few_rows_pools_its_columns() -> None:
    scale = Scaler(feature_axis=-1)
    assert scale(torch.tensor([[1.0, 3.0]])).tolist() == [[-1.0, 1.0]]
