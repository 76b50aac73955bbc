from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from steadygrad.records import Severity
from steadygrad.rules.oddity_rule import OddityRule


@dataclass
class ClipBeforeUnscale(OddityRule):
    """Gradients are clipped while a GradScaler's factor is still on them.

    What it measures: a call of `clip_grad_norm_` or `clip_grad_value_` on the gradients of a scaled loss before
    `scaler.unscale_` was called for their optimizer, in two steps.

    Why it matters: the bound is then met by gradients that are thousands of times too large. After the scaler
    has divided them, nearly nothing is left, and the size of the step follows the scale.

    Stays silent on: a bound that was multiplied by the scale (within a factor of 10); a scaler that is switched
    off; gradients of a loss that was not scaled.

    Remedies: `scaler.unscale_(optimizer)` before the clip.

    Source: PyTorch documentation, Automatic Mixed Precision examples, gradient clipping; surgery.md section 2j.
    """

    code: ClassVar[str] = "M102"
    severity: ClassVar[Severity] = "warning"
    kinds: ClassVar[tuple[str, ...]] = ("clip_before_unscale",)
