"""Find the first bad value of a run that nobody had prepared: read the graph when it happens, watch the steps after."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from torch import Tensor, nn

from steadygrad.locating.autopsy import Suspect, autopsy
from steadygrad.locating.exact import Locator
from steadygrad.locating.frames import NOWHERE
from steadygrad.locating.stacks import line_of
from steadygrad.probe.names import find_compiled
from steadygrad.records import FirstNonFinite, StepStats

MAX_STEPS = 8  # that are watched operation by operation after an incident


class LiveLocator:
    """Costs nothing until a loss or a gradient is not finite.

    A loss that is not finite is read from its own graph: the operation, the sample, the parameters around it. The next
    steps run under a :class:`Locator`: it gives the line of code of that operation, and the producer itself if it
    strikes again. What struck once in a backward pass stays unknown: repeat the run with the locator on.

    Args:
        from_step: watch every operation from this step on, until something is found; None: only after an incident.
    """

    def __init__(self, from_step: int | None = None) -> None:
        self.found: FirstNonFinite | None = None
        self.notes: list[str] = []
        self._from_step = from_step
        self._suspect: Suspect | None = None
        self._struck: int | None = None  # step of the incident
        self._batches = 0
        self._locator: Locator | None = None
        self._left: float = 0
        self._poisoned = False

    @property
    def armed(self) -> bool:
        """Whether every operation is being watched: whatever is not the user's has to be kept out of sight."""
        return self._locator is not None

    def before_backward(self, roots: Sequence[Tensor], values: Sequence[float] | None, step: int) -> None:
        """A backward pass is about to begin.

        Args:
            roots: with their graph.
            values: what they are worth; None where they lie on another device, for to look would cost a sync.
            step: number of the coming step.
        """
        self._batches += 1
        if self.found is not None and self.found.line:
            return
        if self._suspect is not None and self._locator is not None:
            self._tell_line(roots)
            return
        if self._poisoned or self._suspect is not None:
            return
        if values is not None and not all(map(math.isfinite, values)):
            self._suspect = autopsy(roots)
            if self._suspect is not None:
                self._struck = step
                nan = any(map(math.isnan, values))
                self.found = _first(self._suspect, step, self._batches - 1, "nan" if nan else "inf")

    def before_step(self) -> None:
        """An optimizer is about to use the gradients, or the guard to take them away."""
        if self._locator is not None:
            self._locator.gradients_are_there()

    def after_step(self, stats: StepStats, roots: Sequence[nn.Module], *, compiled: bool = False) -> None:
        """A step is over; the coming one is watched if this one was bad.

        Args:
            stats: of the step.
            roots: the models.
            compiled: it was taken within a compiled function, in which nothing can be watched.
        """
        loss_bad = stats.loss is not None and not math.isfinite(stats.loss)
        if self._locator is not None:
            self._take()
        elif self.found is None or not self.found.line:
            due = self._from_step is not None and stats.step + 1 >= self._from_step
            # Once NaN is in the weights, whatever comes first in a later step is only their heir.
            self._poisoned |= stats.applied and not stats.finite
            useful = self._suspect is not None or not self._poisoned
            if useful and (loss_bad or not stats.finite) and self._struck in (None, stats.step) or due:
                self._struck = stats.step if self._struck is None and not due else self._struck
                self._arm(stats.step + 1, roots, math.inf if due else MAX_STEPS, compiled=compiled)

    def arm_for_start(self, roots: Sequence[nn.Module]) -> None:
        """The run is about to begin: watch it from the start if that was asked for."""
        if self._from_step == 0 and self._locator is None:
            self._arm(0, roots, math.inf)

    def close(self) -> None:
        """Stop watching."""
        if self._locator is not None:
            self._left = 0
            self._take()

    def _arm(self, step: int, roots: Sequence[nn.Module], steps: float, *, compiled: bool = False) -> None:
        if compiled or find_compiled():
            part = "training step" if compiled else "model"
            self._note(
                f"a part of the {part} is compiled: set TORCH_COMPILE_DISABLE=1 to have the operation named"
            )
            self._from_step = None
            return
        self._locator = Locator(list(roots), step=step, batch=self._batches)
        self._left = steps
        self._locator.__enter__()

    def _take(self) -> None:
        """Look at what the locator has found; let it go when it has, or when its time is over."""
        assert self._locator is not None
        self._left -= 1
        done = (
            self._locator.first is not None or self._left <= 0 or self.found is not None and self.found.line
        )
        if not done or not self._locator.on_top:
            return
        self._locator.__exit__(None, None, None)
        first = self._locator.first
        for note in self._locator.notes:
            self._note(note)
        if first is not None and not self._poisoned and (self.found is None or not self.found.line):
            self.found = replace(first, step=self._struck) if self._struck is not None else first
        self._locator = self._from_step = None

    def _tell_line(self, roots: Sequence[Tensor]) -> None:
        """The same operation in the graph of this step, which knows its lines."""
        assert self._suspect is not None
        site = line_of(self._suspect.node, self._suspect.nth, roots)
        if site != NOWHERE and self.found is not None:
            self.found = replace(self.found, file=site.shown(), line=site.line)

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


def _first(suspect: Suspect, step: int, batch: int, value: Literal["nan", "inf"]) -> FirstNonFinite:
    return FirstNonFinite(
        step=step,
        kind=suspect.kind,
        module=suspect.module,
        op=suspect.op,
        file="",
        line=0,
        batch=batch,
        sample=suspect.sample,
        value=value,
        detail=suspect.detail,
    )
