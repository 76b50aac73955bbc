"""What the twin tells of its models, without a bit of it being changed."""

import inspect
import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from steadygrad.repair.effects.change import Change
from steadygrad.repair.survey.structure import Structure

pytestmark = pytest.mark.usefixtures("apart")


def survey(model, x, passes=1, surveyed=True):
    """What a first step tells; the losses and the state of the random numbers after it."""
    structure = Structure()
    change = Change({}, more=[structure] if surveyed else [])
    change.install()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    change.optimizer_built(optimizer)
    losses = []
    for _ in range(passes):
        loss = model(x).square().mean()
        change.backward([loss], [loss.detach()])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    change.remove()
    assert torch.overrides._get_current_function_mode() is None
    return structure.found(), losses, torch.get_rng_state()


def flagged(found, flag):
    return [layer["module"] for layer in found["layers"] if layer[flag]]


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.a, self.b = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x):
        return torch.relu(x + self.b(torch.relu(self.a(x))))


def residual():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), Block(4), Block(4), nn.Dropout(0.1), nn.Flatten(), nn.Linear(64, 3)
    )


def test_a_surveyed_run_is_the_run_bit_for_bit():
    runs = []
    for surveyed in (False, True):
        torch.manual_seed(0)
        runs.append(survey(residual(), torch.randn(5, 1, 4, 4), 4, surveyed))
    assert runs[0][1] == runs[1][1] and torch.equal(runs[0][2], runs[1][2])


def test_branches_end_at_what_was_made_last_and_never_at_the_stem():
    found, _, _ = survey(residual(), torch.randn(2, 1, 4, 4))
    assert [branch["ends"] for branch in found["branches"]] == [["1.b"], ["2.b"]]
    assert flagged(found, "head") == ["5"] and flagged(found, "first") == ["0"]
    assert len(flagged(found, "plain")) == 6 and not flagged(found, "normed")
    assert found["layers"][1]["gain"] == pytest.approx(2**0.5)
    assert json.loads(json.dumps(found)) == found


class Mixed(nn.Module):
    """One module for a hidden layer and for the output, a gate, and a call."""

    def __init__(self):
        super().__init__()
        self.a, self.gate, self.b, self.d, self.c = (nn.Linear(6, 6) for _ in range(5))
        self.act, self.own = nn.Sigmoid(), nn.ReLU()

    def forward(self, x):
        h = self.act(self.a(x))
        h = h * torch.sigmoid(self.gate(x)) + x
        h = self.own(self.b(h))
        h = F.relu(self.d(h))
        y = self.c(h)
        return self.act(y)


def line_of(text):
    lines, first = inspect.getsourcelines(Mixed)
    return first + next(i for i, line in enumerate(lines) if text in line)


def test_activations_by_module_or_by_line_and_no_gates():
    found, _, _ = survey(Mixed(), torch.randn(4, 6))
    hidden, output = found["activations"]["hidden"], found["activations"]["output"]
    assert hidden["modules"] == {"own": "ReLU"} and output["modules"] == {}
    assert [(c["line"], c["kind"]) for c in hidden["calls"]] == [(line_of("F.relu"), "ReLU")]
    assert [(c["line"], c["kind"]) for c in output["calls"]] == [(line_of("self.act(y)"), "Sigmoid")]


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.x, self.h, self.out = nn.Linear(3, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x):
        h = x.new_zeros(len(x), 6)
        for t in range(x.shape[1]):
            h = torch.tanh(self.x(x[:, t]) + self.h(h))
        return self.out(h)


def test_the_activation_of_a_recurrence_stays():
    found, _, _ = survey(Recurrent(), torch.randn(4, 5, 3))
    assert flagged(found, "recurrent") == ["h"]
    assert found["activations"]["hidden"] == {"modules": {}, "calls": []}


class Attention(nn.Module):
    def __init__(self, scale=None):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(4, 4) for _ in range(3))
        self.scale = scale

    def forward(self, x):
        logits = self.q(x) @ self.k(x).transpose(-1, -2)
        if self.scale:
            logits = logits / self.scale
        return logits.softmax(-1) @ self.v(x)


def test_attention_without_its_factor_is_told():
    forgotten, _, _ = survey(nn.Sequential(Attention(), nn.Linear(4, 1)), torch.randn(2, 5, 4))
    right, _, _ = survey(nn.Sequential(Attention(2.0), nn.Linear(4, 1)), torch.randn(2, 5, 4))
    assert forgotten["unscaled_attention"] == ["0"] and right["unscaled_attention"] == []


def test_passes_without_gradient_and_passes_that_raise_tell_nothing():
    structure = Structure()
    change = Change({}, more=[structure])
    change.install()
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    change.optimizer_built(optimizer)
    with torch.no_grad():
        model(torch.randn(2, 6))
    with pytest.raises(RuntimeError):
        model(torch.randn(2, 5))
    assert torch.overrides._get_current_function_mode() is None
    loss = model(torch.randn(2, 6)).mean()
    change.backward([loss], [loss.detach()])
    change.remove()
    assert [layer["head"] for layer in structure.found()["layers"]] == [False, True]


def test_a_model_called_in_parts_is_one_model():
    class Parts(nn.Module):
        def __init__(self):
            super().__init__()
            self.encode, self.decode = nn.Linear(6, 4), nn.Linear(4, 6)

        def forward(self, x):
            raise NotImplementedError

    model = Parts()
    structure = Structure()
    change = Change({}, more=[structure])
    change.install()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    change.optimizer_built(optimizer)
    z = torch.relu(model.encode(torch.randn(3, 6)))
    loss = model.decode(z).mean()
    change.backward([loss], [loss.detach()])
    change.remove()
    assert [layer["head"] for layer in structure.found()["layers"]] == [False, True]


def test_layers_whose_units_one_other_reads():
    """Neither through the skip of a residual sum nor out of the model; the flattened channels of the last are read."""
    found, _, _ = survey(residual(), torch.randn(5, 1, 4, 4))
    assert found["links"] == [["1.a", "1.b"], ["2.a", "2.b"]]
    plain = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3), nn.Tanh(), nn.Linear(3, 1)
    )
    found, _, _ = survey(plain, torch.randn(5, 1, 4, 4))
    assert found["links"] == [["0", "3"], ["3", "5"]]


def test_loaded_weights_are_told():
    def loaded(which):
        structure, model = Structure(), residual()
        change = Change({}, more=[structure])
        change.install()
        if which:
            model[1].load_state_dict(model[1].state_dict())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        change.optimizer_built(optimizer)
        loss = model(torch.randn(5, 1, 4, 4)).square().mean()
        change.backward([loss], [loss.detach()])
        change.remove()
        return structure.found()["loaded"]

    assert loaded(True) and not loaded(False)


def test_what_a_generator_puts_out_is_no_hidden_layer_of_its_critic():
    generator = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 4))
    critic = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    structure = Structure()
    change = Change({}, more=[structure])
    change.install()
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (generator, critic)]
    for optimizer in optimizers:
        change.optimizer_built(optimizer)
    loss = critic(generator(torch.randn(5, 2))).square().mean()
    change.backward([loss], [loss.detach()])
    change.remove()
    pairs = [[path.rpartition(".")[2] for path in pair] for pair in structure.found()["links"]]
    assert pairs == [["0", "2"], ["0", "2"]]
