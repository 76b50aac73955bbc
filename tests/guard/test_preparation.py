"""Memory that is made ready in a thread: it fits, it is really there, and a failure costs nothing."""

import os
import sys

import pytest
import torch

from benchmarks.speed_state import resident_bytes
from steadygrad.guard import preparation
from steadygrad.guard.preparation import Preparation
from steadygrad.guard.snapshot import Snapshot
from tests.guard.kit import equal, picture, training


def leaves():
    return {
        "matrix": torch.randn(4, 6),
        "turned": torch.randn(4, 6).t(),
        "images": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "half": torch.randn(3).bfloat16(),
        "steps": torch.tensor(3),
        "empty": torch.zeros(0, 4),
    }


def test_buffers_fit_their_leaves():
    made = Preparation(leaves())
    for name, buffer in made.buffers().items():
        leaf = leaves()[name]
        assert (buffer.shape, buffer.dtype, buffer.stride()) == (leaf.shape, leaf.dtype, leaf.stride())
        assert buffer.device.type == "cpu"
    assert made.done and list(made.buffers()) == list(leaves())
    assert made.num_bytes == sum(leaf.nbytes for leaf in leaves().values())


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_pages_are_there_when_it_is_done():
    size = 80 << 20
    before = resident_bytes()
    untouched = torch.empty(size, dtype=torch.uint8)
    assert resident_bytes() - before < size // 2  # else the next line proves nothing
    held = Preparation({"large": untouched}).buffers()
    assert resident_bytes() - before > 0.95 * size and len(held) == 1


def test_memory_that_cannot_be_had_is_asked_for_again_by_the_take(monkeypatch):
    def none(*args, **kwargs):
        raise RuntimeError("can't allocate memory: you tried to allocate 99 bytes")

    monkeypatch.setattr(preparation, "new_buffer", none)
    run = training("adam")
    run.steps(1)
    state, snapshot = run.state(), Snapshot()
    snapshot.prepare(state.capture())
    snapshot.take(state, 1)
    assert snapshot.memory_bytes == state.memory_bytes()


def test_prepared_snapshot_takes_the_memory_and_restores_as_any_other():
    run = training("adam")
    run.steps(2)
    state, snapshot = run.state(), Snapshot()
    capture = state.capture()
    assert snapshot.missing_bytes(capture) == state.memory_bytes()
    snapshot.prepare(capture)
    assert snapshot.step is None and snapshot.memory_bytes == state.memory_bytes()
    addresses = {b.data_ptr() for b in snapshot._preparation.buffers().values()}
    assert snapshot.missing_bytes(capture) == 0 and not snapshot.preparing
    before = picture(run)
    snapshot.take(state, 2)
    assert {t.data_ptr() for t in snapshot.tensors()} == addresses and snapshot.is_finite()
    run.steps(3)
    snapshot.restore(state, rng=False)
    assert equal(picture(run), before)


def test_what_does_not_serve_any_more_is_given_back():
    run = training("adam")
    run.steps(1)
    state, snapshot = run.state(), Snapshot()
    snapshot.take(state, 1)
    run.model.register_buffer("mask", torch.zeros(1000))
    snapshot.prepare(state.capture())
    assert snapshot.memory_bytes == state.memory_bytes()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forked_child_does_not_wait_for_a_thread_that_it_does_not_have(monkeypatch):
    import threading

    gate = threading.Event()
    monkeypatch.setattr(preparation, "_touch_", lambda buffer: gate.wait(30))
    made = Preparation(leaves())
    child = os.fork()
    if child == 0:
        os._exit(0 if made.done and made.buffers() is not None else 1)
    gate.set()
    assert os.waitpid(child, 0)[1] == 0 and list(made.buffers()) == list(leaves())
