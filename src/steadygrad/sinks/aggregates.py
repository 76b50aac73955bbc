"""The numbers of a step that a dashboard is given: few, and by the same names from the first step to the last."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from steadygrad.records import ParamInfo, StepStats

PREFIX = "steadygrad/"
MAX_KEYS = 32  # in a run: over all optimizers and steps
OF_THE_FIRST = (
    "loss",
    "lr",
    "grad_norm",  # before the user's clipping
    "clipped_grad_norm",  # after it
    "grad_norm_largest_tensor",
    "grad_norm_smallest_tensor",  # of those that are not 0
    "grad_norm_first_to_last",  # ratio of the first weight matrix to the last: 1 is even
    "nonfinite_tensors",  # how many gradients hold nan or infinity
    "zero_gradients",  # how many are exactly 0
    "update_ratio_median",  # ||update|| / ||weight||, of the tensors looked at in this step
    "update_ratio_max",
    "activation_rms_max",  # on sampled steps, the largest over the layers
    "dead_share_max",
    "saturated_share_max",
    "loss_scale",
    "amp_skips",  # from the run's start, as are the next two
    "skipped",
    "incidents",
    "seconds_per_step",
)
OF_FURTHER_ONES = ("loss", "lr", "grad_norm", "clipped_grad_norm")
NUM_OPTIMIZERS = 1 + (MAX_KEYS - len(OF_THE_FIRST)) // len(OF_FURTHER_ONES)


class Aggregates:
    """Makes the numbers of each step. Remembers which parameters never have a gradient, and counts the AMP's skips.

    Every key has its name for good, so a chart of it can be drawn; what was not measured in a step is left out of it.
    The first optimizer has them all, the next ones a few as ``steadygrad/optimizer1/...``, and from the fifth on none.

    Example:
        >>> import numpy as np
        >>> from steadygrad.records import StepStats
        >>> norms = np.array([3.0, 4.0], dtype=np.float32)
        >>> step = StepStats(0, 0, loss=0.5, grad_norm=5.0, clipped_grad_norm=1.0, grad_norms=norms, lr=0.1)
        >>> Aggregates()(step, skipped=0, incidents=0)["steadygrad/grad_norm_largest_tensor"]
        4.0
    """

    def __init__(self) -> None:
        self._without: np.ndarray | None = None  # which parameters had no gradient when all was finite
        self._ends: tuple[int, tuple[int, int] | None] = (-1, None)

    def __call__(
        self, stats: StepStats, skipped: int, incidents: int, amp_skips: int = 0
    ) -> dict[str, float]:
        """The numbers of one step.

        Args:
            stats: the step.
            skipped: steps that the guard has skipped so far.
            incidents: how often it had something to act on so far.
            amp_skips: steps that the GradScaler has skipped so far.
        """
        if stats.optimizer >= NUM_OPTIMIZERS:
            return {}
        values: dict[str, float] = {"lr": stats.lr} if math.isfinite(stats.lr) else {}
        values |= {"grad_norm": stats.grad_norm, "clipped_grad_norm": stats.clipped_grad_norm}
        if stats.loss is not None:
            values["loss"] = stats.loss
        if stats.optimizer > 0:
            return {f"{PREFIX}optimizer{stats.optimizer}/{key}": float(v) for key, v in values.items()}
        values |= self._of_gradients(stats)
        values |= _of_tensors(stats)
        values |= {"skipped": skipped, "incidents": incidents}
        if stats.loss_scale is not None:
            values |= {"loss_scale": stats.loss_scale, "amp_skips": amp_skips}
        if math.isfinite(stats.seconds):
            values["seconds_per_step"] = stats.seconds
        return {PREFIX + key: float(value) for key, value in values.items()}

    def _of_gradients(self, stats: StepStats) -> dict[str, float]:
        norms = stats.grad_norms
        missing = np.isnan(norms)
        if stats.finite:
            self._without = missing
        elif self._without is not None and len(self._without) == len(norms):
            missing = missing & self._without  # nan stands for "none" only where there was none before
        else:
            missing = np.zeros_like(missing)
        had = norms[~missing]
        values: dict[str, float] = {
            "nonfinite_tensors": int(had.size - np.isfinite(had).sum()),
            "zero_gradients": int((had == 0).sum()),
        }
        if had.size:
            values["grad_norm_largest_tensor"] = float(had.max())  # nan if one is
        positive = had[had > 0]
        if positive.size:
            values["grad_norm_smallest_tensor"] = float(positive.min())
        ends = self._first_and_last(stats.params)
        if ends is not None and ends[1] < len(norms):
            first, last = float(norms[ends[0]]), float(norms[ends[1]])
            if math.isfinite(first) and math.isfinite(last) and last > 0:
                values["grad_norm_first_to_last"] = first / last
        return values

    def _first_and_last(self, params: Sequence[ParamInfo]) -> tuple[int, int] | None:
        if self._ends[0] != len(params):
            weights = [i for i, p in enumerate(params) if len(p.shape) >= 2]
            self._ends = len(params), (weights[0], weights[-1]) if len(weights) > 1 else None
        return self._ends[1]


def _of_tensors(stats: StepStats) -> dict[str, float]:
    """Of what is looked at more seldom: some tensors in each step, activations in some steps."""
    values: dict[str, float] = {}

    def put(key: str, numbers: Iterable[float], combine: Callable[[list[float]], float]) -> None:
        measured = [x for x in numbers if not math.isnan(x)]
        if measured:
            values[key] = combine(measured)

    put("update_ratio_median", (t.update_ratio for t in stats.tensors), median)
    put("update_ratio_max", (t.update_ratio for t in stats.tensors), max)
    put("activation_rms_max", (a.rms for a in stats.activations), max)
    put("dead_share_max", (a.dead for a in stats.activations), max)
    put("saturated_share_max", (a.saturated for a in stats.activations), max)
    return values
