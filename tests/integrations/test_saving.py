"""Before a trainer's checkpoint is saved: what is refused, and that all ranks refuse together."""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

import steadygrad as sg
from steadygrad.guard.policy import Incident
from steadygrad.integrations.callbacks.saving import Saving

RANK = """
import sys, torch
from steadygrad.integrations.callbacks.saving import Saving

rank, store = int(sys.argv[1]), sys.argv[2]
torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
model = torch.nn.Linear(2, 1)
saving = Saving(model, [torch.optim.SGD(model.parameters(), lr=0.1)])
print(saving.refusal(None))
if rank == 1:
    torch.nn.init.constant_(model.weight, float("nan"))
print(saving.refusal(None))
torch.distributed.destroy_process_group()
"""


def make():
    model = nn.Linear(2, 1)
    model.register_buffer("mask", torch.full((2, 2), -float("inf")).triu(1))
    return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def step(model, optimizer):
    model(torch.ones(4, 2)).square().mean().backward()
    optimizer.step()


def test_what_is_not_finite_is_named_and_a_mask_is_not():
    model, optimizer = make()
    saving = Saving(model, [optimizer])
    step(model, optimizer)
    assert saving.refusal(None) is None
    optimizer.state[model.weight]["momentum_buffer"][0, 0] = float("inf")
    assert saving.refusal(None) == "optimizer0.state[weight].momentum_buffer not finite"


def test_a_run_that_has_blown_up_and_not_recovered_is_not_saved(tmp_path):
    model, optimizer = make()
    with sg.watch(model, optimizer, runs=tmp_path) as run:
        saving = Saving(model, [optimizer])
        step(model, optimizer)
        assert saving.refusal(run) is None
        run._session._guard.policy.incident = Incident(1, "L101", 0, "loss 1 -> 900", 1.0)
        assert saving.refusal(run) == "loss 1 -> 900, and the run has not recovered yet"


@pytest.mark.slow
def test_all_ranks_refuse_together(tmp_path):
    call = [sys.executable, "-c", RANK]
    where = {**os.environ, "GLOO_SOCKET_IFNAME": "lo"}
    ranks = [
        subprocess.Popen(
            [*call, str(rank), str(tmp_path / "store")], stdout=subprocess.PIPE, text=True, env=where
        )
        for rank in (0, 1)
    ]
    try:
        told = [rank.communicate(timeout=120)[0].splitlines() for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert told == [["None", "the state of another rank is not healthy"], ["None", "weight not finite"]]
