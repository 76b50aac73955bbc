"""Gradients that can be read and changed in groups, be they dense, sparse, sharded, or of mixed dtypes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def checked(grads: Sequence[Tensor | None]) -> dict[int, Tensor]:
    """The gradients that hold numbers, by position; raise before anything is changed.

    None (no gradient this step) and tensors without elements are left out, so that a position always means
    the same parameter. A sparse gradient is given as the matrix of its rows; it is coalesced in place
    first, which changes how it is stored and not what it is.

    Raises:
        TypeError: not a list, or an entry that is no float gradient.
    """
    if isinstance(grads, Tensor) or not isinstance(grads, Sequence):
        raise TypeError(
            f"grads must be a list of tensors, got {type(grads).__name__}: "
            "write [p.grad for p in model.parameters()], or [g] for one tensor"
        )
    for i, g in enumerate(grads):
        if g is not None:
            _check_gradient(i, g)
    values = {i: _dense(g) for i, g in enumerate(grads) if g is not None}
    return {i: v for i, v in values.items() if v.numel()}


def _check_gradient(position: int, grad: Any) -> None:
    if not isinstance(grad, Tensor):
        raise TypeError(f"grads[{position}] must be a tensor or None, got {type(grad).__name__}")
    if isinstance(grad, torch.nn.Parameter):
        raise TypeError(
            f"grads[{position}] is a Parameter, and a rule changes what it is given: pass p.grad instead"
        )
    if grad.dtype not in FLOATS:
        hint = ": pass torch.view_as_real(p.grad)" if grad.is_complex() else f"; known are {_names(FLOATS)}"
        raise TypeError(f"grads[{position}] has dtype {grad.dtype}{hint}")
    if grad.layout not in (torch.strided, torch.sparse_coo):
        raise TypeError(f"grads[{position}] has layout {grad.layout}: only strided and sparse_coo are known")


def _names(dtypes: Sequence[torch.dtype]) -> str:
    return ", ".join(str(d).removeprefix("torch.") for d in dtypes)


def _dense(grad: Tensor) -> Tensor:
    if not grad.is_sparse:
        return grad
    if not grad.is_coalesced():
        grad.copy_(grad.coalesce())  # host sync: the number of different rows
    return grad._values()


def refuse_sparse(grads: Sequence[Tensor | None], rule: str, why: str) -> None:
    for i, g in enumerate(grads):
        if isinstance(g, Tensor) and g.is_sparse:
            raise TypeError(f"grads[{i}] is sparse, and {rule} {why}: build the embedding with sparse=False")


def _local(value: Tensor) -> Tensor:
    """The part of a sharded tensor (DTensor) that lies here; the tensor itself otherwise."""
    return value.to_local() if hasattr(value, "to_local") else value  # type: ignore[attr-defined]


def _whole(norms: Any) -> Tensor:
    """Norms of sharded tensors (DTensor) as a plain tensor that is the same on every rank."""
    if not hasattr(norms, "full_tensor"):
        return norms
    here = norms.to_local()
    here = torch.where(here.isnan(), math.inf, here)  # a maximum over ranks (gloo's at least) loses a nan
    return type(norms).from_local(here, norms.device_mesh, norms.placements).full_tensor()


def norms_of(values: Mapping[int, Tensor], norm_type: float = 2.0) -> Tensor:
    """The norm of each tensor, stacked on the device of the first; at least float32 whatever the dtype."""
    groups: dict[Any, list[int]] = {}
    for i, v in values.items():
        groups.setdefault((v.device, getattr(v, "device_mesh", None)), []).append(i)
    double = any(v.dtype == torch.float64 for v in values.values())
    dtype = torch.float64 if double else torch.float32  # a bf16 norm keeps 8 bits
    device = next(iter(values.values())).device
    found: dict[int, Tensor] = {}
    for (group_device, mesh), members in groups.items():
        group = [values[i] for i in members]
        if math.isinf(norm_type) and group_device.type == "cpu" and mesh is None:
            norms = torch.stack([_max_abs(g).to(dtype) for g in group])
        else:
            norms = _whole(torch.stack(torch._foreach_norm(group, norm_type, dtype=dtype)))
        found.update(zip(members, norms.to(device).unbind(), strict=True))
    return torch.stack([found[i] for i in values])


def _max_abs(x: Tensor) -> Tensor:
    low, high = torch.aminmax(x)  # a sixth of the time of norm(inf) on CPU; nan stays nan
    return torch.maximum(low.abs(), high.abs())  # not -low, which is -0.0 for a zero gradient


def joint_norm(norms: Tensor, norm_type: float = 2.0) -> Tensor:
    """The norm of all tensors as one vector, from the norm of each."""
    return torch.linalg.vector_norm(norms, norm_type)


def scale_(values: Mapping[int, Tensor], scale: Tensor) -> None:
    """Multiply every tensor by one factor. A factor of 1 leaves every bit, nan and inf too."""
    groups: dict[torch.device, list[Tensor]] = {}
    for v in values.values():
        groups.setdefault(v.device, []).append(_local(v))
    for device, group in groups.items():
        torch._foreach_mul_(group, scale.to(device))


def scale_each_(values: Mapping[int, Tensor], scales: Tensor) -> None:
    """Multiply each tensor by its own factor."""
    tensors = [_local(v) for v in values.values()]
    torch._foreach_mul_(tensors, [s.to(t.device) for s, t in zip(scales.unbind(), tensors, strict=True)])


def clamp_(values: Mapping[int, Tensor], limit: Tensor) -> None:
    """Clamp every entry to [-limit, limit]; a limit of inf leaves every bit, nan and inf too."""
    tensors = [_local(v) for v in values.values()]
    torch._foreach_clamp_max_(tensors, [limit.to(t.device) for t in tensors])
    torch._foreach_clamp_min_(tensors, [-limit.to(t.device) for t in tensors])


def match(grads: Sequence[Tensor | None], others: Sequence[Tensor | None], name: str) -> None:
    """Raise unless ``others`` has one entry for each gradient, of the same shape (None where allowed)."""
    if isinstance(others, Tensor) or not isinstance(others, Sequence):
        raise TypeError(
            f"{name} must be a list with one entry for each gradient, got {type(others).__name__}"
        )
    if len(others) != len(grads):
        raise ValueError(
            f"{name} must have one entry for each gradient: got {len(others)} for {len(grads)} gradients; "
            "pass None for a parameter without a gradient instead of leaving it out"
        )
    for i, (g, o) in enumerate(zip(grads, others, strict=True)):
        if o is not None and not isinstance(o, Tensor):
            raise TypeError(f"{name}[{i}] must be a tensor or None, got {type(o).__name__}")
        if isinstance(g, Tensor) and o is not None and g.shape != o.shape:
            raise ValueError(f"{name}[{i}] has shape {tuple(o.shape)}, and its gradient {tuple(g.shape)}")
