"""Lower the learning rate after an incident, hold it, and warm it up again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch.optim import Optimizer

from steadygrad import _check
from steadygrad.schedule._step import checked_step
from steadygrad.schedule.factor import LRFactor, _check_names
from steadygrad.schedule.warmup_shapes import linear_warmup


def back_off_factor(
    step: int,
    depth: float,
    hold_steps: int | None = 100,
    rewarm_steps: int = 500,
    shape: Callable[[int, int], float] = linear_warmup,
) -> float:
    """The factor so many steps after an incident: low, held, and back along a warm-up.

        b(k) = d                              k < H
        b(k) = d + (1 - d) w(k - H, R)        k >= H        w: a warm-up over R steps

    When to use it: by itself to plan or to plot; `BackOff` keeps the memory and puts it on an optimizer.

    Values in use: as `BackOff`.

    Cost: a few operations on single numbers.

    Args:
        step: k, steps since the incident, at least 0.
        depth: d, the factor right after it, above 0, at most 1.
        hold_steps: H, at least 0; None stays low for good.
        rewarm_steps: R, at least 0; 0 jumps back.
        shape: w, `linear_warmup` or another: (step, warmup_steps) -> factor.

    Returns the factor, between d and 1, exactly 1.0 from step H + R on at the latest. A step that is no
    whole number, a negative one and a nan raise.

    Example:
        >>> [back_off_factor(k, depth=0.5, hold_steps=2, rewarm_steps=2) for k in range(5)]
        [0.5, 0.5, 0.75, 1.0, 1.0]

    Source: re-warming: Gupta et al. (2023), https://arxiv.org/abs/2308.04014
    """
    _check.fraction("depth", depth, zero=False)
    since = checked_step(step)
    if hold_steps is None or since < _check.count("hold_steps", hold_steps, 0):
        return depth
    w = shape(since - hold_steps, rewarm_steps)
    return 1.0 if w == 1 else depth + (1 - depth) * w


class BackOff(LRFactor):
    """Lower the learning rate at an incident and let it come back by itself, in front of any scheduler.

        d <- max(min_factor, factor * b)        at ``incident()``, b: the factor in force just then
        b(k) = d for H steps, then back to 1 along a warm-up over R steps

    When to use it: after a rollback, a divergence or a loss spike: the same steps at the same rate would
    explode again. Incidents that come before the rate is back compound, down to ``min_factor``.

    Limits: whoever detects the incident calls `incident`, between two steps. A rate that is too high for
    good is better lowered in the script: ``hold_steps=None`` never comes back. The scheduler runs on
    meanwhile. More under `LRFactor`.

    Values in use: factor 0.5; OPT-175B went back to a checkpoint and on at a lower rate after each divergence. For
    the way back the length of the run's own warm-up.

    Cost: a few operations on single numbers a step; nothing once the rate is back.

    Args:
        optimizer: any torch optimizer.
        factor: what an incident multiplies the rate by, above 0, below 1.
        hold_steps: H, steps at the low rate, at least 0; None for good.
        rewarm_steps: R, steps of the way back, at least 0; 0 jumps back.
        min_factor: the lowest the factor may get, above 0, at most ``factor``.
        max_incidents: incidents allowed without full recovery between them, at least 1; None for any number.
        shape: the way back: `linear_warmup`, `cosine_warmup`, ...: (step, warmup_steps) -> factor.

    ``incident()`` returns the factor of the next step, and raises RuntimeError when there were
    ``max_incidents`` already, with nothing changed. nan and bad settings raise; parameters and gradients
    are never touched.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        >>> back_off = BackOff(optimizer, hold_steps=1, rewarm_steps=2)
        >>> back_off.incident(), back_off.incident()
        (0.5, 0.25)
        >>> rates = []
        >>> for _ in range(4):
        ...     rates += back_off.factors()
        ...     optimizer.step()
        >>> rates
        [0.25, 0.625, 1.0, 1.0]

    Source: lowering after a divergence: Zhang et al. (2022), OPT, section 2.5,
    https://arxiv.org/abs/2205.01068; re-warming: Gupta et al. (2023), https://arxiv.org/abs/2308.04014
    """

    def __init__(
        self,
        optimizer: Optimizer,
        factor: float = 0.5,
        hold_steps: int | None = 100,
        rewarm_steps: int = 500,
        min_factor: float = 0.01,
        max_incidents: int | None = None,
        shape: Callable[[int, int], float] = linear_warmup,
    ) -> None:
        _check.fraction("factor", factor, zero=False, one=False)
        if not 0 < min_factor <= factor:
            raise ValueError(f"min_factor must be above 0 and at most factor = {factor}, got {min_factor}")
        if hold_steps is not None:
            _check.count("hold_steps", hold_steps, 0, ", or None to stay low")
        _check.count("rewarm_steps", rewarm_steps, 0)
        if max_incidents is not None:
            _check.count("max_incidents", max_incidents, 1, ", or None for any number")
        self.factor = factor
        self.hold_steps = hold_steps
        self.rewarm_steps = rewarm_steps
        self.min_factor = min_factor
        self.max_incidents = max_incidents
        self.shape = shape
        self.num_incidents = 0
        self._in_a_row = 0  # since the rate was last whole
        self._depth = 1.0
        self._incident_at = 0  # in steps taken
        super().__init__(optimizer, self._of_step)

    def _of_step(self, step: int) -> float:
        if self._in_a_row == 0:
            return 1.0
        since = step - self._incident_at
        return back_off_factor(since, self._depth, self.hold_steps, self.rewarm_steps, self.shape)

    def incident(self) -> float:
        """Lower the rate from the next step on; returns the factor of that step."""
        now = self._of_step(self.num_steps)
        in_a_row = 0 if now == 1 else self._in_a_row
        if self.max_incidents is not None and in_a_row >= self.max_incidents:
            raise RuntimeError(
                f"{in_a_row} incidents and no recovery between them: a lower rate is not the cure. The rate is at "
                f"{now:.3g} of the schedule's; look for the cause, or raise max_incidents"
            )
        self._depth = max(self.min_factor, self.factor * now)
        self._in_a_row = in_a_row + 1
        self._incident_at = self.num_steps
        self.num_incidents += 1
        return self._of_step(self.num_steps)

    def state_dict(self) -> dict[str, Any]:
        """Where the way back stands; the settings are not in it."""
        return {
            "num_steps": self.num_steps,
            "num_incidents": self.num_incidents,
            "in_a_row": self._in_a_row,
            "depth": self._depth,
            "incident_at": self._incident_at,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave; nothing is changed if it does not fit."""
        _check_names(type(self).__name__, state, self.state_dict())
        names = ("num_steps", "num_incidents", "in_a_row", "incident_at")
        counts = {name: _check.count(name, state[name], 0) for name in names}
        depth = float(_check.fraction("depth", state["depth"], zero=False))
        if counts["incident_at"] > counts["num_steps"]:
            raise ValueError(f"incident_at must be at most num_steps = {counts['num_steps']}, got {counts}")
        self.num_steps, self.num_incidents = counts["num_steps"], counts["num_incidents"]
        self._in_a_row, self._incident_at, self._depth = counts["in_a_row"], counts["incident_at"], depth
