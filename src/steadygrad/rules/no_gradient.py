from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from steadygrad.records import Severity
from steadygrad.rules.oddity_rule import OddityRule


@dataclass
class NoGradient(OddityRule):
    """No gradient reaches a part of what should be trained.

    What it measures: parameters of an optimizer that ask for a gradient and had none, or in a whole matrix
    exactly 0, in each of the first five steps that could have moved them; or parameters of the model that are
    not in the graph of the loss, or in it and in no optimizer.

    Why it matters: they stay as they were drawn. What stands on them has to do with random features, and if it
    is all of them the loss cannot move at all.

    Stays silent on: frozen parameters; branches that begin at 0 and open with the first step; steps before a
    warm-up has left 0.

    Remedies: look for `detach()`, `.data`, `no_grad`, a layer that is never called; build the optimizer after
    the model is complete; clear gradients before the backward pass, not before the step.

    Source: Zhang et al., AUTOTRAINER (ICSE 2021); Wardat et al., DeepLocalize (ICSE 2021).
    """

    code: ClassVar[str] = "M105"
    severity: ClassVar[Severity] = "info"
    kinds: ClassVar[tuple[str, ...]] = ("no_gradient", "unused_parameters", "untrained_parameters")
