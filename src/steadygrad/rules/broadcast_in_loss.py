from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from steadygrad.records import Severity
from steadygrad.rules.oddity_rule import OddityRule


@dataclass
class BroadcastInLoss(OddityRule):
    """Prediction and target have shapes that only broadcasting makes equal.

    What it measures: in the graph of the loss, a difference or product of a prediction and a target, one of
    shape (N, 1) and one of shape (N,), that becomes (N, N).

    Why it matters: each prediction is compared with every target. The best answer to that is one constant, the
    mean of the targets: the model learns it and nothing else.

    Stays silent on: an axis of size 1 that both sides have; a weight that is broadcast over a loss.

    Remedies: `prediction.squeeze(-1)`, or `target.unsqueeze(-1)`.

    Source: the warning of `torch.nn.functional.mse_loss` on targets of another size.
    """

    code: ClassVar[str] = "M108"
    severity: ClassVar[Severity] = "warning"
    kinds: ClassVar[tuple[str, ...]] = ("broadcast_in_loss",)
