from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steadygrad.repair.survey.targets import TargetsOf
from tests.repair.survey.watching import watched_by

MEAN, STD = torch.tensor([100.0, -3.0]), torch.tensor([40.0, 0.5])
Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.policy, self.value = nn.Linear(3, 8), nn.Linear(8, 4), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.trunk(x)
        return self.policy(h), self.value(h)


def survey(loss_of: Loss, *, watched: bool = True, start: float = 1.0) -> tuple[dict, list[float]]:
    torch.manual_seed(0)
    model = Heads()
    with torch.no_grad():
        model.value.weight.mul_(start)
    surveyor = TargetsOf()
    with watched_by(*([surveyor] if watched else [])) as run:
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-9)
        run.optimizer_built(optimizer)
        losses = []
        for _ in range(10):
            x, y = torch.randn(32, 3), torch.randn(32, 2) * STD + MEAN
            loss = loss_of(model, x, y)
            run.backward([loss], [loss.detach()])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return dict(surveyor.found()), losses


def both(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    policy, value = model(x)
    return F.cross_entropy(policy, (x.sum(1) > 0).long()) + 0.5 * F.mse_loss(value, y)


def by_hand(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return ((model(x)[1] - y) ** 2).sum(1).mean()


@pytest.mark.parametrize("loss,power", [(both, 2), (by_hand, 2), (lambda m, x, y: F.l1_loss(m(x)[1], y), 1)])
def test_the_columns_of_the_head_that_makes_the_prediction(loss: Loss, power: int) -> None:
    found, _ = survey(loss)
    assert list(found["modules"]) == ["value"]
    facts = found["modules"]["value"]
    assert facts["mean"] == pytest.approx(MEAN.tolist(), rel=0.1)
    assert facts["std"] == pytest.approx(STD.tolist(), rel=0.15)
    assert facts["power"] == power and facts["axis"] == -1 and facts["ratio"] == pytest.approx(80, rel=0.3)


def test_predictions_that_have_exploded_do_not_hide_the_targets() -> None:
    facts = survey(by_hand, start=1e12)[0]["modules"]["value"]
    assert facts["std"] == pytest.approx(STD.tolist(), rel=0.15)


def test_a_loss_that_is_infinite_in_another_part_does_not_hide_the_targets() -> None:
    def overflow(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        policy, value = model(x)
        return ((value - y) ** 2).mean() + (1e4 * policy.square()).exp().mean()

    found, losses = survey(overflow)
    assert losses[0] == float("inf")
    assert found["modules"]["value"]["std"] == pytest.approx(STD.tolist(), rel=0.5)


def test_one_column_that_is_squeezed() -> None:
    found, _ = survey(lambda m, x, y: F.mse_loss(nn.functional.linear(m(x)[1], torch.ones(1, 2)), y[:, :1]))
    assert found == {}  # the prediction is not what the layer has put out
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    surveyor = TargetsOf()
    with watched_by(surveyor) as run:
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-9)
        run.optimizer_built(optimizer)
        for _ in range(4):
            loss = F.mse_loss(model(torch.randn(16, 3)).squeeze(-1), torch.randn(16) * 30 + 7)
            run.backward([loss], [loss.detach()])
            loss.backward()
    assert surveyor.found()["modules"][""]["std"] == pytest.approx(30, rel=0.3)


@pytest.mark.parametrize(
    "loss",
    [
        lambda m, x, y: F.mse_loss(m(x)[1], torch.full((32, 2), 300.0)),
        lambda m, x, y: F.mse_loss(m(x)[1], m(x)[1].detach() * 0.99 + 1),
        lambda m, x, y: F.mse_loss((v := m(x)[1]), y) + v.abs().mean(),
        lambda m, x, y: F.mse_loss(100 * torch.tanh(m(x)[1]), y),
        lambda m, x, y: F.cross_entropy(m(x)[0], (x.sum(1) > 0).long()),
    ],
    ids=["constant", "made by the model", "used twice", "behind an activation", "classes"],
)
def test_what_is_not_to_be_scaled(loss: Loss) -> None:
    assert survey(loss)[0] == {}


@pytest.mark.parametrize("loss", [both, by_hand])
def test_the_twin_keeps_every_bit(loss: Loss) -> None:
    assert survey(loss)[1] == survey(loss, watched=False)[1]
