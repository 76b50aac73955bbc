"""Dormant units start anew, alive ones are left alone; loaded weights are shrunk once, fresh ones never."""

import pytest
import torch
from torch import nn

from steadygrad.plasticity import shrink_and_perturb_
from steadygrad.repair.effects.effect import NotApplicable
from tests.integrations.trainings import differences
from tests.repair.effects.stepping import leavings, upon

pytestmark = pytest.mark.usefixtures("apart")

LINKS = [["0", "2"]]
RESET = {"dormant_reset": {"links": LINKS, "threshold": 0.0, "every": 4}}
RENEWAL = {"continual_backprop": {"links": LINKS, "replacement_rate": 0.05, "maturity": 2}}


def net(kill=()):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8, bias=False), nn.ReLU(), nn.Linear(8, 1))
    model[0].weight.data.abs_()
    # On inputs above 0 such a unit is dead, and has no bias to lift it.
    model[0].weight.data[list(kill)] = -1.0
    return model


def train(model, plan, steps=6, fresh=True):
    draws = torch.Generator().manual_seed(3)
    with upon(plan):
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        for _ in range(steps):
            x = torch.rand(32, 4, generator=draws)
            optimizer.zero_grad()
            (model(x) - x.prod(1, keepdim=True)).square().mean().backward()
            optimizer.step()
    return leavings(model, optimizer)


def dead(model):
    x = torch.rand(200, 4, generator=torch.Generator().manual_seed(5))
    return ((model[0](x) > 0).sum(0) == 0).nonzero().flatten().tolist()


def test_dormant_units_start_anew_without_a_bias():
    alone, model = net([2, 5]), net([2, 5])
    train(alone, {})
    assert dead(alone) == [2, 5]
    train(model, RESET)
    assert dead(model) == []
    others = [0, 1, 3, 4, 6, 7]
    assert torch.allclose(model[0].weight[others], alone[0].weight[others], atol=1e-2)


def test_units_that_are_active_change_no_bit():
    assert not differences(train(net(), RESET), train(net(), {}))


def test_between_resets_nothing_happens():
    model = net([2, 5])
    train(model, RESET, steps=3)
    assert dead(model) == [2, 5]


def test_a_reset_unit_begins_without_a_past():
    """Its outgoing weight is 0 and the optimizer remembers nothing of it."""
    left = train(net([2]), RESET, steps=4)
    assert left["model"]["2.weight"][0, 2] == 0
    state = left["optimizer"]["state"]
    assert not state[0]["exp_avg_sq"][2].any() and not state[1]["exp_avg_sq"][0, 2].any()
    assert state[0]["exp_avg_sq"][3].any()


def test_the_least_useful_units_are_renewed_all_the_time():
    model, alone = net([2, 5]), net([2, 5])
    train(model, RENEWAL, steps=20)
    train(alone, {}, steps=20)
    assert dead(alone) == [2, 5] and dead(model) == []


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        ({"dormant_reset": {"links": [["1", "2"]]}}, "1 is no linear layer"),
        ({"dormant_reset": {"links": [["9", "2"]]}}, "no module '9'"),
        ({"dormant_reset": {"links": LINKS, "every": 0}}, "every must be at least 1, got 0"),
        ({"continual_backprop": {"links": [["2", "0"]]}}, None),
        (
            {"continual_backprop": {"links": LINKS, "replacement_rate": 2}},
            "replacement_rate must be between 0 and 1",
        ),
        ({"shrink_and_perturb": {"shrink": 1.5}}, "shrink must be at least 0 and below 1, got 1.5"),
        ({"shrink_and_perturb": {"shrink": 0.5, "std": -1}}, "std must be finite and at least 0"),
        (
            {"shrink_and_perturb": {"shrink": 0.5, "seed": -1}},
            "seed must be a whole number of at least 0, got -1",
        ),
        ({"shrink_and_perturb": {"shrink": 0.5}}, "no weights were loaded"),
        ({"dormant_reset": {"links": []}}, "needs links"),
    ],
)
def test_what_does_not_fit_is_not_applicable(plan, said):
    if said is None:
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        said = "0 does not read the units of 2"
    else:
        model = net()
    with pytest.raises(NotApplicable, match=said):
        train(model, plan)


def test_loaded_weights_are_shrunk_once_and_no_others():
    kept = {name: value.clone() for name, value in net().state_dict().items()}
    plan = {"shrink_and_perturb": {"shrink": 0.5, "std": 0.1, "seed": 7}}
    with upon(plan):
        model = net()
        model.load_state_dict(kept)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        for _ in range(2):
            model(torch.rand(4, 4)).sum().backward()
            optimizer.step()
    source = net()
    source.load_state_dict(kept)
    shrink_and_perturb_(source, 0.5, 0.1, 7)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), source.parameters(), strict=True))


def test_a_part_that_was_loaded_is_shrunk_alone():
    with upon({"shrink_and_perturb": {"shrink": 0.5, "std": 0.0}}):
        model = nn.Sequential(net(), nn.Linear(1, 1))
        before = [p.detach().clone() for p in model.parameters()]
        model[0].load_state_dict(model[0].state_dict())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        model(torch.rand(4, 4)).sum().backward()
        optimizer.step()
    after = list(model.parameters())
    factors = [float((b / a).mean()) for a, b in zip(before, [p.detach() for p in after], strict=True)]
    assert factors == pytest.approx([0.5, 0.5, 1.0, 1.0, 1.0])


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda model: model[0].weight.requires_grad_(False), "0 is frozen"),
        (lambda model: nn.utils.parametrizations.weight_norm(model[2]), "2 is computed by a parametrization"),
    ],
)
def test_weights_that_are_not_to_be_written_are_refused(spoil, said):
    model = net()
    spoil(model)
    with pytest.raises(NotApplicable, match=said):
        train(model, RESET)


def test_a_layer_and_its_reader_under_two_optimizers_are_refused():
    model = net()
    with upon(RESET), pytest.raises(NotApplicable, match="no optimizer trains both 0 and 2"):
        optimizers = [torch.optim.Adam(model[k].parameters()) for k in (0, 2)]
        model(torch.rand(4, 4)).sum().backward()
        for optimizer in optimizers:
            optimizer.step()


def test_a_loaded_part_in_evaluation_mode_leaves_the_others_alone():
    parts = [net(), net()]
    before = [p.detach().clone() for part in parts for p in part.parameters()]
    with (
        upon({"shrink_and_perturb": {"shrink": 0.5}}),
        pytest.raises(NotApplicable, match="evaluation mode"),
    ):
        model = nn.Sequential(parts[0], nn.Linear(1, 4), parts[1])
        for part in parts:
            part.load_state_dict({name: value.clone() for name, value in part.state_dict().items()})
        parts[1].eval()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model(torch.rand(4, 4)).sum().backward()
        optimizer.step()
    after = [p for part in parts for p in part.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_loaded_parts_of_one_shape_get_noise_of_their_own():
    with upon({"shrink_and_perturb": {"shrink": 0.0, "std": 1.0}}):
        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        for part in model:
            part.load_state_dict({name: value.clone() for name, value in part.state_dict().items()})
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        model(torch.rand(4, 3)).sum().backward()
        optimizer.step()
    assert (model[0].weight - model[1].weight).abs().min() > 1e-4
