"""The level of each parameter's gradient, learned in blocks: nobody asks for it at every step."""

from __future__ import annotations

import math

import numpy as np

RATE = 0.1
BLOCK = 16  # steps that may wait


class ParamNorms:
    """Moving average of log10 of each parameter's gradient norm; nan where there was no norm yet.

        level <- level + 0.1 (log10(norm) - level)

    A norm that is nan, 0 or infinite leaves the level where it is. Arrays that are pushed wait until they are asked
    for, 16 of them at most: nobody may change them afterwards.

    Example:
        >>> norms = ParamNorms()
        >>> for row in ([10.0, np.nan], [100.0, 1.0]):
        ...     norms.push(np.array(row))
        >>> norms.logs().tolist()
        [1.1, 0.0]
    """

    def __init__(self) -> None:
        self._logs: np.ndarray = np.zeros(0)
        self._waiting: list[np.ndarray] = []

    def push(self, norms: np.ndarray) -> None:
        """Take in the norms of one step, one of each parameter."""
        if self._waiting and len(self._waiting[0]) != len(norms):
            self._settle()
        self._waiting.append(norms)
        if len(self._waiting) == BLOCK:
            self._settle()

    def logs(self) -> np.ndarray:
        """(parameters,) float64: the levels after all that was pushed."""
        if self._waiting:
            self._settle()
        return self._logs

    def _settle(self) -> None:
        norms = np.array(self._waiting)
        self._waiting.clear()
        if len(self._logs) != norms.shape[1]:  # parameters were added, or taken away
            self._logs = np.full(norms.shape[1], np.nan)
        if not norms.size:
            return
        level = self._logs
        with np.errstate(divide="ignore", invalid="ignore"):
            logs = np.log10(norms, dtype=np.float64)  # nan stays nan, 0 becomes -inf
        known = np.isfinite(logs)
        first = np.isnan(level) & known.any(axis=0)
        if first.any():  # the first norm is the level: its own step is then 0
            level[first] = logs[known.argmax(axis=0)[first], first]
        step = np.empty_like(level)
        for row, there in zip(logs, known, strict=True):
            np.subtract(row, level, out=step)
            np.multiply(step, RATE, out=step)
            np.add(level, step, out=level, where=there)

    def state(self) -> list[float | None]:
        """The levels as plain numbers; None where there was no norm yet."""
        return [None if math.isnan(x) else x for x in self.logs().tolist()]

    def load(self, state: list[float | None]) -> None:
        """Put levels back."""
        self._waiting.clear()
        self._logs = np.array([math.nan if x is None else x for x in state], dtype=np.float64)
