"""How the loss went, kept in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

KEPT = 1024
EARLY = 10
BLOCKS = 5  # of the end, whose median counts


class Course:
    """The losses of one optimizer, thinned evenly to at most 1024, NaN and infinity among them.

    Example:
        >>> course = Course()
        >>> for loss in (4.0, 3.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0):
        ...     course.add(loss)
        >>> course.start, course.end, course.steps
        (3.0, 1.0, 10)
    """

    def __init__(self, losses: Sequence[float] = ()) -> None:
        self.steps = 0
        self.first: list[float] = []
        self.early: list[float] = []
        self.lowest = math.inf  # lowest finite loss
        self.largest = 0.0  # largest finite |loss|
        self._stride = 1
        self._kept: list[float] = []
        self._sums: list[
            tuple[float, int]
        ] = []  # of each kept loss and those left out after it, where finite
        for loss in losses:
            self.add(loss)

    def add(self, loss: float) -> None:
        """The loss of one more step."""
        if len(self.first) < 3 and math.isfinite(loss):
            self.first.append(loss)
        if self.steps < EARLY:
            self.early.append(loss)
        if math.isfinite(loss):
            self.lowest = min(self.lowest, loss)
            self.largest = max(self.largest, abs(loss))
        if self.steps % self._stride == 0:
            self._kept.append(loss)
            self._sums.append((0.0, 0))
        if math.isfinite(loss):
            total, n = self._sums[-1]
            self._sums[-1] = total + loss, n + 1
        if len(self._kept) > KEPT:
            self._kept, self._stride = self._kept[::2], 2 * self._stride
            sums = [*self._sums, (0.0, 0)]
            self._sums = [(a + b, m + n) for (a, m), (b, n) in zip(sums[::2], sums[1::2], strict=False)]
        self.steps += 1

    def state_dict(self) -> dict[str, Any]:
        """All of it, as plain numbers and lists."""
        return {
            name: value.copy() if isinstance(value, list) else value for name, value in vars(self).items()
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put it back."""
        for name, value in state.items():
            setattr(self, name, value.copy() if isinstance(value, list) else value)

    @property
    def start(self) -> float:
        """Median of the first three finite losses."""
        return _median(self.first)

    @property
    def rise(self) -> float:
        """Median of the second five losses over that of the first three; nan for losses of 0 or less, or too few."""
        late = [x if not math.isnan(x) else math.inf for x in self.early[EARLY // 2 :]]
        first = _median(self.early[:3])
        return _median(late) / first if len(late) >= 3 and first > 0 else math.nan

    @property
    def end(self) -> float:
        """Mean loss at the end: of the finite losses in the last tenth of the run (five at least), robust to spikes.

        The median of the means of five blocks. A median of single losses would be too kind: of batches of one sample
        most are easy, and what a constant prediction loses is a mean as well.
        """
        last = self._sums[-max(5, len(self._sums) // 10) :]
        edges = [round(i * len(last) / BLOCKS) for i in range(BLOCKS + 1)]
        blocks = [last[a:b] for a, b in zip(edges, edges[1:], strict=False)]
        return _median([sum(t for t, _ in b) / n for b in blocks if (n := sum(n for _, n in b))])

    @property
    def tail(self) -> list[float]:
        """The last tenth of what was kept, at least five."""
        return self._kept[-max(5, len(self._kept) // 10) :]

    @property
    def finite_share(self) -> float:
        """Share of the last tenth that is finite; nan without any loss."""
        return sum(map(math.isfinite, self.tail)) / len(self.tail) if self.tail else math.nan

    def spread(self) -> float:
        """Robust deviation of the last quarter of the losses, from their differences: slow trends count for nothing."""
        last = [x for x in self._kept[-max(8, len(self._kept) // 4) :] if math.isfinite(x)]
        steps = [abs(b - a) for a, b in zip(last, last[1:], strict=False)]
        return 1.4826 * _median(steps) / math.sqrt(2) if steps else math.nan


def _median(values: Sequence[float]) -> float:
    if not values:
        return math.nan
    ordered, n = sorted(values), len(values)
    return (ordered[(n - 1) // 2] + ordered[n // 2]) / 2
