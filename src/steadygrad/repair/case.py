"""What is known of a failing run when remedies for it are chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from steadygrad.diagnose.facts import Facts
from steadygrad.records import Cause, Finding

MADE = 0.3  # probability of bootstrapped targets from which on they are taken for such
EXPLOSION = ("nonfinite", "stopped", "nan_loss", "exploded", "unbounded", "worse")


@dataclass(frozen=True)
class Case:
    """The untouched run, diagnosed."""

    facts: Facts
    causes: Sequence[Cause] = ()  # most likely first
    findings: Sequence[Finding] = ()
    survey: Mapping[str, Any] = field(default_factory=dict)  # what each surveyor has found, by its key

    @property
    def exploded(self) -> bool:
        """Non-finite, grown or unbounded; else it trains badly or not at all."""
        return self.facts.verdict is not None and self.facts.verdict.kind in EXPLOSION

    @property
    def failed_at(self) -> int | None:
        """Step of the first alarm; None: there was none, it trains badly from the start."""
        steps = [f.step for f in self.findings if f.severity == "alarm"]
        located = self.facts.located
        return min([*steps, *([located.step] if located is not None else [])], default=None)

    @property
    def targets_move(self) -> bool:
        """Whether the model itself, or a copy of it, makes what it is to predict: no data, and no yardstick."""
        portraits = [p for p in (self.facts.portrait, self.facts.at) if p is not None]
        moves = any(t.target_moves for p in portraits for t in p.terms)
        return moves or self.has("M113") or self.probability("bootstrapped_target") > MADE

    def probability(self, cause: str) -> float:
        """Of one cause; 0 if nothing speaks for it."""
        return next((c.probability for c in self.causes if c.cause == cause), 0.0)

    def has(self, *codes: str) -> bool:
        """Whether one of these rules has found something."""
        return any(f.code in codes for f in self.findings)
