"""Terms of one kind and shape measured together, on their device; the numbers come to the host in one copy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from steadygrad.graph._terms import RawTerm
from steadygrad.graph._values import bounded, outside
from steadygrad.graph.targets import MEDIANS, capacity

Measured = dict[str, Tensor]


def measure(group: Sequence[RawTerm]) -> Measured:
    """Sums over the elements of all terms of a group. Elements of weight 0 (ignored, masked) do not count."""
    first = group[0]
    if len(group) == 1 and not any(first.weight.stride()):
        found = _even(first)
    else:
        found = _uneven(group)
    if first.prediction is not None:
        squares = [term.prediction.square().mean() for term in group if term.prediction is not None]
        found["prediction"] = torch.stack(squares).mean()
    if first.normalised is not None:
        found["normalised"] = torch.stack([t.normalised for t in group if t.normalised is not None]).min()
    if first.target is None:
        return found
    target = _joined([term.target for term in group if term.target is not None])
    if first.classes:
        weight = _joined([term.weight for term in group])
        return found | _classes(first, target, weight * (found["elements"] / found["total"]))
    weight = _joined([term.target_weight for term in group if term.target_weight is not None])
    counted = weight != 0
    relative = counted.to(weight.dtype) if first.way.rooted else weight * (counted.sum() / weight.sum())
    return found | _columns(first, target, relative, counted)


def _even(term: RawTerm) -> Measured:
    """All elements have one weight."""
    weight = term.weight[(0,) * term.weight.ndim]
    elements = (weight != 0) * float(term.loss.numel())
    mean = term.loss.mean()
    total = weight * elements
    return {
        "total": total,
        "loss": torch.where(weight != 0, mean * total, torch.zeros_like(mean)),
        "plain": mean,
        "elements": elements,
        "negative": weight < 0,
        "parts": total.reshape(1),
    }


def _uneven(group: Sequence[RawTerm]) -> Measured:
    loss = _joined([term.loss.reshape(-1) for term in group])
    weight = _joined([term.weight.reshape(-1) for term in group])
    counted = weight != 0
    loss = torch.where(counted, loss, torch.zeros_like(loss))
    elements = counted.sum()
    return {
        "total": weight.sum(),
        "loss": (loss * weight).sum(),
        "plain": loss.sum() / elements,
        "elements": elements,
        "negative": (weight < 0).any(),
        "parts": weight.reshape(len(group), -1).sum(1),
    }


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def _classes(first: RawTerm, target: Tensor, relative: Tensor) -> Measured:
    found: Measured = {}
    if target.ndim == 1:
        index = target
        found["counts"] = relative.new_zeros(first.classes).index_add_(0, index, relative)
        hard = torch.ones((), device=target.device)
    else:
        largest, index = target.max(1)
        found["counts"] = (target * relative.unsqueeze(1)).sum(0)
        found["entropy"] = -(torch.special.xlogy(target, target).sum(1) * relative).sum()
        hard = ((largest > 0.999) | (relative == 0)).all()
    if (
        first.way.factor
    ):  # may be the signal of a policy gradient: how much do rows of one class differ in weight
        moments = torch.stack([(relative != 0).to(relative.dtype), relative, relative.square()], 1)
        sums = moments.new_zeros(first.classes, 3).index_add_(0, index, moments)
        within = (sums[:, 2] - sums[:, 1].square() / sums[:, 0].clamp(min=1)).sum()
        found |= {"within": within, "hard": hard, "occurring": (sums[:, 0] > 0).sum()}
        levels = relative.sort().values.diff() > 1e-3 * relative.abs().max()
        found["distinct"] = levels.sum() + (relative != 0).all()
    return found


def _columns(first: RawTerm, target: Tensor, relative: Tensor, counted: Tensor) -> Measured:
    target = torch.where(counted, target, torch.zeros_like(target))
    weight = relative.sum(0)
    mean = (relative * target).sum(0) / torch.where(weight == 0, torch.ones_like(weight), weight)
    big = torch.finfo(target.dtype).max
    found: Measured = {
        "weight": weight,
        "mean": mean,
        "squares": (relative * (target - mean).square()).sum(0),
        "low": torch.where(counted, target, torch.full_like(target, big)).amin(),
        "high": torch.where(counted, target, torch.full_like(target, -big)).amax(),
    }
    limits = bounded(first.maker)[1]
    share = counted.to(target.dtype).mean()
    if first.kind != "bce_logits":
        inside = limits[0] if limits[0] > -np.inf else min(limits[1], 0.0)
        found["outside"] = (
            outside(torch.where(counted, target, torch.full_like(target, inside)), limits) / share
        )
    if first.kind in MEDIANS:
        kept = torch.where(counted, target, torch.full_like(target, torch.nan))
        found["values"] = kept[:: max(1, -(-len(target) // capacity(target.shape[1])))]
    if first.pos_weight is not None:
        found["pos_weight"] = first.pos_weight
    return found


def to_host(measured: Sequence[Measured]) -> list[dict[str, np.ndarray]]:
    """The same numbers as float64 arrays, in one copy per device and type."""
    kinds = {(t.device, t.dtype == torch.float64) for found in measured for t in found.values()}
    host: list[dict[str, np.ndarray]] = [{} for _ in measured]
    for device, double in sorted(kinds, key=str):
        mine = [
            (at, name, t)
            for at, found in enumerate(measured)
            for name, t in found.items()
            if (t.device, t.dtype == torch.float64) == (device, double)
        ]
        kind = torch.float64 if double else torch.float32
        flat = torch.cat([t.reshape(-1).to(kind) for _, _, t in mine]).cpu().double().numpy()  # host sync
        ends = np.cumsum([t.numel() for _, _, t in mine])
        for (at, name, t), end in zip(mine, ends, strict=True):
            host[at][name] = flat[end - t.numel() : end].reshape(t.shape)
    return host
