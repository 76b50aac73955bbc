"""The depth study: each kind of net is built, initialised and measured; the table says what came out."""

from __future__ import annotations

import math

import pytest
import torch

from studies.common import digits
from studies.depth import run, show
from studies.depth.nets import ROWS


@pytest.mark.parametrize("net", ROWS)
def test_each_initialisation_of_each_net(net):
    row = ROWS[net]
    for init in row.inits:
        cell = run.measure(0, True, net, 4, init)
        assert cell["end"] in ("out of time", "trained") and cell["steps"] == 1
        assert math.isfinite(cell["first"]) and math.isfinite(cell["last"])
        assert cell["first"] > 0 or init in ("fixup", "skipinit")


def test_ratio_is_that_of_the_blocks_by_hand():
    """A linear chain of scalars: the gradient of weight k is the product of the others times one number."""
    torch.manual_seed(0)
    data = digits()
    model = torch.nn.Sequential(
        *(torch.nn.Linear(64, 64, bias=False) for _ in range(4)), torch.nn.Linear(64, 10)
    )
    first, last = ROWS["plain MLP, tanh"].norms(model, data.x[:32], data.y[:32])
    torch.nn.functional.cross_entropy(model(data.x[:32]), data.y[:32]).backward()
    assert first == pytest.approx(model[1].weight.grad.norm().item(), rel=1e-5)
    assert last == pytest.approx(model[3].weight.grad.norm().item(), rel=1e-5)


@pytest.mark.parametrize(
    ("first", "last", "shown"),
    [
        (2.0, 4.0, "0.5"),
        (1e-12, 1.0, "1e-12"),
        (1e9, 1.0, "1e+9"),
        (0.0, 1.0, "underflow"),
        (0.0, 0.0, "no gradient"),
        (math.inf, 1.0, "overflow"),
        (math.nan, math.nan, "overflow"),
    ],
)
def test_ratio_in_the_table(first, last, shown):
    assert show.ratio({"first": first, "last": last, "end": "trained"}) == shown


def test_verdict_in_the_table():
    assert show.verdict({"end": "trained", "seconds": 3.4, "accuracy": 0.93}) == "**3 s**"
    assert show.verdict({"end": "non-finite", "seconds": 3.4, "accuracy": 0.1}) == "no, 10 % nan"
    assert show.verdict({"end": "given up", "seconds": 15.0, "accuracy": 0.1}) == "no, 10 %"
    assert show.verdict({"end": "not initialised", "why": "no branches"}) == "-"
