from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from steadygrad.records import Severity
from steadygrad.rules.oddity_rule import OddityRule


@dataclass
class BoundedOutput(OddityRule):
    """The targets cannot be reached, or do not vary.

    What it measures: in the graph of the loss, targets outside the range of the bounded function that makes the
    prediction (a sigmoid, a tanh, a ReLU), or targets that are all equal.

    Why it matters: the output is pushed to the end of its range, where the function is flat, and stays there.
    Equal targets have nothing to teach but one number.

    Stays silent on: targets within the range; targets that differ from batch to batch.

    Remedies: a linear last layer; targets scaled to the range; a look at how labels are read.

    Source: Humbatova et al., Taxonomy of Real Faults (ICSE 2020); science.md section 2.
    """

    code: ClassVar[str] = "M109"
    severity: ClassVar[Severity] = "info"
    kinds: ClassVar[tuple[str, ...]] = ("bounded_output", "constant_target")
