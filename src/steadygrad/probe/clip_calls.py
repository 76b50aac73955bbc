"""The user's clip as it is seen: told with the gradients still raw, at little more than its own cost.

``clip_grad_norm_`` reads all gradients for their norms, then multiplies them by a factor, which is 1 where nothing is
clipped. Watching would read them once more for the raw norms. It need not, and the bits stay those of torch:

- The norms are taken here with torch's own calls, and shared with the probe. The first time for a device and a dtype
  torch's function runs beside it; unless both agree bit for bit, it does so ever after and nothing is shared.
- The multiplication by exactly 1 is left out on a CPU; the gradients count as written to all the same.

Only plain float32 and float64 gradients are treated so, and only a norm of type 2; all else is torch's own call.

The norms are *not* kept for the step that follows, which takes its own. Between clip and step a script can write to a
gradient in ways that leave no mark on it (through ``.data``, numpy, a kernel of its own), and an update that is not
finite must never be applied: the step is judged by what lies in the gradients when it begins. So a watched clip that
does not bite costs two reads of the gradients, one that does also the multiplication.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from steadygrad.probe.listening import listening
from steadygrad.probe.shared_norms import SharedNorms, at_hand, can_share

SUBNORMAL = 1e-310  # a double; 0 to a thread under torch.set_flush_denormal(True)
_agrees: dict[
    tuple[str, torch.dtype], bool
] = {}  # whether torch's total norm was ours, where both were taken


def seen_clip(original: Any) -> Any:
    """Around a function that clips the gradients of some parameters to a bound."""

    def clip(parameters: Any, max_norm: Any, *args: Any, **kwargs: Any) -> Any:
        return original(_told(parameters, max_norm), max_norm, *args, **kwargs)

    return clip


def seen_norm(original: Any) -> Any:
    """Around ``_get_total_norm``, of which ``clip_grad_norm_`` asks the joint norm of the gradients."""

    def total_norm(
        tensors: Any, norm_type: Any = 2.0, error_if_nonfinite: bool = False, foreach: bool | None = None
    ) -> Any:
        if torch.compiler.is_dynamo_compiling() or not listening():
            return original(tensors, norm_type, error_if_nonfinite, foreach)
        if norm_type == 2 and foreach is not False and can_share(tensors):
            total = _shared(tensors, lambda: original(tensors, norm_type, False, foreach))
            if total is not None and not (error_if_nonfinite and not math.isfinite(total)):
                return total
        return original(tensors, norm_type, error_if_nonfinite, foreach)

    return total_norm


def seen_factor(original: Any) -> Any:
    """Around ``_clip_grads_with_norm_``, with which ``clip_grad_norm_`` multiplies.

    It is called by ``clip_grad_norm_`` through its module: also caught where that name was imported before us.
    """

    def clip(parameters: Any, max_norm: Any, total_norm: Any, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_dynamo_compiling():
            return original(_told(parameters, max_norm), max_norm, total_norm, *args, **kwargs)
        norms = vars(total_norm).pop("_steadygrad_norms", None) if isinstance(total_norm, Tensor) else None
        with at_hand(norms):
            parameters = _told(parameters, max_norm)
        if norms is not None:
            grads = [p.grad for p in parameters if p.grad is not None]
            if norms.are_of(grads) and _factor_is_nothing(grads, float(max_norm), total_norm):
                for grad in grads:
                    increment_version(grad)
                return None
        return original(parameters, max_norm, total_norm, *args, **kwargs)

    return clip


def _told(parameters: Any, max_norm: Any) -> Any:
    """Tell of the clip; returns the parameters, which may have been a generator."""
    told = listening()
    if told:
        parameters = [parameters] if isinstance(parameters, Tensor) else list(parameters)
        for joinpoints in told:
            joinpoints.listener.clipped(parameters, float(max_norm))
    return parameters


@torch.no_grad()
def _shared(grads: list[Tensor], torchs_own: Callable[[], Tensor]) -> Tensor | None:
    """The joint norm by the calls of ``_get_total_norm``, with the norms it is made of; None if that is not sure."""
    kind = grads[0].device.type, grads[0].dtype
    if not _agrees.get(kind, True):
        return None
    norms = torch._foreach_norm(grads, 2.0)
    total = torch.linalg.vector_norm(torch.stack(norms), 2.0)
    if kind not in _agrees:
        own = torchs_own()
        if not own.isfinite():  # host sync, once
            return None  # this tells nothing: nan is not equal to nan
        _agrees[kind] = own.dtype == total.dtype and torch.equal(own, total)
        if not _agrees[kind]:
            return None
    total._steadygrad_norms = SharedNorms(grads, norms)  # type: ignore[attr-defined]
    return total


@torch.no_grad()
def _factor_is_nothing(grads: Sequence[Tensor], max_norm: float, total_norm: Tensor) -> bool:
    """Whether ``_clip_grads_with_norm_`` would multiply finite gradients on a CPU by exactly 1, to no effect at all."""
    return (
        total_norm.device.type == "cpu"
        and bool(torch.clamp(max_norm / (total_norm + 1e-6), max=1.0) == 1.0)  # nan and inf are not
        and SUBNORMAL * 1.0 != 0.0  # else multiplying flushes
        and not any(map(torch._debug_has_internal_overlap, grads))  # else torch raises
    )
