"""Copy and finite check in one pass: every byte is copied, every bad tensor is found, once each."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from steadygrad._foreach import nonfinite
from steadygrad.guard import blockwise
from steadygrad.guard.blockwise import copy_checked_
from tests.guard.kit import equal


@pytest.fixture(params=[16, 100, 1 << 20])
def block(request, monkeypatch):
    monkeypatch.setattr(blockwise, "BLOCK", request.param)
    return request.param


def zoo():
    torch.manual_seed(0)
    return [
        torch.randn(7, 5),
        torch.randn(3, dtype=torch.float64),
        torch.randn(33).bfloat16(),
        torch.randn(33).half(),
        torch.randn(4, 6).t(),
        torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        torch.randn(4, 6)[:, ::2],
        torch.randn(9, dtype=torch.complex64).conj(),
        torch.randn(3).to(torch.float8_e4m3fn),
        torch.arange(50),
        torch.tensor([True, False]),
        torch.zeros(0, 4),
        torch.tensor(3.0),
        torch.full((2,), 3e38),  # its norm overflows
    ]


def copies_of(sources):
    return [torch.empty_like(s).copy_(torch.zeros_like(s)) for s in sources]


def test_copies_are_equal_bit_for_bit(block):
    sources = zoo()
    targets = copies_of(sources)
    assert copy_checked_(targets, sources) == []
    assert all(
        torch.equal(t, s) if s.is_complex() else equal(t, s) for t, s in zip(targets, sources, strict=True)
    )


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("place", [0, -1])
def test_every_bad_tensor_is_found_wherever_it_is_bad(value, place, block):
    for i, clean in enumerate(zoo()):
        if clean.numel() == 0 or not (clean.is_floating_point() or clean.is_complex()) or clean.itemsize == 1:
            continue
        sources = zoo()
        sources[i].resolve_conj()
        spoiled = sources[i].clone(memory_format=torch.preserve_format)
        spoiled[(place,) * spoiled.dim()] = value
        sources[i] = spoiled
        targets = copies_of(sources)
        assert copy_checked_(targets, sources) == [i] == nonfinite(sources) == nonfinite(targets)


class Counting(TorchDispatchMode):
    """Elements that went through the two grouped operations, in the order of the calls."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name == "_foreach_norm":
            self.calls.append(("norm", sum(t.numel() for t in args[0])))
        elif name == "_foreach_copy_":
            self.calls.append(("copy", sum(t.numel() for t in args[1])))
        return func(*args, **(kwargs or {}))


def test_each_block_is_read_and_then_copied_and_none_is_larger_than_a_block(monkeypatch):
    monkeypatch.setattr(blockwise, "BLOCK", 400)
    sources = [torch.ones(1000), *[torch.ones(10)] * 7, torch.ones(30, 30)]
    with Counting() as counting:
        copy_checked_(copies_of(sources), sources)
    norms, copies = counting.calls[::2], counting.calls[1::2]
    assert {kind for kind, _ in norms} == {"norm"} and [n for _, n in norms] == [n for _, n in copies]
    assert sum(n for _, n in norms) == 1970 and max(n for _, n in norms) < 200


def test_nothing_to_copy():
    assert copy_checked_([], []) == []
