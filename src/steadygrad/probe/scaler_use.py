"""A GradScaler that is used by halves: clipping before ``unscale_``, steps on scaled gradients."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor
from torch.amp.grad_scaler import GradScaler, OptState
from torch.optim import Optimizer

from steadygrad.records import Oddity

CERTAIN_CLIPS = 2  # steps
CERTAIN_STEPS = 3  # in a row
LOOKS = 6  # steps after which an optimizer is left alone
MARGIN = 10.0  # a bound within this factor of the scale was made for scaled gradients


@dataclass
class _Use:
    owned: frozenset[int] = frozenset()  # ids of its parameters
    looks: int = 0
    marks: tuple[int, int] = (0, 0)  # passes and scaled passes at its last step
    early_clips: int = 0
    clipped: bool = False  # too early, since its last step
    raw_steps: int = 0
    told: set[str] = field(default_factory=set)

    @property
    def done(self) -> bool:
        return self.looks >= LOOKS


class ScalerUse:
    """Follows the gradients of a scaled loss to the clip and to the step.

    Gradients count as scaled if every backward pass since the optimizer's last step was on a scaled loss and
    ``unscale_`` has not been called for it. A loop that divides the gradients by hand, without the scaler, is taken
    for one that steps on scaled gradients. A scaler that is off, or has the scale 1, does nothing and is no
    mistake.
    """

    def __init__(self) -> None:
        self._scaler: weakref.ref[GradScaler] | None = None
        self._uses: weakref.WeakKeyDictionary[Optimizer, _Use] = weakref.WeakKeyDictionary()
        self._scaled_next = False
        self._passes = self._scaled = 0

    def scaler_seen(self, scaler: GradScaler) -> None:
        """The scaler has scaled a loss."""
        if scaler.is_enabled():
            self._scaler = weakref.ref(scaler)
            self._scaled_next = True

    def backward(self) -> None:
        self._passes += 1
        self._scaled += self._scaled_next
        self._scaled_next = False

    def clipped(self, params: Sequence[Tensor], max_norm: float) -> Oddity | None:
        """The user is about to clip these gradients."""
        scaler = self._alive()
        if scaler is None or all(use.done for use in self._uses.values()):
            return None
        scale, ids = float(scaler.get_scale()), {id(p) for p in params}  # host sync
        if max_norm * MARGIN >= scale:
            return None
        for optimizer, use in self._uses.items():
            if use.done or use.clipped or not ids & use.owned or not self._still_scaled(optimizer, use):
                continue
            use.clipped = True
            use.early_clips += 1
            if use.early_clips == CERTAIN_CLIPS:
                return Oddity(
                    "clip_before_unscale",
                    "gradients",
                    f"gradients are clipped to {max_norm:.3g} while they are scaled by {scale:.3g}: "
                    f"call scaler.unscale_(optimizer) before",
                    {"scale": scale, "max_norm": max_norm},
                )
        return None

    def before_step(self, optimizer: Optimizer, tensors: Sequence[Tensor]) -> Oddity | None:
        use = self._uses.get(optimizer)
        if use is None:
            use = self._uses[optimizer] = _Use()
        scaler = self._alive()
        if use.done or scaler is None:
            return None
        use.owned = frozenset(map(id, tensors))
        raw = self._still_scaled(optimizer, use) and getattr(optimizer, "grad_scale", None) is None
        use.looks += 1
        use.clipped = False
        use.marks = (self._passes, self._scaled)
        use.raw_steps = use.raw_steps + 1 if raw else 0
        scale = float(scaler.get_scale())  # host sync
        if use.raw_steps != CERTAIN_STEPS or scale == 1.0:
            return None
        return Oddity(
            "scale_ignored",
            "gradients",
            f"{type(optimizer).__name__} steps on gradients that are scaled by {scale:.3g}: "
            f"call scaler.step(optimizer) instead of optimizer.step()",
            {"scale": scale},
        )

    def _alive(self) -> GradScaler | None:
        return self._scaler() if self._scaler is not None else None

    def _still_scaled(self, optimizer: Optimizer, use: _Use) -> bool:
        """Whether what lies in the gradients of this optimizer is scaled throughout."""
        scaler = self._alive()
        passes, scaled = self._passes - use.marks[0], self._scaled - use.marks[1]
        if scaler is None or not passes or scaled != passes:
            return False
        known = {id(other) for other in self._uses if other is not optimizer}
        # An optimizer that we do not know may be a wrapper around this one.
        return all(
            key in known or state["stage"] is OptState.READY
            for key, state in scaler._per_optimizer_states.items()
        )
