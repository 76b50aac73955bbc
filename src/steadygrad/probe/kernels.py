"""Sum of squares, largest entry and number of non-finite entries of many tensors, in one read of them.

`statistics` is a Triton kernel for NVIDIA GPUs, `torch_statistics` the same with torch alone, on any device. Which of
them is the faster on a device is measured where they are used, see `steadygrad.probe.chosen_kernel`.

NOT MEASURED ON A GPU YET. The kernel was run in Triton's interpreter on a CPU, which checks what it computes, and
compiled for GPUs without one. How fast it is, whether it waits for nothing, and its caches under a real stream are
unproven. Nothing in the package uses it so far.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import nullcontext
from functools import cache
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

DTYPES = frozenset({torch.float32, torch.bfloat16, torch.float16})
PLAIN = frozenset({Tensor, torch.nn.Parameter})
CHUNK = 65536  # entries for one program, as in torch's multi_tensor_apply
BLOCK = 2048  # entries of a chunk that a program holds at a time: two loads of 16 bytes per thread in float32
WARPS = 8
VECTOR = 16  # bytes in the widest load of a GPU
TABLES = 16  # layouts kept on the device, for several optimizers on several streams

tl: Any = (
    None  # triton.language; the kernels below find it among the globals, once `_kernels` has imported it
)


class Statistics(NamedTuple):
    """What a list of n tensors holds, as tensors on their device."""

    square_sums: Tensor  # (n,) float32, over the finite entries; inf if they overflow, never nan
    max_abs: Tensor  # (n,) float32, over the finite entries; 0 if there are none
    num_nonfinite: Tensor  # (n,) int64: entries that are NaN or an infinity

    @property
    def norms(self) -> Tensor:
        """(n,) float32: L2 norms, inf where an entry is not finite, and where the squares overflow."""
        return self.square_sums.sqrt().masked_fill(self.num_nonfinite > 0, float("inf"))


@torch.no_grad()
def torch_statistics(tensors: Sequence[Tensor]) -> Statistics:
    """Sum of squares, largest absolute value and number of non-finite entries of each tensor, with torch alone.

    It is the reference: one tensor at a time, in plain words. It reads each several times and holds two
    copies of it in float32 meanwhile. ``torch._foreach_norm`` cannot take its place: a single NaN hides the
    other entries from it, and on a CPU it adds one after the other in float32: of 25 million normal values the
    sum of squares comes out 0.3 % too small.

    Args:
        tensors: dense, float32, bfloat16 or float16, all of one dtype and device; of any shapes and strides.

    Returns:
        See `Statistics`; squares are taken and summed in float32. Nothing is copied to the host.

    Entries that are not finite are counted, and left out of the other two. Finite entries beyond 1.8e19, or sums
    beyond 3.4e38, make ``square_sums`` inf with ``num_nonfinite`` 0: take such a norm again in float64. Squares
    below 1e-45 count as 0.

    Example:
        >>> found = torch_statistics([torch.tensor([3.0, -4.0]), torch.tensor([2.0, float("nan")])])
        >>> found.square_sums.tolist(), found.max_abs.tolist(), found.num_nonfinite.tolist()
        ([25.0, 4.0], [4.0, 2.0], [0, 1])
        >>> found.norms.tolist()
        [5.0, inf]
    """
    _check(tensors)
    if not tensors:
        return _nothing(torch.device("cpu"))
    each = [_of_one(tensor) for tensor in tensors]
    return Statistics(*(torch.stack(column) for column in zip(*each, strict=True)))


@torch.no_grad()
def statistics(tensors: Sequence[Tensor]) -> Statistics:
    """Sum of squares, largest absolute value and number of non-finite entries of each tensor, in one read of them.

    Two launches, however many tensors: one program per chunk of 65,536 entries, then one per tensor that adds up
    its chunks, always in the same order. Not measured on a GPU yet.

    Args:
        tensors: as for `torch_statistics`, on a CUDA device (on any, in Triton's interpreter). The kernel reads
            them where they are; one that is neither dense nor a permutation of it (``x[::3]``, ``x.expand(5)``) is
            copied first. If any of them begins at no multiple of 16 bytes, all are read in narrower loads.

    Returns:
        As `torch_statistics`, on the stream that is current. ``max_abs`` and ``num_nonfinite`` are equal to its
        (on entries below 1.2e-38 a GPU may differ), ``square_sums`` to 1e-5, relative, up to 5e9 entries: the
        order of the additions is another (1e-7 in the interpreter). Nothing is copied to the host and nothing
        waited for, except for the compiler at the first call for a dtype, and for the first pinned memory.
        8 bytes per tensor go to the device where their addresses are others than in the call before, as with
        ``zero_grad(set_to_none=True)``.

    Non-finite entries, overflow and underflow: as in `torch_statistics`.

    Raises:
        ValueError: tensors that the kernel cannot read; see `can_run`.
        ImportError: without Triton.

    Example:
        >>> can_run([torch.ones(3)])  # needs a GPU
        False
    """
    _check(tensors)
    if tensors and not tensors[0].is_cuda and not _interpreted():
        raise ValueError(
            f"the kernel reads tensors on a CUDA device, got {tensors[0].device}: use torch_statistics"
        )
    if not tensors:
        return _nothing(torch.device("cpu"))
    read_chunk, add_chunks = _kernels()
    device, dtype, n = tensors[0].device, tensors[0].dtype, len(tensors)
    values = [tensor if _is_dense(tensor) else tensor.contiguous() for tensor in tensors]
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        table, addresses, aligned = _on_device(values, device)
        partial = torch.empty(3, table.num_chunks, dtype=torch.float32, device=device)
        found = Statistics(
            torch.empty(n, dtype=torch.float32, device=device),
            torch.empty(n, dtype=torch.float32, device=device),
            torch.empty(n, dtype=torch.int64, device=device),
        )
        if table.num_chunks:
            read_chunk[(table.num_chunks,)](
                addresses,
                table.layout,
                partial,
                n,
                table.num_chunks,
                ELEMENT=getattr(tl, str(dtype).removeprefix("torch.")),
                ALIGNED=aligned,
                CHUNK=CHUNK,
                BLOCK=BLOCK,
                num_warps=WARPS,
                enable_fp_fusion=True,  # the default of now, said aloud: Triton 3.9 warns where it is not
            )
        add_chunks[(n,)](
            table.layout, partial, *found, n, table.num_chunks, BLOCK=1024, enable_fp_fusion=True
        )
    return found


def can_run(tensors: Sequence[Tensor]) -> bool:
    """Whether `statistics` can read these: plain, of one dtype and NVIDIA GPU of 2020 or later, with Triton installed.

    Not while a CUDA graph is captured, which would keep the addresses of this step, nor in ``torch.compile``.

    Example:
        >>> can_run([torch.ones(3)]), can_run([])
        (False, False)
    """
    if not tensors or not tensors[0].is_cuda or torch.compiler.is_compiling():
        return False
    try:
        _check(tensors)
    except ValueError:
        return False
    return (
        torch.version.hip is None
        and _has_triton()
        and _capability(tensors[0].device) >= (8, 0)
        and not torch.cuda.is_current_stream_capturing()
    )


class ChunkTable(NamedTuple):
    """How a list of tensors is cut into chunks, each of one tensor. Arrays of int64."""

    numels: np.ndarray  # (n,) entries of each tensor
    starts: np.ndarray  # (n + 1,) first chunk of each tensor; the last is the number of chunks
    owners: np.ndarray  # (chunks,) tensor of each chunk


def chunk_table(numels: Sequence[int], chunk: int = CHUNK) -> ChunkTable:
    """Cut tensors of ``numels`` entries into chunks of ``chunk``; the last of each tensor may be shorter.

    Example:
        >>> table = chunk_table([5, 0, 4], chunk=4)
        >>> table.starts.tolist(), table.owners.tolist()
        ([0, 2, 2, 3], [0, 0, 2])
    """
    sizes = np.array(numels, dtype=np.int64)
    counts = -(-sizes // chunk)
    starts = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(counts)])
    return ChunkTable(sizes, starts, np.repeat(np.arange(len(sizes)), counts))


class _Table:
    """The chunks of one list of sizes on the device, and the addresses they were last read from."""

    def __init__(self, numels: tuple[int, ...], device: torch.device) -> None:
        cut = chunk_table(numels)
        self.num_chunks = len(cut.owners)
        self.layout = _sent(np.concatenate(cut), device)
        self._known: tuple[tuple[int, ...], Tensor, bool] = ((), self.layout, True)

    def addresses(self, pointers: tuple[int, ...]) -> tuple[Tensor, bool]:
        """The addresses on the device, sent there if they are new, and whether all are multiples of 16 bytes."""
        known, sent, aligned = self._known
        if known != pointers:
            sent = _sent(np.array(pointers, dtype=np.int64), self.layout.device)
            aligned = all(pointer % VECTOR == 0 for pointer in pointers)
            self._known = (pointers, sent, aligned)
        return sent, aligned


# By device, stream and sizes. What was sent on one stream may not have arrived for a kernel on another.
_tables: dict[tuple[torch.device, int, tuple[int, ...]], _Table] = {}


def _on_device(values: list[Tensor], device: torch.device) -> tuple[_Table, Tensor, bool]:
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    key = (device, stream, tuple(value.numel() for value in values))
    table = _tables.get(key)
    if table is None:
        if len(_tables) >= TABLES:
            _tables.clear()
        table = _tables[key] = _Table(key[2], device)
    return table, *table.addresses(tuple(value.data_ptr() for value in values))


def _sent(numbers: np.ndarray, device: torch.device) -> Tensor:
    """An array on the device, without waiting. torch does not reuse the pinned memory before it has been copied."""
    host = torch.from_numpy(numbers)
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host


def _check(tensors: Sequence[Tensor]) -> None:
    """Raise if these are not plain dense tensors of one device and of one dtype that is known."""
    if not tensors:
        return
    dtype, device = tensors[0].dtype, tensors[0].device
    for tensor in tensors:
        if type(tensor) not in PLAIN:
            raise ValueError(f"tensors must be plain, got {type(tensor).__name__}: pass its local values")
        if tensor.dtype is not dtype or tensor.device != device:
            raise ValueError(
                f"tensors must be of one dtype and device, got {dtype} on {device}"
                f" and {tensor.dtype} on {tensor.device}"
            )
        if tensor.layout is not torch.strided:
            raise ValueError(f"tensors must be dense, got {tensor.layout}: pass its values")
    if dtype not in DTYPES or device.type == "meta":
        raise ValueError(f"tensors must have values of float32, bfloat16 or float16, got {dtype} on {device}")


def _is_dense(tensor: Tensor) -> bool:
    """Whether its entries are ``numel`` neighbours in memory, in whatever order."""
    if tensor.is_contiguous():
        return True
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def _of_one(tensor: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    finite = tensor.isfinite()
    kept = torch.where(finite, tensor, 0).float()
    largest = kept.abs().amax() if kept.numel() else kept.new_zeros(())
    return kept.square().sum(), largest, (~finite).sum()  # sum() adds in pairs, unlike a norm on a CPU


def _nothing(device: torch.device) -> Statistics:
    floats = torch.zeros(0, dtype=torch.float32, device=device)
    return Statistics(floats, floats.clone(), torch.zeros(0, dtype=torch.int64, device=device))


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


@cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


@cache
def _kernels() -> tuple[Any, Any]:
    """The two kernels, to be compiled at their first call. Triton is imported here and nowhere else."""
    global tl
    import triton  # not at the top: it is large, and most machines have none
    import triton.language

    tl = triton.language
    counts = ["num_tensors", "num_chunks"]  # else they would be compiled anew for 1 and for multiples of 16
    return (
        triton.jit(_read_chunk, do_not_specialize=counts),
        triton.jit(_add_chunks, do_not_specialize=counts),
    )


# The layout is that of `ChunkTable`, its three arrays in a row.


def _read_chunk(
    addresses,  # (num_tensors,) int64
    layout,  # int64
    partial,  # (3, num_chunks) float32, written
    num_tensors,
    num_chunks,
    ELEMENT: tl.constexpr,
    ALIGNED: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    chunk = tl.program_id(0)
    owner = tl.load(layout + 2 * num_tensors + 1 + chunk)
    first = (chunk - tl.load(layout + num_tensors + owner)) * CHUNK  # int64
    length = tl.minimum(tl.load(layout + owner) - first, CHUNK).to(tl.int32)
    values = tl.load(addresses + owner).to(tl.pointer_type(ELEMENT))
    if ALIGNED:
        values = tl.multiple_of(values, 16)
    values += first
    lanes = tl.arange(0, BLOCK)
    squares = tl.zeros([BLOCK], dtype=tl.float32)
    largest = tl.zeros([BLOCK], dtype=tl.float32)
    num_nonfinite = tl.zeros([BLOCK], dtype=tl.int32)
    whole = length // BLOCK * BLOCK
    for at in range(0, whole, BLOCK):  # no mask here: with one, each entry would be loaded by itself
        x = tl.load(values + at + lanes).to(tl.float32)
        finite = tl.abs(x) < float("inf")  # false for NaN
        x = tl.where(finite, x, 0.0)
        squares += x * x
        largest = tl.maximum(largest, tl.abs(x))
        num_nonfinite += tl.where(finite, 0, 1)
    x = tl.load(values + whole + lanes, mask=lanes < length - whole, other=0.0).to(tl.float32)
    finite = tl.abs(x) < float("inf")
    x = tl.where(finite, x, 0.0)
    squares += x * x
    largest = tl.maximum(largest, tl.abs(x))
    num_nonfinite += tl.where(finite, 0, 1)
    tl.store(partial + chunk, tl.sum(squares, axis=0))
    tl.store(partial + num_chunks + chunk, tl.max(largest, axis=0))
    # At most 65,536: exact in float32.
    tl.store(partial + 2 * num_chunks + chunk, tl.sum(num_nonfinite, axis=0).to(tl.float32))


def _add_chunks(
    layout,  # int64
    partial,  # (3, num_chunks) float32
    square_sums,  # (num_tensors,) float32, written
    max_abs,  # (num_tensors,) float32, written
    num_nonfinite,  # (num_tensors,) int64, written
    num_tensors,
    num_chunks,
    BLOCK: tl.constexpr,
):
    tensor = tl.program_id(0)
    start = tl.load(layout + num_tensors + tensor)
    stop = tl.load(layout + num_tensors + tensor + 1)
    lanes = tl.arange(0, BLOCK)
    squares = tl.zeros([BLOCK], dtype=tl.float32)
    largest = tl.zeros([BLOCK], dtype=tl.float32)
    count = tl.zeros([BLOCK], dtype=tl.int64)
    for at in range(start, stop, BLOCK):
        mine = at + lanes < stop
        squares += tl.load(partial + at + lanes, mask=mine, other=0.0)
        largest = tl.maximum(largest, tl.load(partial + num_chunks + at + lanes, mask=mine, other=0.0))
        count += tl.load(partial + 2 * num_chunks + at + lanes, mask=mine, other=0.0).to(tl.int64)
    tl.store(square_sums + tensor, tl.sum(squares, axis=0))
    tl.store(max_abs + tensor, tl.max(largest, axis=0))
    tl.store(num_nonfinite + tensor, tl.sum(count, axis=0))
