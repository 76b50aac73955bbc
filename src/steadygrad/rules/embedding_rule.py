"""What the rules have in common that read embeddings: a sound look at them, and a condition that lasts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from steadygrad.records import EmbeddingStats, Finding, Severity, StepStats
from steadygrad.rules.history import History
from steadygrad.rules.rule import Rule

LOOKS = 3  # in a row
FEW = 8  # samples, from which no spread and no rank can be told


@dataclass
class EmbeddingRule(Rule):
    """Base: asks at each look, and speaks when the condition has held at three in a row."""

    severity: ClassVar[Severity] = "warning"
    needs: ClassVar = ("embedding",)

    looks: int = 0

    def __call__(self, stats: StepStats, history: History) -> Finding | None:
        seen = stats.embedding
        if seen is None or seen.samples < FEW or math.isnan(seen.spread) or not stats.finite:
            return None
        message = self.look(seen)
        self.looks = self.looks + 1 if message is not None else 0
        lasting = message if self.looks >= LOOKS else None
        if not self.onset.begins(self.severity if lasting is not None else None) or lasting is None:
            return None
        return self.tell(
            stats,
            self.severity,
            "embeddings",
            lasting,
            spread=seen.spread,
            effective_rank=seen.effective_rank,
            alignment=seen.alignment,
            uniformity=seen.uniformity,
            **self.compared(),
        )

    def look(self, seen: EmbeddingStats) -> str | None:
        """What is wrong with these embeddings; None if nothing is."""
        raise NotImplementedError

    def compared(self) -> dict[str, float]:
        """What they were judged by."""
        raise NotImplementedError
