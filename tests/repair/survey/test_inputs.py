import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steadygrad.repair.survey.inputs import Inputs
from tests.repair.survey.watching import watched_by

COLUMNS = torch.tensor([1.0, 100.0, 1e4])


def survey(model: nn.Module, batches: list[Tensor], *, watched: bool = True) -> tuple[dict, list[float]]:
    surveyor = Inputs()
    with watched_by(*([surveyor] if watched else [])) as run:
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
        run.optimizer_built(optimizer)
        losses = []
        for x in batches:
            optimizer.zero_grad()
            loss = model(x).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return dict(surveyor.found()), losses


def batches(rows: int = 8, count: int = 8) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(rows, 3, generator=generator) * COLUMNS + 5 * COLUMNS for _ in range(count)]


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


def test_columns_of_the_layer_that_is_given_the_data_pooled_over_batches() -> None:
    x = batches(rows=1, count=40)
    found, _ = survey(mlp(), x)
    assert list(found["modules"]) == ["0"]
    facts, rows = found["modules"]["0"], torch.cat(x)
    assert facts["mean"] == pytest.approx(rows.mean(0).tolist(), rel=1e-4)
    assert facts["std"] == pytest.approx(rows.std(0).tolist(), rel=1e-4)
    assert facts["axis"] == -1 and facts["ratio"] > 5e3 and facts["rms"] > 1e4


def test_the_twin_keeps_every_bit() -> None:
    assert survey(mlp(), batches())[1] == survey(mlp(), batches(), watched=False)[1]


def test_rows_far_out_and_nan_are_left_out() -> None:
    x = batches()
    x[3][2] = 1e9
    x[4][1] = torch.nan
    plain = survey(mlp(), batches())[0]["modules"]["0"]
    facts = survey(mlp(), x)[0]["modules"]["0"]
    assert facts["std"] == pytest.approx(plain["std"], rel=0.1)


def test_a_column_that_hardly_ever_varies_makes_no_value_huge() -> None:
    x = batches(rows=64)
    for each in x:
        each[:, 1] = 0.0
    x[0][0, 1] = 255.0
    facts = survey(mlp(), x)[0]["modules"]["0"]
    assert (255.0 - facts["mean"][1]) / facts["std"][1] <= 10.01


def test_channels_of_images() -> None:
    scale = torch.tensor([1.0, 50.0]).view(2, 1, 1)
    x = [torch.randn(4, 2, 5, 5) * scale for _ in range(4)]
    found, _ = survey(nn.Sequential(nn.Conv2d(2, 1, 3), nn.Flatten()), x)
    facts = found["modules"]["0"]
    assert facts["axis"] == 1 and facts["std"] == pytest.approx([1.0, 50.0], rel=0.2)


class Penalised(nn.Module):
    """Given data, and what the model itself has made."""

    def __init__(self) -> None:
        super().__init__()
        self.n = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.n(torch.tanh(self.n(x)))


@pytest.mark.parametrize(
    "model,x",
    [
        (nn.Sequential(nn.Embedding(9, 3), nn.Linear(3, 1)), [torch.randint(9, (4,)) for _ in range(4)]),
        (nn.Linear(3, 1), [torch.randint(2, (8, 3)).float() for _ in range(4)]),
        (Penalised(), batches()),
        (nn.Linear(3, 1), [torch.randn(3) for _ in range(4)]),
    ],
    ids=["integers", "two values", "also hidden values", "one axis"],
)
def test_what_is_not_to_be_standardised(model: nn.Module, x: list[Tensor]) -> None:
    assert survey(model, x)[0] == {}


def test_a_pixel_in_another_unit_has_numbers_of_its_own() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 1))
    images = [torch.rand(8, 1, 4, 4) for _ in range(8)]
    for x in images:
        x[:, 0, 1, 2] *= 1000
    found = survey(model, images)[0]["modules"]["0"]
    assert found["axis"] == 0 and len(found["mean"]) == 16
    assert found["mean"][6] == pytest.approx(500, rel=0.2) and found["mean"][0] == pytest.approx(0.5, rel=0.2)


def test_a_part_that_is_called_by_itself_and_evaluation() -> None:
    surveyor = Inputs()
    with watched_by(surveyor) as run:
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
        run.optimizer_built(optimizer)
        for x in batches():
            F.mse_loss(model[2](model[1](model[0](x))), x[:, :1])
            with torch.no_grad():
                hidden = model[0](1000 * x)
                model[2](hidden)
    found = surveyor.found()["modules"]
    assert list(found) == ["0"] and found["0"]["mean"][0] == pytest.approx(5.0, abs=0.5)
