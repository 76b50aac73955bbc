from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from steadygrad.records import EmbeddingStats
from steadygrad.rules.embedding_rule import EmbeddingRule

LEFT = 1 / 3  # of the first effective rank; sound runs of studies/collapse keep 0.45, wider heads 0.38


@dataclass
class DimensionalCollapse(EmbeddingRule):
    """The embeddings fall into a few directions.

    What it measures: the effective rank (RankMe) of the centred embeddings that a loss without labels is given,
    over the most that it can be: below a third of what it was at the first look, at three looks in a row.

    Why it matters: samples still differ, so the loss and the spread look healthy, but the encoder keeps a handful of
    features, and a linear probe on it stays poor.

    Stays silent on: fewer than 8 samples; a rank that was low from the start; steps whose gradient is not finite.
    Some fall is usual, from the noise of random weights to what the data hold.

    Remedies: the covariance term of VICReg or Barlow Twins' weight off the diagonal (`sg.selfsup.covariance_term`); a
    temperature of 0.1 to 0.5 for a contrastive loss; a wider projector; a smaller learning rate.

    Source: Garrido et al. (2023), arXiv 2210.02885; Jing et al. (2022), arXiv 2110.09348; studies/collapse.
    """

    code: ClassVar[str] = "E102"

    first: float = 0.0  # share of the rank that is possible; 0: none seen yet

    def look(self, seen: EmbeddingStats) -> str | None:
        share = seen.effective_rank / min(seen.samples - 1, seen.dims)
        if not self.first:
            self.first = share
        if share >= LEFT * self.first:
            return None
        return (
            f"the embeddings fall into {seen.effective_rank:.2g} directions of {seen.dims}, "
            f"{share / self.first:.0%} of what they had at first"
        )

    def compared(self) -> dict[str, float]:
        return {"first_share": self.first}
