"""A run on record, for the reports that sinks are given."""

import pytest
import torch

import steadygrad as sg


@pytest.fixture(scope="session")
def recorded(tmp_path_factory):
    """The directory of a finished run of five steps."""
    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with sg.watch(model, optimizer, runs=tmp_path_factory.mktemp("runs"), name="small") as run:
        for _ in range(5):
            optimizer.zero_grad()
            model(torch.ones(8, 4)).square().mean().backward()
            optimizer.step()
    return run.run_dir
