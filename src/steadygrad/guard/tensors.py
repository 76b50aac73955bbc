"""What there is to copy of a live tensor: plain strided views of its memory, whatever the tensor is."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

_SPARSE = (torch.sparse_coo, torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc)
_PLAIN_TYPES = (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer)


class Unkeepable(Exception):
    """A tensor that cannot be copied and put back; the message says why."""


@dataclass(frozen=True, slots=True)
class Layout:
    """What two leaves must share for one to be copied into the other."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    layout: torch.layout

    @classmethod
    def of(cls, tensor: Tensor) -> Layout:
        return cls(tuple(tensor.shape), tensor.dtype, tensor.layout)


@contextlib.contextmanager
def plainly() -> Iterator[None]:
    """No graph, no inference tensors, no ``__torch_function__`` of a subclass while we copy."""
    with torch.inference_mode(False), torch.no_grad(), torch._C.DisableTorchFunctionSubclass():
        yield


def leaves(tensor: Tensor) -> list[tuple[str, Tensor]]:
    """The plain tensors that hold the values of ``tensor``, sharing its memory, each with a suffix for its name.

    One tensor for an ordinary tensor; the inner tensors of a wrapper (a DTensor's local shard, the values and
    offsets of a jagged tensor). Expanded tensors are narrowed to the memory that they have. To be called
    inside :func:`plainly`.

    Raises:
        Unkeepable: no memory (meta, lazy, freed by a sharding library), or a kind of tensor that we do not know.

    Example:
        >>> [(suffix, leaf.shape) for suffix, leaf in leaves(torch.zeros(3, 1).expand(3, 1000))]
        [('', torch.Size([3, 1]))]
    """
    if is_lazy(tensor):
        raise Unkeepable("is lazy and has no values yet")
    if type(tensor) not in _PLAIN_TYPES and hasattr(tensor, "__tensor_flatten__"):
        names, _ = tensor.__tensor_flatten__()
        inner = [(name, getattr(tensor, name)) for name in names]
        return [
            (f".{name}{rest}", leaf) for name, t in inner if isinstance(t, Tensor) for rest, leaf in leaves(t)
        ]
    if _dispatches_itself(tensor):
        raise Unkeepable(f"is a {type(tensor).__name__}, a tensor subclass without __tensor_flatten__")
    if tensor.device.type == "meta":
        raise Unkeepable("is on the meta device and has no values")
    if tensor.layout in _SPARSE:
        return [("", tensor)]  # itself: a detached copy would share the values, but not take new indices
    if tensor.layout is not torch.strided:
        raise Unkeepable(f"has the layout {tensor.layout}")
    plain = tensor.detach()
    if plain.is_nested:
        raise Unkeepable("is a nested tensor of the strided kind")
    if plain.numel() and plain.untyped_storage().nbytes() == 0:
        raise Unkeepable("has no memory at present: a sharding library has freed it")
    return [("", _without_repeats(plain))]


def _dispatches_itself(tensor: Tensor) -> bool:
    kind = type(tensor)
    return kind not in _PLAIN_TYPES and kind.__torch_dispatch__ is not torch.Tensor.__torch_dispatch__


def _without_repeats(tensor: Tensor) -> Tensor:
    """The same memory with an expanded dimension narrowed to one entry: torch refuses to write to it expanded."""
    if 0 not in tensor.stride():
        return tensor
    for dim, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
        if stride == 0 and size > 1:
            tensor = tensor.narrow(dim, 0, 1)
    return tensor


def is_simple(leaf: Tensor) -> bool:
    """Whether ``leaf`` can be copied with others in one grouped call."""
    return leaf.layout is torch.strided and not leaf.is_quantized


def memory_key(leaf: Tensor) -> tuple[object, ...]:
    """Equal for two leaves that are the same view of the same memory, so that it is copied once.

    Empty and sparse tensors are told apart by identity: they have no address of their own.
    """
    if not is_simple(leaf) or leaf.numel() == 0:
        return (id(leaf),)
    return (
        leaf.device,
        leaf.data_ptr(),
        leaf.dtype,
        tuple(leaf.shape),
        leaf.stride(),
        leaf.is_conj(),
        leaf.is_neg(),
    )


def buffer_for(leaf: Tensor, like: Tensor | None = None) -> Tensor:
    """A CPU tensor to keep the values of ``leaf`` in: ``like`` if it serves, else a new one (pinned for a GPU)."""
    if not is_simple(leaf):
        return leaf.detach().cpu().clone()
    if like is not None and serves(like, leaf):
        return like
    return new_buffer(leaf, pinned=leaf.device.type == "cuda")


def serves(buffer: Tensor, leaf: Tensor) -> bool:
    """Whether the values of ``leaf`` can be kept in ``buffer``."""
    same = buffer.shape == leaf.shape and buffer.dtype == leaf.dtype and buffer.layout == leaf.layout
    return same and is_simple(buffer)


def new_buffer(like: Tensor, *, pinned: bool) -> Tensor:
    """Memory for the values of ``like``, a strided tensor of any device, on the CPU."""
    if pinned:
        # A machine may refuse more locked memory; ordinary memory then serves, only more slowly.
        with contextlib.suppress(RuntimeError):
            return torch.empty_like(like, device="cpu", pin_memory=True)
    return torch.empty_like(like, device="cpu")


def num_bytes(leaf: Tensor) -> int:
    """Bytes that a copy of ``leaf`` takes."""
    if leaf.layout is torch.sparse_coo:
        return int(leaf._nnz()) * (leaf.element_size() + 8 * leaf.sparse_dim())
    return leaf.numel() * leaf.element_size()
