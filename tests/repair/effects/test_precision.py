import pytest
import torch
from torch import nn

from steadygrad.repair.effects.effect import NotApplicable
from steadygrad.repair.effects.precision import Precision


@pytest.fixture
def float32():
    effect = Precision("float32")
    effect.install()
    yield effect
    effect.remove()


def test_autocast_is_off_and_comes_back(float32: Precision) -> None:
    layer, x = nn.Linear(2, 2), torch.randn(1, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x).dtype == torch.float32

    @torch.autocast("cpu", dtype=torch.bfloat16)
    def decorated() -> torch.Tensor:
        return layer(x)

    assert decorated().dtype == torch.float32
    float32.remove()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16


def test_casts_are_undone(float32: Precision) -> None:
    x = torch.ones(2)
    made = [
        x.half(),
        x.bfloat16(),
        x.to(torch.float16),
        x.to(dtype=torch.bfloat16),
        x.to("cpu", torch.half),
        x.type(torch.float16),
        x.type("torch.HalfTensor"),
        torch.zeros(2, dtype=torch.float16),
        nn.Linear(2, 2).half().weight,
        nn.Linear(2, 2, dtype=torch.bfloat16).weight,
    ]
    assert [t.dtype for t in made] == [torch.float32] * len(made)
    assert x.double().dtype == torch.float64 and x.long().dtype == torch.int64


def test_no_bit_is_changed_in_float32() -> None:
    def train() -> list[float]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.2), nn.Linear(4, 1))
        optimizer = torch.optim.AdamW(model.parameters())
        losses = []
        for _ in range(5):
            loss = (model(torch.randn(8, 3)) - 1).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    plain = train()
    effect = Precision("float32")
    effect.install()
    try:
        assert train() == plain
    finally:
        effect.remove()


def test_values_that_mean_nothing() -> None:
    with pytest.raises(NotApplicable):
        Precision("float64")
