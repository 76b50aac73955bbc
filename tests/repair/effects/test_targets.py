import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steadygrad.repair.effects.change import Change
from steadygrad.repair.effects.effect import NotApplicable
from steadygrad.repair.effects.targets import ScaleTargets

MEAN, STD = torch.tensor([100.0, -3.0]), torch.tensor([40.0, 0.5])


def plan(power: int) -> dict:
    spec = {"mean": MEAN.tolist(), "std": STD.tolist(), "axis": -1, "power": power}
    return {"scale_targets": {"modules": {"1": spec}}}


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 2))


def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(6, 16, 3, generator=generator)
    return [(xi, xi[:, :2] * STD + MEAN) for xi in x]


@pytest.mark.parametrize("power,loss", [(2, F.mse_loss), (1, F.l1_loss)])
def test_trains_as_with_standardised_targets_in_the_units_of_the_user(power: int, loss) -> None:
    net = model()
    reference = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    other = torch.optim.SGD(reference.parameters(), lr=0.1)
    change = Change(plan(power))
    change.install()
    try:
        change.optimizer_built(optimizer)
        for x, y in batches():
            optimizer.zero_grad()
            value = loss(net(x), y)
            value.backward()
            optimizer.step()
            assert value > 0.05 * loss(MEAN.expand_as(y), y) or x is not batches()[0][0]
        with torch.no_grad():
            predicted = net(batches()[0][0])
    finally:
        change.remove()
    for x, y in batches():
        other.zero_grad()
        loss(reference(x), (y - MEAN) / STD).backward()
        other.step()
    for p, q in zip(net.parameters(), reference.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-5)
    with torch.no_grad():
        assert torch.allclose(predicted, MEAN + STD * reference(batches()[0][0]), rtol=1e-4)
        assert not torch.allclose(net(batches()[0][0]), predicted)  # given back


@pytest.mark.parametrize("value", [1.0, {"modules": {"1": {"mean": 0.0, "std": 1.0, "power": 3}}}])
def test_values_that_mean_nothing(value: object) -> None:
    with pytest.raises(NotApplicable):
        ScaleTargets(value)


def test_outputs_that_are_no_tensor_or_of_another_width_are_left_alone() -> None:
    effect = ScaleTargets(plan(2)["scale_targets"])
    effect.install()
    try:
        from steadygrad.repair.effects.effect import Models

        layer, cell = nn.Linear(2, 3), nn.LSTM(2, 2)
        effect.models(Models((layer,), {"1": layer}))
        x = torch.randn(4, 2)
        assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))
        effect.models(Models((cell,), {"1": cell}))
        assert isinstance(cell(x), tuple)
    finally:
        effect.remove()
