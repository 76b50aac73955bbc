from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from steadygrad.records import Severity
from steadygrad.rules.oddity_rule import OddityRule


@dataclass
class ZeroGradMissing(OddityRule):
    """Gradients are not cleared between steps.

    What it measures: whether the gradient that a step has consumed is still there, and not zero, at every
    backward pass after it, and the same tensor at the next step; twice in a row, for some or all of a few
    parameters.

    Why it matters: each step then takes the sum of all gradients so far. That is a momentum of 1 that never
    forgets: the loss falls at first, swings, and blows up.

    Stays silent on: gradients that are cleared anywhere and in any way between two steps; accumulation over
    micro-batches; a GAN whose generator fills the gradients of the discriminator; gradients of parameters that
    no optimizer steps.

    Remedies: `optimizer.zero_grad()` before the backward pass.

    Source: surgery.md section 2j (eight loops told apart).
    """

    code: ClassVar[str] = "M101"
    severity: ClassVar[Severity] = "warning"
    kinds: ClassVar[tuple[str, ...]] = ("zero_grad_missing",)
