# ruff: noqa: E501 - lines of scripts
"""What is changed in the model: first weights, hooks on layers, activations, scales of data, modes."""

from __future__ import annotations

from typing import Any

import pytest

from steadygrad.repair.patch import NoPatch
from tests.repair.patch.running import Folder
from tests.repair.patch.scripts import plain

CONV = plain("torch.optim.SGD(model.parameters(), lr=1e-2)").replace(
    "nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))",
    "nn.Sequential(nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 4, 2, padding=1), nn.Tanh(), nn.ConvTranspose2d(4, 2, 2), "
    "nn.Flatten(), nn.Linear(32, 1))",
)
TIED = plain().replace(
    "nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))",
    "nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 1))\nmodel[2].weight = model[0].weight",
)
PARAMETRISED = plain().replace("x = 3", "nn.utils.parametrizations.weight_norm(model[0])\nx = 3")
PARTS = """\
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(3, 4, batch_first=True)
        self.head = nn.Linear(4, 1)

    def forward(self, x):
        h = torch.relu(self.rnn(x)[0][:, -1])
        return self.head(h).sigmoid()


class Trainer:
    def __init__(self):
        self.net = Net()
        self.optimizer = self.build()

    def build(self):
        return torch.optim.SGD(self.net.parameters(), lr=0.1)


losses, trainer = [], Trainer()
net, x = trainer.net, torch.randn(8, 5, 3)
for step in range(6):
    loss = ((net(x) - 3) ** 2).mean()
    loss.backward()
    trainer.optimizer.step()
    trainer.optimizer.zero_grad()
    losses.append(loss.item())
"""
DEAD = plain("torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)").replace(
    "x = 3", "model[0].bias.data[2:5] = -99.0\nx = 3"
)
DEAD_CONV = (
    CONV.replace(
        "nn.Tanh(), nn.ConvTranspose2d(4, 2, 2), nn.Flatten(), nn.Linear(32, 1)",
        "nn.ReLU(), nn.Flatten(), nn.Linear(36, 1)",
    )
    .replace("x = 3", "model[1].bias.data[1] = -99.0\nx = 3")
    .replace("SGD", "Adam")
)
TWO = """\
import torch
from torch import nn

first, second = nn.Linear(3, 4), nn.Linear(4, 1)
losses, x = [], torch.randn(8, 3)
a = torch.optim.SGD(first.parameters(), lr=0.1)
b = torch.optim.SGD(second.parameters(), lr=0.1)
for step in range(6):
    loss = (second(first(x)) ** 2).mean()
    loss.backward()
    for optimizer in a, b: optimizer.step(); optimizer.zero_grad()
    losses.append(loss.item())
"""
EVALUATED = (
    plain()
    .replace("nn.ReLU(), ", "nn.BatchNorm1d(8), nn.Dropout(0.5), ")
    .replace("optimizer = ", "model.eval()\noptimizer = ")
)
WIDE = [round(0.1 * i, 1) for i in range(4)]

LSUV = {"scheme": "lsuv", "modules": {"0": 1.4, "2": 1.0}}
CHECKED: list[tuple[str, str, dict[str, Any], str]] = [
    ("he", plain(), {"reinitialise": {"scheme": "he", "modules": {"0": 1.4, "2": 1.0}}}, "draw_weights_(model, {"),
    ("he, convolutions", CONV, {"reinitialise": {"scheme": "he", "modules": {"1": 1.4, "3": 1.0}}}, "transposed"),
    ("xavier", CONV, {"reinitialise": {"scheme": "xavier", "modules": {"1": 1.4, "3": 1.0, "5": 1.0}}}, "uniform_("),
    ("orthogonal", CONV, {"reinitialise": {"scheme": "orthogonal", "modules": {"1": 1.4}, "seed": 5}}, "seed=5)"),
    ("lsuv", plain(), {"reinitialise": LSUV}, "unit_variance_at_first_("),
    ("lsuv, convolutions", CONV, {"reinitialise": {"scheme": "lsuv", "modules": {"1": 1, "3": 1}}}, "unit_variance"),
    ("lsuv, tied", TIED, {"reinitialise": {"scheme": "lsuv", "modules": {"0": 1, "2": 1, "3": 1}}}, "unit_variance"),
    ("lsuv, small output", plain(), {"reinitialise": LSUV, "output_scale": {"modules": ["2"], "factor": 0.1}}, "scale_we"),
    ("lsuv, parametrised", PARAMETRISED, {"reinitialise": LSUV}, "parametrizations"),
    ("output", plain(), {"output_scale": {"modules": ["2"], "factor": 0.05}}, 'scale_weights_(model, ("2",), ("weight",), 0.05)'),
    ("branch", plain(), {"branch_scale": {"modules": ["2"], "factor": 0.0}}, '("weight", "bias"), 0.0)'),
    ("bias", PARTS, {"zero_bias": {"modules": ["head"]}}, 'scale_weights_(self.net, ("head",)'),
    ("output, parametrised", PARAMETRISED, {"output_scale": {"modules": ["0"], "factor": 0.5}}, "scale_weights_("),
    ("recurrent", PARTS, {"orthogonal_recurrent": {"weights": ["rnn.weight_hh_l0"]}}, '_(self.net, ("rnn.weight_hh_l0",)'),
    ("two models", TWO, {"output_scale": {"modules": ["linear_1"], "factor": 0.5}}, 'scale_weights_(second, ("",)'),
    ("layer norm", plain(), {"layer_norm": {"modules": ["0"]}}, 'add_layer_norms(model, ("0",))'),
    ("layer norm, image", CONV, {"layer_norm": {"modules": ["1", "3"]}}, 'add_layer_norms(model, ("1", "3"))'),
    ("batch norm", plain(), {"batch_norm": {"modules": ["0"]}}, "preserve=False)"),
    ("batch norm, image", CONV, {"batch_norm": {"modules": ["1", "3"], "preserve": True}}, "preserve=True)"),
    ("gate", plain(), {"residual_gate": {"modules": ["2"], "start": 0.5}}, "start=0.5)"),
    ("bias clamp", plain(), {"bias_clamp": {"modules": ["2"], "limit": 0.01}}, "with_clamped_biases("),
    ("dead units", DEAD, {"dead_unit_reset": {"modules": ["0"]}}, "with_dead_units_centred(torch.optim.SGD("),
    ("dead channels", DEAD_CONV, {"dead_unit_reset": {"modules": ["1"], "steps": 5}}, "centred("),
    ("dormant units", DEAD, {"dormant_reset": {"links": [["0", "2"]], "every": 4}}, '(model.get_submodule("0"), model.'),
    ("dormant channels", DEAD_CONV, {"dormant_reset": {"links": [["1", "4"]], "every": 3, "threshold": 0.2}}, "0.2, 3, 0, "),
    ("activation", plain(), {"activation": {"to": "GELU", "modules": ["1"]}}, "torch.nn.GELU().forward"),
    (
        "activation, called",
        PARTS,
        {"activation": {"to": "LeakyReLU", "calls": [{"file": "train.py", "line": 12, "kind": "ReLU"}]}},
        "h = torch.nn.functional.leaky_relu(self.rnn(x)[0][:, -1])",
    ),
    (
        "no activation",
        PARTS,
        {"remove_output_activation": {"calls": [{"file": "train.py", "line": 13, "kind": "Sigmoid"}]}},
        "return (self.head(h))",
    ),
    (
        "inputs",
        plain(),
        {"standardise_inputs": {"modules": {"0": {"mean": WIDE, "std": [2.0, 3.0, 1.5, 1 / 3], "axis": -1}}}},
        'standardise_inputs(model.get_submodule("0"), [0.0, 0.1, 0.2, 0.3],',
    ),
    ("inputs, one number", CONV, {"standardise_inputs": {"modules": {"1": {"mean": 0.5, "std": 3.0, "axis": 1}}}}, "axis=1)"),
    (
        "targets",
        plain(),
        {"scale_targets": {"modules": {"2": {"mean": 0.5, "std": 7.0, "axis": -1, "power": 2}}}},
        'scale_outputs(model.get_submodule("2"), 0.5, 7.0, axis=-1, power=2)',
    ),
    ("training mode", EVALUATED, {"train_mode": 1}, "    model.train()\n    loss = "),
]  # fmt: skip


@pytest.mark.parametrize(("text", "plan", "line"), [c[1:] for c in CHECKED], ids=[c[0] for c in CHECKED])
def test_the_patched_run_is_the_arm(folder: Folder, text: str, plan: dict[str, Any], line: str) -> None:
    folder.write(text)
    assert line in folder.check(plan).source


def test_many_means_are_written_in_lines_of_a_readable_length(folder: Folder) -> None:
    folder.write(plain().replace("Linear(4, 8)", "Linear(100, 8)").replace("16, 4", "16, 100"))
    spec = {"mean": [0.01 * i for i in range(100)], "std": [1.0 + i for i in range(100)]}
    patch = folder.check({"standardise_inputs": {"modules": {"0": spec}}})
    assert max(map(len, patch.source.split("\n"))) <= 120


PRECISE = [
    (
        "torch.autocast('cpu', dtype=torch.bfloat16)",
        "torch.autocast('cpu', dtype=torch.bfloat16, enabled=False)",
    ),
    ("torch.autocast('cpu', enabled=step >= 0)", "torch.autocast('cpu', enabled=False)"),
    ("torch.amp.autocast('cpu', torch.bfloat16, True)", "torch.amp.autocast('cpu', torch.bfloat16, False)"),
]


@pytest.mark.parametrize(("context", "line"), PRECISE)
def test_full_precision(folder: Folder, context: str, line: str) -> None:
    text = plain().replace(
        "    loss = ((model(x) - y) ** 2).mean()",
        f"    with {context}: out = model(x)\n    loss = ((out - y) ** 2).mean()",
    )
    folder.write(text)
    assert line in folder.check({"precision": "float32"}).source


def test_casts_to_half_precision(folder: Folder) -> None:
    folder.write(plain().replace("x = 3", "k = torch.ones(1).to(torch.bfloat16).half()\nx = 3"))
    assert "torch.ones(1).to(torch.float32).float()" in folder.patch({"precision": "float32"}).source


def test_a_model_without_a_name_is_refused(folder: Folder) -> None:
    folder.write(plain("(lambda parameters: torch.optim.SGD(parameters, lr=1e-3))(model.parameters())").replace("model", "held[0][0]").replace(
        "held[0][0] = ", "held = [[None]]\nheld[0][0] = "
    ))  # fmt: skip
    with pytest.raises(NoPatch, match="the model has no name"):
        folder.patch({"layer_norm": {"modules": ["0"]}})


def test_layers_of_two_models_are_refused(folder: Folder) -> None:
    folder.write(TWO)
    with pytest.raises(NoPatch, match="in several models"):
        folder.patch({"layer_norm": {"modules": ["linear_0", "linear_1"]}})
