from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from steadygrad.records import Severity
from steadygrad.rules.oddity_rule import OddityRule


@dataclass
class LossSum(OddityRule):
    """The loss is a sum over the batch, not a mean.

    What it measures: in the graph of the loss, a reduction by `sum` over many elements that nothing divides.

    Why it matters: gradients grow with the batch, and a learning rate that was chosen for means is too large by
    as much. An optimizer that divides by the size of the gradient is not touched by it, but clipping and weight
    decay are.

    Stays silent on: means; sums that are divided by a count; sums over few elements.

    Remedies: `reduction="mean"`, or divide the sum by the batch size.

    Source: science.md section 2; PyTorch documentation, reduction of loss functions.
    """

    code: ClassVar[str] = "M110"
    severity: ClassVar[Severity] = "info"
    kinds: ClassVar[tuple[str, ...]] = ("loss_sum",)
