"""What the rules have in common that pass on an oddity of the graph or of the loop."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from steadygrad.records import Finding, Oddity, StepStats
from steadygrad.rules.history import History
from steadygrad.rules.rule import Rule


@dataclass
class OddityRule(Rule):
    """Base: speaks once for each of its kinds, when the first portrait shows it. A mistake does not come and go."""

    kinds: ClassVar[tuple[str, ...]]
    needs: ClassVar = ("portrait",)

    told: list[str] = field(default_factory=list)

    def __call__(self, stats: StepStats, history: History) -> Finding | None:
        if stats.portrait is None:
            return None
        new: dict[str, Oddity] = {}
        for odd in stats.portrait.oddities:
            if odd.kind in self.kinds and odd.kind not in self.told:
                new.setdefault(odd.kind, odd)
        if not new:
            return None
        self.told = [*self.told, *new]
        evidence = {name: float(value) for odd in new.values() for name, value in odd.evidence.items()}
        first = next(iter(new.values()))
        message = "; ".join(odd.message for odd in new.values())
        return self.tell(stats, self.severity, first.where or "model", message, **evidence)
