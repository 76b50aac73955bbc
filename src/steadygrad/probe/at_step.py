"""What a step works with: the norms of its gradients, the GradScaler's factor, the learning rate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor
from torch.optim import Optimizer

from steadygrad.clip._told import fold_of
from steadygrad.probe.host import Pending, post
from steadygrad.probe.norms import gradient_norms
from steadygrad.records import NAN
from steadygrad.schedule import effective_lr


def norms_at_step(
    optimizer: Optimizer, tensors: Sequence[Tensor], posted: Pending, whole: bool
) -> tuple[np.ndarray, np.ndarray, float]:
    """Norms of the gradients at the step, before and after a folded clip: the clip's own, or taken now.

    A folded clip steps right after its norms, in one call: nothing of the user's runs between, unless he has put a
    wrapper of his own around ``step``. ``posted``: what the optimizer will divide by, a GradScaler's or the clip's; it
    is asked for behind the norms, which were posted later, and given back last. ``whole``: see `Probe`.
    """
    fold = fold_of(optimizer)
    known = fold.raw_norms(tensors) if fold is not None else None  # host sync
    if fold is not None and known is not None:
        raw, scale = np.array(known), fold.scale.item()
        return raw, raw if scale == 1 else raw * scale, posted.numbers()[0]
    norms = gradient_norms([p.grad for p in tensors], whole=whole)  # host sync
    factor = posted.numbers()[0]
    applied = norms / factor if factor != 1.0 else norms
    return norms if fold is not None and fold.folded else applied, applied, factor


def first_rate(optimizer: Optimizer) -> float:
    """The learning rate of the first group with all factors on it; nan if there is none."""
    return float(effective_lr(optimizer)[0]) if "lr" in optimizer.param_groups[0] else NAN


def scale_of(scaler: Any) -> Pending:
    """The factor of a GradScaler, without waiting for it."""
    scale = getattr(scaler, "_scale", None)  # on the device; there is none before the first loss is scaled
    if isinstance(scale, Tensor) and scaler.is_enabled():
        return post([scale.reshape(())])
    return Pending([float(scaler.get_scale())])
