from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from steadygrad.records import Severity
from steadygrad.rules.oddity_rule import OddityRule


@dataclass
class ZeroLr(OddityRule):
    """The learning rate is 0.

    What it measures: five steps in a row in which every parameter group that has gradients has a rate below
    1e-12. A schedule that begins at 0 is given a hundred steps.

    Why it matters: no weight moves. The loss then shows the noise of the batches and nothing else, and the run
    goes on to its end.

    Stays silent on: a warm-up from 0; a cosine that touches 0; groups that were given a rate of 0 while others
    have one.

    Remedies: look at what the scheduler is given: its length in steps or in epochs, integer divisions, where it
    is stepped.

    Source: PyTorch documentation, LambdaLR (the factor multiplies the first rate).
    """

    code: ClassVar[str] = "M111"
    severity: ClassVar[Severity] = "info"
    kinds: ClassVar[tuple[str, ...]] = ("zero_lr",)
