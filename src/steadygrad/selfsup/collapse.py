"""Collapse told of in a loop that nobody watches."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from steadygrad.probe.embeddings import embedding_stats
from steadygrad.records import NAN, EmbeddingStats, Finding, StepStats
from steadygrad.rules import RuleSet
from steadygrad.rules.dimensional_collapse import DimensionalCollapse
from steadygrad.rules.embedding_collapse import EmbeddingCollapse


class Collapse:
    """Look at embeddings now and then, and say when they collapse: rules E101 (one vector) and E102 (few directions).

    When to use it: in a loop without ``sg.watch``, or for a second set of embeddings, the encoder's beside the
    projector's. Under ``sg.watch`` the losses of this room show their embeddings by themselves, and the same rules
    tell.

    Values in use: a look every 10 steps; a rule speaks when its condition holds at three looks in a row.

    Cost: that of `embedding_stats` at each call.

    A look at embeddings with a nan or inf in them, or at fewer than 8 samples, is no look: the rules neither speak
    nor forget.

    Attributes:
        last: the :class:`steadygrad.records.EmbeddingStats` of the last look; None before the first.

    Example:
        >>> import torch
        >>> monitor, z = Collapse(), torch.randn(64, 8)
        >>> told = [monitor(z / 4**step + torch.ones(8)) for step in range(6)]
        >>> [[finding.code for finding in findings] for findings in told]
        [[], [], [], ['E101'], [], []]

    Source: the rules' own; thresholds from studies/collapse.
    """

    def __init__(self) -> None:
        self._rules = RuleSet((EmbeddingCollapse, DimensionalCollapse))
        self._looks = 0
        self.last: EmbeddingStats | None = None

    def __call__(self, embeddings: Tensor, other: Tensor | None = None) -> list[Finding]:
        """Take a look.

        Args:
            embeddings: (N, D), or (N, ...) taken flat.
            other: the second view of the same samples, or None.

        Returns:
            What the rules notice for the first time; ``step`` of a finding counts the looks from 0.

        Raises:
            ValueError: no samples, or two views of different shapes.
        """
        self.last = embedding_stats(embeddings, other)
        none = np.zeros(0, np.float32)
        look = StepStats(self._looks, 0, None, 0.0, 0.0, none, NAN, embedding=self.last)
        self._looks += 1
        return self._rules.observe(look)

    def state_dict(self) -> dict[str, Any]:
        """What the rules remember, as plain data."""
        return {"looks": self._looks, "rules": self._rules.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state; nothing is changed if it is not one.

        Raises:
            ValueError: it is not a state of this class.
        """
        if set(state) != {"looks", "rules"}:
            raise ValueError(f"the state of Collapse has looks and rules, got {sorted(state)}")
        self._rules.load_state_dict(state["rules"])
        self._looks = state["looks"]
        self.last = None
