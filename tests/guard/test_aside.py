"""Copies from a GPU on a stream of their own. What needs a GPU is skipped without one."""

import pytest
import torch

from steadygrad.guard import aside
from steadygrad.guard.aside import AsideCopies, has_room

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def test_room_is_a_quarter_of_what_is_free():
    assert has_room(25, 100) and not has_room(26, 100) and has_room(0, 0) and not has_room(1, 0)


def test_nothing_under_way_is_complete_at_once():
    copies = AsideCopies()
    copies.copy_([], [])
    copies.wait()


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize("share", [0.25, 0.0])  # staged on the GPU, or carried by the training's own stream
def test_values_are_those_of_the_moment_whatever_is_written_next(share, monkeypatch):
    monkeypatch.setattr(aside, "FREE_SHARE", share)
    live = [torch.randn(4_000_000, device="cuda") for _ in range(8)]
    before = [t.cpu() for t in live]
    kept = [torch.empty(t.shape, pin_memory=True) for t in live]
    copies = AsideCopies()
    copies.copy_(kept, live)
    for t in live:
        t.data.fill_(torch.nan)  # at once, past autograd's counters
    copies.wait()
    assert all(torch.equal(k, b) for k, b in zip(kept, before, strict=True))


@gpu
@pytest.mark.gpu
def test_copying_does_not_wait_for_the_gpu():
    live = [torch.randn(1000, device="cuda")]
    kept = [torch.empty(1000, pin_memory=True)]
    torch.cuda.set_sync_debug_mode("error")
    try:
        copies = AsideCopies()
        copies.copy_(kept, live)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    copies.wait()
    assert torch.equal(kept[0], live[0].cpu())
