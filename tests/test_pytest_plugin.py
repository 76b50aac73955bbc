"""The pytest fixture fails a unit test with the forecast's reasons, and leaves the random numbers to the others."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from steadygrad.pytest_plugin import assert_steady  # noqa: F401 - as pytest's entry point gives it


@pytest.fixture
def outside():
    """Made before ``assert_steady``, so it is over after it."""
    before = torch.get_rng_state()
    yield
    assert torch.equal(before, torch.get_rng_state())


def net(std):
    model = nn.Sequential(*[m for _ in range(12) for m in (nn.Linear(16, 16), nn.ReLU())])
    for p in model.parameters():
        nn.init.normal_(p, std=std)
    batch = torch.randn(32, 16), torch.randint(0, 16, (32,))
    return model, nn.CrossEntropyLoss(), batch, torch.optim.SGD(model.parameters(), lr=0.01)


def test_a_good_net_passes_on_the_same_random_numbers_each_time(assert_steady):  # noqa: F811
    first = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(first, torch.rand(1))
    assert_steady(*net((2 / 16) ** 0.5), steps=3)


def test_a_net_that_explodes_fails_with_its_reasons(assert_steady):  # noqa: F811
    with pytest.raises(AssertionError, match="init_gain_large"):
        assert_steady(*net(3.0), steps=3)


def test_the_stream_outside_is_where_it_was(outside, assert_steady):  # noqa: F811
    torch.rand(3)


def test_pytest_finds_it_by_itself():
    project = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    assert (
        '[project.entry-points.pytest11]\n"steadygrad.pytest_plugin" = "steadygrad.pytest_plugin"' in project
    )


def test_it_loads_nothing_before_it_is_used():
    """As an entry point it is imported in every pytest of whoever has installed steadygrad."""
    code = (
        "import sys, pytest; before = set(sys.modules); import steadygrad.pytest_plugin;"
        "print('torch' in sys.modules, len(set(sys.modules) - before))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    heavy, number = out.split()
    assert heavy == "False" and int(number) < 10
