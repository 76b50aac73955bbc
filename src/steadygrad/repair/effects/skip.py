"""Steps that are not taken: those with a NaN or an infinity, and those with a gradient far out of the usual."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from torch.optim import Optimizer

from steadygrad.guard.buffers import BufferKeeper
from steadygrad.probe.loss import LossKeeper
from steadygrad.repair.effects._gradients import joint_norm, zero_
from steadygrad.repair.effects._values import positive
from steadygrad.repair.effects.effect import Effect, Models, Step
from steadygrad.rules.window import Window

MIN_NORMS = 10  # below this no norm is called large
MOST_IN_A_ROW = 3  # a norm that stays up is no outlier
FEW, SHARE = 4, 0.01  # steps that may be skipped, at least, and of all steps; more are no outliers


class SkipNonfinite(Effect):
    """A step whose loss or gradient is NaN or infinite is not taken; value 1.

    A skipped step leaves no trace: buffers (BatchNorm's statistics) become what they were after the last step that was
    taken, and the gradients 0.
    """

    key: ClassVar[str] = "skip_nonfinite"
    order: ClassVar[int] = 10

    def __init__(self, value: Any) -> None:
        self._losses = LossKeeper()
        self._roots: list[nn.Module] = []
        self._buffers: BufferKeeper | None = None

    def models(self, models: Models) -> None:
        self._roots[:] = models.roots
        if self._buffers is None:
            self._buffers = BufferKeeper(self._roots)
        else:
            self._buffers.keep()

    def backward(self, roots: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        self._losses.saw(values)

    def before_step(self, optimizer: Optimizer) -> Step:
        loss, _ = self._losses.read()
        norm = joint_norm(optimizer)
        finite = math.isfinite(norm) and (loss is None or math.isfinite(loss))
        if not finite or self.outlying(optimizer, norm):
            return "skip"
        self._losses.in_step = True  # what a closure computes again is no new loss
        return "take"

    def outlying(self, optimizer: Optimizer, norm: float) -> bool:
        """Whether a finite gradient of this norm is one to leave out."""
        return False

    def undo_step(self) -> None:
        self._losses.in_step = False

    def after_step(self, optimizer: Optimizer, applied: bool) -> None:
        if not applied:
            zero_(optimizer)
            self._losses.forget()  # where others have skipped it, it was not read
        if self._buffers is not None:
            if applied:
                self._buffers.keep()
            else:
                self._buffers.restore()


@dataclass
class _Course:
    """The norms of one optimizer's steps."""

    norms: Window = field(default_factory=lambda: Window(50))
    steps: int = 0
    skipped: int = 0
    in_a_row: int = 0
    given_up: bool = False


class SkipAbove(SkipNonfinite):
    """Nor is a step taken whose gradient norm is more than ``value`` times the median of the last 50 taken.

    At most three in a row are left out: a norm that stays up is the new usual. If more than four steps, and more than
    1 % of all so far, would be left out, they are no outliers, and from then on only what is not finite is skipped.
    The norm is that of the gradients as they reach the optimizer.
    """

    key: ClassVar[str] = "skip_above"
    order: ClassVar[int] = 11

    def __init__(self, value: Any) -> None:
        super().__init__(value)
        self._times = positive(self.key, value)
        self._courses: WeakKeyDictionary[Optimizer, _Course] = WeakKeyDictionary()

    def outlying(self, optimizer: Optimizer, norm: float) -> bool:
        course = self._courses.setdefault(optimizer, _Course())
        course.steps += 1
        if course.in_a_row < MOST_IN_A_ROW and self._large(course, norm):
            course.skipped += 1
            course.in_a_row += 1
            course.given_up = course.skipped > max(FEW, SHARE * course.steps)
            if not course.given_up:
                return True
        course.in_a_row = 0
        course.norms.push(norm)
        return False

    def _large(self, course: _Course, norm: float) -> bool:
        if course.given_up or len(course.norms) < MIN_NORMS:
            return False
        return norm > self._times * course.norms.median() > 0
