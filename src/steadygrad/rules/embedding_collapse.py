from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from steadygrad.records import EmbeddingStats
from steadygrad.rules.embedding_rule import EmbeddingRule

FALLEN = 0.5  # of the largest spread so far; sound runs of studies/collapse keep 0.77
NONE = 0.02


@dataclass
class EmbeddingCollapse(EmbeddingRule):
    """The embeddings of different samples become one vector.

    What it measures: the spread of the embeddings that a loss without labels is given (the standard deviation per
    dimension at unit length, times the root of the dimensions; 1 in all directions), below half of the largest so
    far, or below 0.02, at three looks in a row.

    Why it matters: a constant embedding is the best there is for a loss that only pulls views together. The loss
    looks better than ever, and the encoder forgets its input.

    Stays silent on: fewer than 8 samples; a spread that is small from the start and does not fall; steps whose
    gradient is not finite. It speaks as well where all embeddings gain one common offset, which the loss of Barlow
    Twins and VICReg does not see: then read the effective rank, which is centred.

    Remedies: the stop-gradient on the target (`sg.selfsup.simsiam` takes it); a predictor; a slow teacher
    (`sg.selfsup.EMATeacher`); VICReg's variance term at 25 (`sg.selfsup.variance_term`); negatives
    (`sg.selfsup.nt_xent`).

    Source: Chen & He (2021), arXiv 2011.10566, sec. 4.1; Bardes, Ponce & LeCun (2022), arXiv 2105.04906.
    """

    code: ClassVar[str] = "E101"

    largest: float = 0.0

    def look(self, seen: EmbeddingStats) -> str | None:
        self.largest = max(self.largest, seen.spread)
        if seen.spread >= max(NONE, FALLEN * self.largest):
            return None
        return (
            f"the embeddings of different samples come to one vector: their spread is {seen.spread:.2g}, "
            f"and was {self.largest:.2g}"
        )

    def compared(self) -> dict[str, float]:
        return {"largest_spread": self.largest}
