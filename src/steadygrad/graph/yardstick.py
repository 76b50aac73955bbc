"""The best constant prediction over all targets seen so far: the yardstick that a loss has to beat."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from steadygrad.graph.loss import SeenTerm
from steadygrad.graph.targets import Targets, trivial
from steadygrad.records import NAN, LossTerm

MAX_KEYS = 64
Key = tuple[str, int, int]


class Yardstick:
    """Adds up the targets of the terms of a loss over sampled steps, so that ``trivial`` rests on many batches.

    Terms are told apart by kind, by the number of their columns (or classes), and by their order among those of the
    same kind and columns. Lengths of sequences and sizes of images may change from step to step. At most 64 kinds of
    terms are followed. What is kept is bounded: class counts, sums per column, and for medians every k-th value.

    Example:
        >>> import torch
        >>> from steadygrad.graph.loss import read_loss
        >>> from steadygrad.graph.walk import Graph
        >>> yardstick, w = Yardstick(), torch.zeros(1, requires_grad=True)
        >>> for target in (0.0, 2.0):
        ...     loss = torch.nn.functional.mse_loss(w, torch.tensor([target]))
        ...     (term,) = yardstick.take(read_loss(Graph([loss]), [loss]))
        >>> term.value, term.trivial
        (4.0, 1.0)
    """

    def __init__(self) -> None:
        self._seen: dict[Key, Targets] = {}

    def take(self, terms: Sequence[SeenTerm]) -> tuple[LossTerm, ...]:
        """Add the targets of one step. The same terms, with ``trivial`` over all steps so far."""
        order: Counter[tuple[str, int]] = Counter()
        told = []
        for seen in terms:
            if seen.targets is None:
                told.append(seen.term)
                continue
            kind = (seen.targets.kind, len(seen.targets.counts) or len(seen.targets.weight))
            known = self._add((*kind, order[kind]), seen.targets)
            order[kind] += 1
            told.append(replace(seen.term, trivial=trivial(known)))
        return tuple(told)

    def _add(self, key: Key, targets: Targets) -> Targets:
        before = self._seen.get(key)
        if before is None and len(self._seen) >= MAX_KEYS:
            return targets
        self._seen[key] = targets if before is None else before + targets
        return self._seen[key]

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers and lists, for JSON."""
        return {"seen": [[*key, targets.to_json()] for key, targets in self._seen.items()]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state_dict`` was taken."""
        self._seen = {
            (str(kind), int(size), int(order)): Targets.from_json(targets)
            for kind, size, order, targets in state["seen"]
        }


def progress(term: LossTerm) -> float:
    """1 - value / trivial: 0 at the best constant prediction, 1 at a perfect one, below 0 if worse than a constant.

    nan where the best constant is not known or already perfect: one class, equal targets.
    """
    return 1 - term.value / term.trivial if term.trivial > 0 else NAN


def expected_start(term: LossTerm) -> float:
    """What a term gives before anything is learned: all classes equally likely, or a prediction near 0.

    ln C for a cross entropy over C classes, ln 2 for a binary one, the mean square of the targets for a squared
    difference, ``trivial`` for the others; nan where that is not known.
    """
    if term.kind == "cross_entropy":
        return math.log(term.classes) if term.classes else NAN
    if term.kind in ("bce", "bce_logits"):
        return math.log(2)
    if term.kind == "mse":
        return term.target_rms**2
    return term.trivial
