"""One look at a part of the weights: what was read before and after a step, and the record of each piece from it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from steadygrad._foreach import nonfinite
from steadygrad.probe.moments import (
    Moment,
    adam_rms,
)
from steadygrad.probe.reductions import SAFE, Posted, Readings
from steadygrad.probe.slices import Piece, at_hand
from steadygrad.records import NAN, TensorStats


@dataclass
class Opened:
    """What ``before`` has read of one step, still on the device. Keys are places in ``pieces``."""

    pieces: list[Piece]
    params: list[Tensor]  # one per piece
    numbers: Sequence[int]
    turn: int
    grad_scale: float
    most: int  # elements of each piece for the mean of g^2 / v
    read: Readings = field(default_factory=Readings)
    grads: dict[int, Tensor] = field(default_factory=dict)  # the sampled rows of dense gradients
    lows: dict[int, Tensor] = field(default_factory=dict)
    highs: dict[int, Tensor] = field(default_factory=dict)


@dataclass
class Look:
    """A part that was looked at, before and after a step. Its numbers may still be on their way.

    To be finished before the optimizer steps again: the weights and the state are read once more where a norm says
    that something is not finite.
    """

    seen: Opened
    weights: list[Tensor | None]  # of each piece, after the step
    states: list[dict[str, Any]]
    floats: dict[tuple[int, tuple[str, int]], Tensor]  # piece and name -> what was looked at of the state
    moments: dict[int, Moment]
    applied: bool
    posted: Posted

    def ready(self) -> bool:
        """Whether :meth:`finish` would not wait."""
        return self.posted.ready()

    @torch.no_grad()
    def finish(self, applied: bool = True) -> tuple[TensorStats, ...]:
        """The numbers of each piece. ``applied``: False where it has turned out since that the step was not taken."""
        numbers = self.posted.numbers()  # host sync
        broken = _nonfinite_pieces(self.floats, numbers["state"])
        applied = applied and self.applied
        return tuple(
            _stats(
                i,
                self.seen,
                weight,
                self.states[i],
                numbers,
                self.moments.get(i) if applied else None,
                applied=applied,
                compared=self.applied,
                broken=i in broken,
            )
            for i, weight in enumerate(self.weights)
        )


def _stats(
    i: int,
    seen: Opened,
    weight: Tensor | None,
    state: dict[str, Any],
    numbers: dict[str, dict[Any, float]],
    moment: Moment | None,
    *,
    applied: bool,
    compared: bool,
    broken: bool,
) -> TensorStats:
    """The record of one piece from its numbers. ``compared``: it was subtracted from what it was before the step."""
    piece = seen.pieces[i]
    norm, update = numbers["weight"].get(i, NAN), numbers["update"].get(i, NAN) if applied else NAN
    base = numbers["window"].get(i, norm)  # of the weights whose update that is
    finite = math.isfinite(norm) and (not applied or math.isfinite(update))
    safe = SAFE[0] < norm < SAFE[1] and SAFE[0] < base and not update > SAFE[1]
    if weight is not None and not (finite and safe):
        exact = _exactly(piece, weight, seen.turn, compared=compared)
        norm, base = (e if math.isfinite(e) else k for e, k in zip(exact[:2], (norm, base), strict=True))
        update = exact[2] if applied and math.isfinite(exact[2]) else update
        finite = not nonfinite([weight])
    if not finite and not broken:
        broken = bool(nonfinite([tensor for _, tensor in state_slices(piece, state)]))
    low, high = numbers["low"].get(i, NAN), numbers["high"].get(i, NAN)
    largest = max(-low, high) / seen.grad_scale
    rms = NAN
    if moment is not None and math.isfinite(largest):
        rms = adam_rms(numbers["ratio"][i], numbers["count"][i], moment.decay, numbers["step"][i])
    return TensorStats(
        param=seen.numbers[piece.position],
        grad_max_abs=largest,
        weight_norm=norm * piece.growth,
        update_ratio=update / base if base > 0 else NAN,
        adam_rms=rms,
        state_finite=not broken,
        weight_finite=finite,
    )


def state_slices(
    piece: Piece, state: dict[str, Any], share: int = 0, of: int = 1
) -> Iterator[tuple[tuple[str, int], Tensor]]:
    """A share of the floating state tensors of a piece. One of another shape is whole in the first share."""
    for name, value in state.items():
        for k, tensor in enumerate(value if isinstance(value, (list, tuple)) else (value,)):  # lists: LBFGS
            if (whole := at_hand(tensor)) is None:
                continue
            if piece.matches(whole) and whole.dim():
                yield (name, k), piece.share_of(whole, share, of)
            elif share == 0 and piece.first:
                yield (name, k), whole


def _nonfinite_pieces(tensors: dict[Any, Tensor], norms_of: dict[Any, float]) -> set[int]:
    """Pieces that own a state tensor with a NaN or an infinity; a norm may also have overflowed."""
    suspects = [key for key, norm in norms_of.items() if not math.isfinite(norm)]
    return {suspects[k][0] for k in nonfinite([tensors[key] for key in suspects])} if suspects else set()


def _exactly(piece: Piece, new: Tensor, turn: int, *, compared: bool) -> tuple[float, float, float]:
    """Norms in float64, for a piece whose float32 squares under- or overflowed, or are nan.

    Of the slice (as it is after the step where not all of it was kept), of the rows that are compared, of their update.
    """
    kept, now = piece.old.cpu().double(), piece.window(new, turn).cpu().double()
    base = float(
        torch.linalg.vector_norm(kept + now if compared else kept)
    )  # after it ``kept`` is w_old - w_new
    norm = base if piece.compared_whole else float(torch.linalg.vector_norm(new.cpu().double()))
    return norm, base, float(torch.linalg.vector_norm(kept)) if compared else NAN
