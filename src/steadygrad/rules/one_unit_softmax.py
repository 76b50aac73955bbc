from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from steadygrad.records import Severity
from steadygrad.rules.oddity_rule import OddityRule


@dataclass
class OneUnitSoftmax(OddityRule):
    """The last activation does not fit the loss.

    What it measures: in the graph of the loss, a softmax over one unit, or a sigmoid before a binary cross
    entropy that has one of its own.

    Why it matters: a softmax over one unit is 1 whatever comes in, and its gradient is 0: nothing is learned. A
    sigmoid taken twice lies between 0.5 and 0.73: no example can be called negative with confidence.

    Stays silent on: a sigmoid before `binary_cross_entropy`; a softmax over several units.

    Remedies: a sigmoid for one unit; logits for `binary_cross_entropy_with_logits`.

    Source: Humbatova et al., Taxonomy of Real Faults (ICSE 2020), wrong activation or loss for the output.
    """

    code: ClassVar[str] = "M107"
    severity: ClassVar[Severity] = "info"
    kinds: ClassVar[tuple[str, ...]] = ("one_unit_softmax", "sigmoid_before_bce_logits")
