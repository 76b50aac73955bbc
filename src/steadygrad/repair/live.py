"""Repair on a run that goes on: which remedies are tried after a rollback, for how long, and which of them is kept.

Pure: the trials are made by :mod:`steadygrad.integrations.live_repair`. A trial is a few steps from the state that the
guard has gone back to. The twin among them does what the guard would do alone; a remedy is kept only where it is
clearly better.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from steadygrad.repair.effects import EFFECTS
from steadygrad.repair.remedy import Remedy

PAST = 8  # steps of a trial behind the step that failed
SHORTEST, LONGEST = 12, 60  # steps of a trial
MOST = 4  # repairs of a run
LOST = 0.25  # share of the steps that may come to nothing
HOPELESS = 6  # steps in a row that come to nothing, after which a trial is over
MARGIN = 0.1  # of the twin's loss, by which a remedy must be below it
NEAR = 0.05  # of a loss: within it the less intrusive remedy wins
SIGMAS = 3.0  # of the difference of two medians
MOSTLY = 0.8  # of the same batches on which a remedy has the lower loss
MAD_TO_SIGMA, MEDIAN_TO_MEAN = 1.4826, 1.2533  # both for normal noise
FAR = 2.0  # times its size that a loss is above the usual level where a run has blown up, as for the guard
CLIP = 1.5  # times the healthy norm
USUAL_CLIP = 1.0  # where no healthy norm is known


def trial_length(steps_back: int) -> int:
    """Steps of a trial, which is to pass the step that failed.

    Example:
        >>> trial_length(1), trial_length(20), trial_length(150)
        (12, 28, 60)
    """
    return min(max(steps_back + PAST, SHORTEST), LONGEST)


def ladder(healthy_norm: float | None, group: Mapping[str, Any]) -> list[Remedy]:
    """The remedies that are tried, the least intrusive first. All of them act at the step alone, and can be undone.

    Args:
        healthy_norm: median norm of the gradients of healthy steps; None: unknown.
        group: a parameter group of the optimizer, for what it has.

    Example:
        >>> [remedy.name for remedy in ladder(2.0, {"lr": 0.1, "momentum": 0.9})][:2]
        ['skip outliers', 'clip at 3']
    """
    level = CLIP * healthy_norm if healthy_norm else USUAL_CLIP
    adam = "betas" in group
    causes = ("lr_too_large", "recurrent_growth")
    found = [
        _tuning("skip outliers", {"skip_above": 20.0}, ("bad_batch",), 0.05),
        _tuning(f"clip at {level:.3g}", {"clip_norm": level}, causes, 0.06),
        _tuning("adaptive clipping", {"adaptive_clip": {"name": "AutoClip"}}, causes, 0.07),
    ]
    if adam:
        found.append(
            _tuning("beta2 0.95 with update clipping", {"beta2": 0.95, "update_clip": 1.0}, causes, 0.1)
        )
    found.append(_tuning("lr / 10", {"lr_factor": 0.1}, ("lr_too_large",), 0.12))
    if adam or group.get("momentum"):
        found.append(_tuning("momentum 0.5", {"momentum": 0.5}, ("lr_too_large",), 0.13))
    found.append(_tuning("lr / 100", {"lr_factor": 0.01}, ("lr_too_large",), 0.2))
    return [remedy for remedy in found if remedy.plan.keys() <= EFFECTS.keys()]


def _tuning(name: str, plan: Mapping[str, Any], serves: tuple[str, ...], intrusiveness: float) -> Remedy:
    return Remedy(name, plan, serves, "tuning", intrusiveness, "")


@dataclass
class Course:
    """How a trial goes."""

    remedy: Remedy | None = None  # None: the twin
    losses: list[float] = field(default_factory=list)  # one for each step; NaN where none was seen
    lost: int = 0  # steps that were not taken, or whose loss was not finite
    poisoned: bool = False  # its state is not finite
    note: str = ""  # why it could not be tried
    _in_a_row: int = 0

    @property
    def name(self) -> str:
        return "the guard alone" if self.remedy is None else self.remedy.name

    def step(self, loss: float | None, applied: bool) -> None:
        """One more step. ``loss`` None: none was seen, which is no fault."""
        came_to_nothing = not applied or loss is not None and not math.isfinite(loss)
        self.losses.append(math.nan if loss is None else loss)
        self.lost += came_to_nothing
        self._in_a_row = self._in_a_row + 1 if came_to_nothing else 0

    @property
    def hopeless(self) -> bool:
        """Whether no further step is worth its batch."""
        return self._in_a_row >= HOPELESS

    @property
    def late(self) -> list[float]:
        """The finite losses of the second half."""
        return [loss for loss in self.losses[len(self.losses) // 2 :] if math.isfinite(loss)]

    @property
    def end(self) -> float:
        """Median of the late losses; infinite if there are none."""
        return median(self.late) if self.late else math.inf

    def failed(self, level: float, free: int = 0) -> bool:
        """Whether it is no way to go on.

        Args:
            level: of the loss before the incident.
            free: lost steps that are not held against it.
        """
        if self.note or self.poisoned or self.hopeless or not self.late:
            return True
        return self.lost - free > LOST * len(self.losses) or self.end > level + FAR * max(abs(level), 1e-12)


def beats(arm: Course, twin: Course, level: float, *, paired: bool = False) -> bool:
    """Whether a remedy is clearly better than what the guard does alone.

    Args:
        arm: the trial of the remedy.
        twin: that of the guard alone.
        level: of the loss before the incident.
        paired: both had the same batches, so that losses can be compared one by one.

    Example:
        >>> twin, lower, luckier = (Course(losses=[a, a + 0.1] * 10) for a in (2.0, 1.0, 1.95))
        >>> beats(lower, twin, 2.0), beats(luckier, twin, 2.0)
        (True, False)
    """
    free = shared_losses(arm, twin) if paired else 0
    if arm.failed(level, free):
        return False
    if twin.failed(level, free):
        return not arm.end > twin.end
    return arm.end < twin.end - MARGIN * abs(twin.end) and _no_luck(arm, twin, SIGMAS, paired)


def shared_losses(arm: Course, twin: Course) -> int:
    """Steps that both have lost: on the same batches these say something of the batches."""
    return min(arm.lost, twin.lost)


def replaces(challenger: Course, incumbent: Course, *, paired: bool = False) -> bool:
    """Whether a more intrusive remedy is so much better that it is preferred; both have beaten the twin."""
    nearer = challenger.end < incumbent.end - NEAR * abs(incumbent.end)
    return nearer and _no_luck(challenger, incumbent, 1.0, paired)


def _no_luck(better: Course, worse: Course, sigmas: float, paired: bool) -> bool:
    """Whether two late medians differ by more than the noise of the losses."""
    if paired and len(better.losses) == len(worse.losses):
        half = len(better.losses) // 2
        pairs = zip(better.losses[half:], worse.losses[half:], strict=True)
        lower = [x < y for x, y in pairs if math.isfinite(x - y)]
        return sum(lower) >= MOSTLY * len(lower) > 0
    variances = [_deviation(c.late) ** 2 / len(c.late) for c in (better, worse)]
    return worse.end - better.end > sigmas * MEDIAN_TO_MEAN * math.sqrt(sum(variances))


def _deviation(values: list[float]) -> float:
    middle = median(values)
    return MAD_TO_SIGMA * median(abs(v - middle) for v in values)
