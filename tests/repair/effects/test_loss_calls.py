import pytest
import torch
import torch.nn.functional as F
from torch import nn

from steadygrad.repair.effects.effect import NotApplicable
from steadygrad.repair.effects.loss_calls import LossCalls

Z, LABELS = torch.tensor([[2.0, -1.0, 0.5], [0.0, 1.0, 3.0]]), torch.tensor([0, 2])
LINE, TARGET = torch.tensor([[0.5], [-1.0], [2.0]]), torch.tensor([1.0, 0.0, 1.0])


@pytest.fixture
def fix():
    effects = []

    def put(*names: str) -> None:
        effects.append(LossCalls(list(names)))
        effects[-1].install()

    yield put
    for effect in effects:
        effect.remove()


def test_logits_for_the_cross_entropy(fix) -> None:
    plain = F.cross_entropy(Z, LABELS)
    fix("softmax_before_cross_entropy", "sigmoid_before_cross_entropy")
    assert torch.equal(F.cross_entropy(F.softmax(Z, 1), LABELS), plain)
    assert torch.equal(nn.CrossEntropyLoss()(nn.Softmax(dim=1)(Z).view(2, 3), LABELS), plain)
    assert torch.equal(F.cross_entropy(torch.sigmoid(Z), LABELS), plain)
    assert torch.equal(F.cross_entropy(Z, LABELS), plain)
    assert torch.allclose(torch.softmax(Z, 1).sum(1), torch.ones(2))  # the output stays what it is


def test_logits_for_the_binary_cross_entropy(fix) -> None:
    plain = F.binary_cross_entropy_with_logits(LINE.squeeze(1), TARGET)
    fix("sigmoid_before_bce_logits")
    out = torch.sigmoid(LINE).squeeze(1)
    assert torch.equal(F.binary_cross_entropy_with_logits(out, TARGET), plain)
    assert F.binary_cross_entropy(out, TARGET).item() == pytest.approx(plain.item())


@pytest.mark.parametrize("make", [lambda z: z, lambda z: z.softmax(1), lambda z: z.log_softmax(1)])
def test_log_probabilities_for_the_likelihood(fix, make) -> None:
    fix("nll_without_log_softmax")
    assert F.nll_loss(make(Z), LABELS).item() == pytest.approx(F.cross_entropy(Z, LABELS).item())


def test_a_softmax_over_one_unit(fix) -> None:
    fix("one_unit_softmax")
    assert torch.equal(F.softmax(LINE, dim=1), torch.sigmoid(LINE))
    assert torch.equal(LINE.log_softmax(-1), F.logsigmoid(LINE))
    plain = F.binary_cross_entropy_with_logits(LINE.squeeze(1), TARGET)
    assert F.cross_entropy(LINE, TARGET.long()).item() == pytest.approx(plain.item())
    assert torch.equal(torch.ones(1, 2, 3, 1).softmax(-1), torch.ones(1, 2, 3, 1))  # attention with one key
    assert torch.allclose(F.softmax(Z, 1).sum(1), torch.ones(2))


@pytest.mark.parametrize("swapped", [False, True])
def test_a_target_of_the_shape_of_the_prediction(fix, swapped: bool) -> None:
    prediction = (LINE.squeeze(1) if swapped else LINE).clone().requires_grad_()
    target = TARGET[:, None] if swapped else TARGET
    plain = F.mse_loss(prediction, target.reshape(prediction.shape))
    fix("broadcast_in_loss")
    assert torch.equal(F.mse_loss(prediction, target), plain)
    assert torch.equal(nn.MSELoss()(prediction, target), plain)
    assert torch.equal(((prediction - target) ** 2).mean(), plain)
    assert torch.equal(((target - prediction) ** 2).mean(), plain)


def test_tables_that_are_meant_stay_tables(fix) -> None:
    fix("broadcast_in_loss")
    x = torch.randn(4, requires_grad=True)
    assert (x[:, None] - x).shape == (4, 4)
    assert (TARGET[:, None] - TARGET).shape == (3, 3)
    assert (LINE.clone().requires_grad_() - torch.randn(1, 3)).shape == (3, 3)


@pytest.mark.parametrize("value", [[], ["sum"], "softmax_before_cross_entropy", 1.0])
def test_values_that_mean_nothing(value: object) -> None:
    with pytest.raises(NotApplicable):
        LossCalls(value)
