from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from steadygrad.records import Severity
from steadygrad.rules.oddity_rule import OddityRule


@dataclass
class LossUsedTwice(OddityRule):
    """The same loss, or that of earlier steps, is differentiated again.

    What it measures: the same root given to `backward` twice before a step while the gradients of the first
    pass are still there, in two steps; or a graph that grows from step to step by the same number of
    operations, at least a quarter of the first.

    Why it matters: gradients count double, or those of all earlier steps at old weights are added again. Time
    and memory grow with each step, until one of them ends the run.

    Stays silent on: several losses of one forward; a second pass after the gradients were cleared; sequences
    whose length varies.

    Remedies: call `backward` once per loss; add up losses with `loss.item()`; `detach()` a state that is
    carried from step to step.

    Source: PyTorch documentation, FAQ, "My model reports CUDA out of memory" (history across a training loop).
    """

    code: ClassVar[str] = "M104"
    severity: ClassVar[Severity] = "info"
    kinds: ClassVar[tuple[str, ...]] = ("loss_used_twice", "graph_grows")
