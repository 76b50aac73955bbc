"""Reductions, softmaxes, losses and attention that fail on what is empty, masked throughout or 0, and their safe forms.

Forms as in :mod:`steadygrad.repair.effects.safe_forms`:

    ========================  =================================================================================
    softmax                   0 in a row that is -inf throughout; log_softmax: of as many equal values
    logsumexp                 the log of the smallest number in such a row
    norm                      0 with a gradient of 0 (also its own derivative) at 0; scaled where squares overflow
    std, var                  0 of a single value
    mean                      0 of no values
    losses                    0 of no elements, or of labels that are all ignored; a logit of -inf costs the log of
                              the smallest number; ``ctc_loss`` with ``zero_infinity``
    attention                 a query that may look nowhere looks everywhere
    ========================  =================================================================================
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from steadygrad.repair.effects.safe_forms import Call, Form

EUCLIDEAN = (None, 2, "fro")  # orders of the norm that is a root of squares


def nothing(x: Tensor) -> Tensor:
    """0 with a history: a backward pass through it gives gradients of 0."""
    return x.reshape(-1)[:0].sum()


def _finite(*values: Any) -> bool:
    return all(bool(v.isfinite().all()) for v in values if isinstance(v, Tensor))  # host sync


def _masked_rows(x: Tensor, dim: Any) -> Tensor | None:
    """Where a row is -inf throughout, with the reduced axes kept; None if there is none."""
    if x.dim() == 0 or x.numel() == 0 or dim is None:
        return None
    dead = (x.detach().amax(dim, keepdim=True)) == -math.inf
    return dead if bool(dead.any()) else None  # host sync


def _softmax(call: Call, x: Tensor, dim: Any = None, *rest: Any, **kwargs: Any) -> Tensor | None:
    dead = _masked_rows(x, dim)
    if dead is None:
        return None
    out = call(torch.where(dead, torch.zeros_like(x), x), dim, *rest, **kwargs)
    return torch.where(dead, torch.zeros_like(out), out)


def _log_softmax(call: Call, x: Tensor, dim: Any = None, *rest: Any, **kwargs: Any) -> Tensor | None:
    dead = _masked_rows(x, dim)
    return None if dead is None else call(torch.where(dead, torch.zeros_like(x), x), dim, *rest, **kwargs)


def _logsumexp(call: Call, x: Tensor, dim: Any, keepdim: bool = False) -> Tensor | None:
    dead = _masked_rows(x, dim)
    if dead is None:
        return None
    out = call(torch.where(dead, torch.zeros_like(x), x), dim, True)
    out = torch.where(dead, torch.full_like(out, math.log(torch.finfo(x.dtype).tiny)), out)
    return out if keepdim else out.sum(dim)  # over axes of length 1


def _norm(
    call: Call, x: Tensor, p: Any = None, dim: Any = None, keepdim: bool = False, **kwargs: Any
) -> Tensor | None:
    p = kwargs.pop("ord", p)
    if (
        p not in EUCLIDEAN
        or x.numel() == 0
        or kwargs.get("dtype") is not None
        or kwargs.get("out") is not None
    ):
        return None
    axes = tuple(range(x.dim())) if dim is None else dim
    dead = (x.detach().abs().amax(axes, keepdim=True)) == 0
    with torch.no_grad():
        plain = torch.linalg.vector_norm(x, dim=axes, keepdim=True)
        large = plain.isinf() & x.isfinite().all() if bool(plain.isinf().any()) else torch.zeros_like(dead)
    trouble = (dead & x.requires_grad) | large
    if not bool(trouble.any()):  # host sync
        return None
    one = torch.ones_like(x)
    out = torch.linalg.vector_norm(torch.where(trouble, one, x), dim=axes, keepdim=True)
    out = torch.where(dead, torch.zeros_like(out), out)
    if bool(large.any()):  # host sync
        size = x.detach().abs().amax(axes, keepdim=True)
        scaled = torch.linalg.vector_norm(torch.where(large, x / size, one), dim=axes, keepdim=True)
        out = torch.where(large, scaled * size, out)
    return out if keepdim else (out.reshape(()) if dim is None else out.squeeze(axes))


def _linalg_norm(
    call: Call, x: Tensor, p: Any = None, dim: Any = None, keepdim: bool = False, **kwargs: Any
) -> Tensor | None:
    p = kwargs.pop("ord", p)
    matrix = x.dim() == 2 if dim is None else isinstance(dim, (tuple, list)) and len(dim) == 2
    return (
        None if p == 2 and matrix else _norm(call, x, p, dim, keepdim, **kwargs)
    )  # 2: largest singular value


def _spread(call: Call, x: Tensor, *rest: Any, **kwargs: Any) -> Any:
    """std and var, of a single value or none."""
    out = call(x, *rest, **kwargs)
    if not isinstance(out, Tensor) or _finite(out) or not _finite(x):
        return out
    return torch.zeros_like(out) + nothing(x)


def _mean(call: Call, x: Tensor, *rest: Any, **kwargs: Any) -> Tensor | None:
    if x.numel():
        return None
    return torch.zeros_like(call(x.detach(), *rest, **kwargs)) + nothing(x)


def _loss(call: Call, x: Tensor, target: Any, *rest: Any, **kwargs: Any) -> Any:
    """A loss whose inputs are finite and whose value is not: it has averaged nothing."""
    out = call(x, target, *rest, **kwargs)
    if not isinstance(out, Tensor) or _finite(out) or not _finite(x, target):
        return out
    return torch.zeros_like(out) + nothing(x) if bool(out.isnan().any()) else out  # host sync


def _likelihood(call: Call, x: Tensor, target: Any, *rest: Any, **kwargs: Any) -> Any:
    """nll_loss and kl_div of log-probabilities: -inf is the log of the smallest number."""
    never = x == -math.inf
    if not bool(never.any()):  # host sync
        return _loss(call, x, target, *rest, **kwargs)
    lowest = math.log(torch.finfo(x.dtype).tiny)
    out = call(x, target, *rest, **kwargs)
    if _finite(out):
        return out
    return _loss(call, torch.where(never, torch.full_like(x, lowest), x), target, *rest, **kwargs)


def _cross_entropy(call: Call, x: Tensor, target: Any, *rest: Any, **kwargs: Any) -> Any:
    out = call(x, target, *rest, **kwargs)
    if not isinstance(out, Tensor) or _finite(out):
        return out
    masked = x == -math.inf
    if not _finite(torch.where(masked, torch.zeros_like(x), x)):
        return out
    classes = 1 if x.dim() > 1 else 0
    with torch.no_grad():
        total = torch.logsumexp(x, classes, keepdim=True)
        total = torch.where(total.isfinite(), total, torch.zeros_like(total))
        lowest = (total + math.log(torch.finfo(x.dtype).tiny)).expand_as(x)
    return _loss(call, torch.where(masked, lowest, x), target, *rest, **kwargs)


def _ctc(call: Call, *args: Any, **kwargs: Any) -> Any:
    out = call(*args, **kwargs)
    if _finite(out) or len(args) > 6:
        return out
    return call(*args, **{**kwargs, "zero_infinity": True})


def _attention(call: Call, *args: Any, **kwargs: Any) -> Any:
    """``multi_head_attention_forward``: its masks joined, and opened for queries that may look nowhere."""
    padding, mask = kwargs.get("key_padding_mask"), kwargs.get("attn_mask")
    query, heads = args[0], args[4]
    if padding is None and mask is None or query.dim() == 2:
        return None
    length, batch = query.shape[:2]
    joined = torch.zeros((), device=query.device, dtype=query.dtype)
    if mask is not None:
        each = _additive(mask, query.dtype)
        joined = joined + (each if each.dim() == 2 else each.view(batch, heads, *each.shape[1:]))
    if padding is not None:
        joined = joined + _additive(padding, query.dtype)[:, None, None, :]
    dead = (joined == -math.inf).all(-1, keepdim=True)
    if not bool(dead.any()):  # host sync
        return None
    joined = torch.where(dead, torch.zeros_like(joined), joined)
    joined = joined.expand(batch, heads, length, joined.shape[-1]).reshape(batch * heads, length, -1)
    return call(*args, **{**kwargs, "key_padding_mask": None, "attn_mask": joined, "is_causal": False})


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype is not torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, -math.inf)


FORMS: dict[str, Form] = {
    "softmax": _softmax,
    "special_softmax": _softmax,
    "log_softmax": _log_softmax,
    "special_log_softmax": _log_softmax,
    "logsumexp": _logsumexp,
    "special_logsumexp": _logsumexp,
    "norm": _norm,
    "linalg_norm": _linalg_norm,
    "linalg_vector_norm": _norm,
    "std": _spread,
    "var": _spread,
    "mean": _mean,
    "cross_entropy": _cross_entropy,
    "nll_loss": _likelihood,
    "kl_div": _likelihood,
    "mse_loss": _loss,
    "l1_loss": _loss,
    "smooth_l1_loss": _loss,
    "huber_loss": _loss,
    "binary_cross_entropy": _loss,
    "binary_cross_entropy_with_logits": _loss,
    "ctc_loss": _ctc,
    "multi_head_attention_forward": _attention,
}
