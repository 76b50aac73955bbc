"""Other activations by module and by line; gates and everything else stay; the old ones come back."""

import copy
import inspect
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from steadygrad.repair.effects.effect import NotApplicable
from tests.repair.effects.stepping import trains, upon

pytestmark = pytest.mark.usefixtures("apart")


def net(act):
    return nn.Sequential(nn.Linear(4, 6), act, nn.Linear(6, 2))


@pytest.mark.parametrize("inplace", [False, True])
def test_a_module_computes_another_function(inplace):
    model, x = net(nn.ReLU(inplace)), torch.randn(5, 4)
    plain = copy.deepcopy(model)
    wanted = plain[2](F.leaky_relu(plain[0](x)))
    with upon({"activation": {"to": "LeakyReLU", "modules": ["1"]}}) as run:
        trains(model)
        assert torch.equal(model(x), wanted)
        with torch.no_grad():
            assert torch.equal(model.eval()(x), wanted)
        assert torch.equal(copy.deepcopy(model)(x), wanted)
        assert torch.equal(pickle.loads(pickle.dumps(model))(x), wanted)
        run.change.remove()
    assert torch.equal(model(x), plain(x)) and "forward" not in model[1].__dict__


def test_a_forward_that_somebody_has_put_on_a_module_comes_back():
    model = net(nn.ReLU())
    own = model[1].forward = torch.tanh
    with upon({"activation": {"to": "GELU", "modules": ["1"]}}):
        trains(model)
        model(torch.randn(5, 4))
    assert model[1].forward is own


class Gated(nn.Module):
    """A gate, a functional activation, one in place and an output, each on a line of its own."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x):
        h = torch.relu(self.a(x))
        gate = torch.sigmoid(self.b(x))
        h = h * gate + 1
        F.relu(h, inplace=True)
        return torch.sigmoid(self.c(h))


def line_of(text):
    lines, first = inspect.getsourcelines(Gated)
    return first + next(i for i, line in enumerate(lines) if text in line)


def call(text, kind):
    return {"file": "elsewhere/test_activation.py", "line": line_of(text), "kind": kind}


def test_calls_are_changed_on_their_lines_alone():
    model, x = Gated(), torch.randn(5, 4)
    calls = [call("h = torch.relu", "ReLU"), call("inplace", "ReLU")]
    with upon({"activation": {"to": "SiLU", "calls": calls}}) as run:
        trains(model)
        h = F.silu(F.silu(model.a(x)) * torch.sigmoid(model.b(x)) + 1)
        assert torch.equal(model(x), torch.sigmoid(model.c(h)))
        run.change.remove()
        h = F.relu(torch.relu(model.a(x)) * torch.sigmoid(model.b(x)) + 1)
        assert torch.equal(model(x), torch.sigmoid(model.c(h)))


def test_an_output_goes_without():
    model, x = Gated(), torch.randn(5, 4)
    with upon({"remove_output_activation": {"calls": [call("return torch.sigmoid", "Sigmoid")]}}):
        trains(model)
        assert torch.equal(torch.sigmoid(model(x)), Gated.forward(model, x))


def test_a_module_at_the_output_goes_without():
    logits, x = net(nn.ReLU()).append(nn.Softmax(-1)), torch.randn(5, 4)
    wanted = logits[:3](x)
    with upon({"remove_output_activation": {"modules": ["3"]}}):
        trains(logits)
        assert torch.equal(logits(x), wanted)


def test_a_pass_that_raises_leaves_no_mode_behind():
    model = Gated()
    with upon({"activation": {"to": "SiLU", "calls": [call("h = torch.relu", "ReLU")]}}):
        trains(model)
        with pytest.raises(RuntimeError):
            model(torch.randn(5, 3))
        assert torch.overrides._get_current_function_mode() is None
        with torch.device("cpu"):
            model(torch.randn(5, 4))
        assert torch.overrides._get_current_function_mode() is None


def test_an_unknown_function_or_module_is_refused():
    with pytest.raises(NotApplicable, match="Wave"), upon({"activation": {"to": "Wave", "modules": ["1"]}}):
        pass
    with upon({"activation": {"to": "ReLU", "modules": ["9"]}}), pytest.raises(NotApplicable, match="9"):
        model = net(nn.ReLU())
        trains(model)
        model(torch.randn(5, 4))


def test_a_target_network_follows():
    model, x = net(nn.ReLU()), torch.randn(5, 4)
    target = copy.deepcopy(model).requires_grad_(False)
    with upon({"activation": {"to": "GELU", "modules": ["1"]}}):
        trains(model)
        assert torch.equal(model(x), target(x))
    gated = Gated()
    target = copy.deepcopy(gated).requires_grad_(False)
    del model
    with upon({"activation": {"to": "GELU", "calls": [call("h = torch.relu", "ReLU")]}}):
        trains(gated)
        assert torch.equal(gated(x), target(x))
        assert not torch.equal(gated(x), Gated.forward(gated, x))
