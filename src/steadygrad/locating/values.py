"""Looking at the values of tensors: how large, how many are not finite, in which samples."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from steadygrad.graph.walk import has_memory

Value = Literal["nan", "inf", "-inf"]
FLOAT8 = "torch.float8"


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Every floating or complex tensor with values in a nest of lists, tuples and dicts, depth first."""
    if isinstance(value, Tensor):
        if (
            (value.is_floating_point() or value.is_complex())
            and not value.is_meta
            and not value.is_quantized
            and value.layout in (torch.strided, torch.sparse_coo)
        ):
            yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item)


def peak(tensor: Tensor) -> float:
    """Largest absolute value: nan if there is a NaN, inf if there is an infinity and no NaN, 0 if there are no values.

    Example:
        >>> peak(torch.tensor([1.0, -3.0])), peak(torch.tensor([float("nan"), float("inf")])), peak(torch.ones(0))
        (3.0, nan, 0.0)
    """
    values = plain(tensor)
    if values.numel() == 0:
        return 0.0
    return float(torch.linalg.vector_norm(values, math.inf))


def plain(tensor: Tensor) -> Tensor:
    """The values as a real or complex strided tensor without a graph: of a sparse tensor those that are stored.

    Of a sharded tensor (DTensor) the part that lies here. None of a tensor whose memory has been given back, as that of
    a weight of FSDP between its passes.
    """
    tensor = tensor.detach()
    if type(tensor) is not Tensor and hasattr(tensor, "to_local"):
        tensor = tensor.to_local()
    if tensor.layout is torch.sparse_coo:
        tensor = tensor._values()
    elif not has_memory(tensor):
        return torch.zeros(0, dtype=tensor.dtype, device=tensor.device)
    return tensor.float() if str(tensor.dtype).startswith(FLOAT8) else tensor


def storage_key(tensor: Tensor) -> int:
    """What a tensor has in common with its views; unique as long as it lives."""
    if tensor.layout is torch.sparse_coo:
        return id(tensor)
    return tensor.untyped_storage()._cdata


def is_bad(tensor: Tensor | None) -> bool:
    """Whether there is a tensor, and it holds a NaN or an infinity."""
    return tensor is not None and not math.isfinite(peak(tensor))


def bad_count(tensor: Tensor) -> int:
    """How many values are NaN or infinite."""
    return int(not_finite(tensor).sum())


def first_value(tensor: Tensor) -> Value:
    """What the tensor holds that is not finite: a NaN if there is one, else the sign of the first infinity."""
    values = plain(tensor)
    if bool(torch.isnan(values).any()):
        return "nan"
    if values.is_complex():
        return "inf"
    return "inf" if bool((values == math.inf).any()) else "-inf"


def not_finite(tensor: Tensor) -> Tensor:
    """Where the tensor holds a NaN or an infinity, as booleans."""
    return ~torch.isfinite(plain(tensor))


def rows_hit(hit: Tensor) -> tuple[list[int], int]:
    """Positions on axis 0 with a true value, and the length of that axis; ([], 0) without axes or values."""
    if hit.dim() == 0 or hit.numel() == 0:
        return [], 0
    rows = hit.flatten(1).any(1) if hit.dim() > 1 else hit
    found: list[int] = rows.nonzero().flatten().tolist()
    return found, hit.shape[0]


def sample_hit(hit: Tensor) -> int | None:
    """The first position on axis 0 with a true value, if there are others without one."""
    rows, length = rows_hit(hit)
    return rows[0] if rows and len(rows) < length else None


def is_mask(tensor: Tensor) -> bool:
    """Whether the tensor is an additive mask: ``-inf`` beside 0 and nothing else, as attention takes it."""
    values = plain(tensor)
    if values.is_complex():
        return False
    kept = values == 0
    return bool(kept.any()) and bool((kept | (values == -math.inf)).all())


def is_zero_one(tensor: Tensor) -> bool:
    """Whether every value is 0 or 1, and both occur: a mask whose log is an additive mask."""
    values = plain(tensor)
    zeros, ones = (values == 0), (values == 1)
    return bool((zeros | ones).all()) and bool(zeros.any()) and bool(ones.any())
