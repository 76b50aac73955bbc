from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from steadygrad.records import Severity
from steadygrad.rules.oddity_rule import OddityRule


@dataclass
class ScaleIgnored(OddityRule):
    """Steps are taken on gradients that a GradScaler has scaled.

    What it measures: three steps in a row of an optimizer whose gradients all come from a loss that was scaled,
    without `scaler.step` or `scaler.unscale_`.

    Why it matters: every gradient is thousands of times too large. SGD is thrown out by it; Adam does not mind
    the size, but its epsilon, a clip and the check for overflow no longer mean anything.

    Stays silent on: a scaler that is switched off, or whose scale is 1; an optimizer whose own loss was not
    scaled. Gradients that the script divides by hand are taken for scaled ones.

    Remedies: `scaler.step(optimizer)` and `scaler.update()` in place of `optimizer.step()`.

    Source: PyTorch documentation, Automatic Mixed Precision examples, typical training.
    """

    code: ClassVar[str] = "M112"
    severity: ClassVar[Severity] = "warning"
    kinds: ClassVar[tuple[str, ...]] = ("scale_ignored",)
