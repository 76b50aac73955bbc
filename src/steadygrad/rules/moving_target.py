from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from steadygrad.records import Severity
from steadygrad.rules.oddity_rule import OddityRule


@dataclass
class MovingTarget(OddityRule):
    """A copy of the trained weights follows them.

    What it measures: weights that no optimizer trains, have the shapes of trained ones, and equal what these
    were, at once every so many steps, or as a slow average.

    Why it matters: if the loss is measured against the output of such a copy, the target moves with what is
    learned (Q-learning, self-distillation): errors feed on themselves, and a loss that rises need not mean that
    anything is wrong. An average that is kept for evaluation only does no harm.

    Stays silent on: running statistics of batch norms; frozen weights that do not move; copies made once.

    Remedies: if targets run away: copy less often, a slower average, a bounded loss, smaller rates.

    Source: Mnih et al., Human-level control through deep reinforcement learning (2015); van Hasselt et al.,
    Deep RL and the Deadly Triad (2018).
    """

    code: ClassVar[str] = "M113"
    severity: ClassVar[Severity] = "info"
    kinds: ClassVar[tuple[str, ...]] = ("moving_target",)
