"""What to do about what was seen. Pure: numbers in, decisions out; nothing here touches a tensor.

The ladder, from the mildest rung:

1. skip a step whose gradient is not finite, or is far out of everything the run has seen;
2. roll back to the last good state and go on with the next batches (past a bad window of data);
3. roll back and change something: clip at a level learned from the healthy steps, then lower the learning
   rate as well, with a re-warm-up; each further rollback to the same place changes more;
4. stop, with a report.

What is finite is first given time to recover by itself. A loss that is NaN while the gradients are finite is
reported, not acted on: some such runs train. A non-finite update is never applied.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, Literal, Protocol

from steadygrad.records import Finding, StepStats

STOP_EXIT_CODE = 86
SQUARE_OVERFLOWS = 1.8e19  # root of the largest float32: a second moment would be infinite for good
NONFINITE = (
    "L100",
    "G100",
    "A100",
    "P100",
    "O100",
    "P101",
)  # codes that the finite incidents leave to others


class GuardStop(RuntimeError):
    """Raised in the user's loop by :func:`steadygrad.watch` when the guard's ladder has come to its end."""


class GuardExit(SystemExit):
    """The same under ``steadygrad run``: ends the script with exit code 86."""

    def __init__(self, message: str) -> None:
        super().__init__(STOP_EXIT_CODE)
        self.message = message


class Norms(Protocol):
    """What the policy asks of the history of healthy steps."""

    num_healthy: int

    @property
    def start(self) -> float | None:
        """Level of the loss at the start of the run, per backward pass."""

    def median_clipped_norm(self, window: int = 50) -> float | None: ...
    def max_clipped_norm(self, window: int | None = 50) -> float | None: ...


@dataclass(frozen=True, slots=True)
class Limits:
    """The numbers of the ladder. Steps are optimizer steps."""

    jump: float = 1e6  # a finite norm this far above the largest of the run is not applied; 1e20 beside 1 is
    max_skips_in_a_row: int = 3  # then the state is to blame, not the batch
    skip_window: int = 200
    max_skips_in_window: int = 20
    patience: int = 50  # steps that a finite incident is given to recover
    same_place: int = 200  # a rollback this soon after the last one is "the same place again"
    clip_over_median: float = 1.5
    rungs: tuple[tuple[float, float], ...] = ((1.0, 1.0), (0.25, 1.0), (0.25, 0.3), (0.1, 0.1), (0.1, 0.01))
    """Factor on the learned clip level and on the learning rate, one pair for each further rollback."""
    rewarm_steps: int = 100  # the learning rate climbs back to its backed-off value over this many steps
    max_rollbacks: int = 12  # in the whole run


@dataclass(frozen=True, slots=True)
class StepDecision:
    """What to do with the step that is about to be taken."""

    apply: bool
    reason: str = ""
    code: str = ""


@dataclass(frozen=True, slots=True)
class Rollback:
    """Go back to the newest good state from before ``before_step`` and put these changes in force."""

    before_step: int  # tick of the run
    clip: float | None
    lr_factor: float
    reason: str
    code: str


@dataclass(frozen=True, slots=True)
class Stop:
    reason: str
    code: str


Move = Rollback | Stop


@dataclass(slots=True)
class Incident:
    """Something finite that looks wrong and is given time."""

    tick: int
    code: str
    optimizer: int
    message: str
    level: float  # the larger of the loss at the start of the run and just before
    losses: list[float] = field(default_factory=list)

    def diverged(self) -> bool:
        """Whether the loss is still far above all that was normal, and not on its way back.

        Three times the level, and no better than half of the incident's own beginning: a run that is coming
        down is left to come down.
        """
        if len(self.losses) < 10:
            return False
        begin, end = median(self.losses[:10]), median(self.losses[-10:])
        return end > far_above(self.level) and end > 0.5 * begin


def far_above(level: float) -> float:
    """Three times the level, for a loss of either sign."""
    return level + 2 * max(abs(level), 1e-12)


@dataclass
class Policy:
    """The guard's memory of its own decisions, and the rules by which it makes them.

    ``tick`` counts the steps of all optimizers together; ``stats.step`` those of one.
    """

    limits: Limits = field(default_factory=Limits)
    clip: float | None = None  # in force
    lr_factor: float = 1.0  # in force
    skips_in_a_row: dict[int, int] = field(default_factory=dict)
    recent_skips: deque[int] = field(default_factory=deque)  # ticks
    recent_norms: deque[float] = field(
        default_factory=lambda: deque(maxlen=3)
    )  # of applied steps, as applied
    exploding: bool = False  # something finite was far out in the present row of skips
    rung: int = 0
    rollbacks: int = 0
    last_rollback_tick: int | None = None
    last_kind: Literal["", "bad_data", "explosion"] = ""
    rewarm_from: int | None = None  # tick at which the learning rate began to climb back
    incident: Incident | None = None
    check: Incident | None = None  # after a finite rollback: is the loss back where it was?
    shifted_until: int = 0  # it was not: the data have changed, and the weights are not to blame until then

    # ------------------------------------------------------------------ before the step
    def before(self, stats: StepStats, norms: Norms, tick: int, buffers: Sequence[str] = ()) -> StepDecision:
        """Apply this step, or skip it? ``buffers``: those of the model that have become NaN in its forward pass."""
        if buffers and stats.finite:
            # BatchNorm trains on without its running statistics; the evaluation would be NaN.
            return StepDecision(False, f"{', '.join(buffers[:3])} became NaN", "P100")
        if not stats.finite:
            return StepDecision(False, "the gradient is not finite", "G100")
        ceiling = norms.max_clipped_norm(None)
        applied_norm = min(stats.clipped_grad_norm, self.clip) if self.clip else stats.clipped_grad_norm
        if applied_norm > SQUARE_OVERFLOWS and any(p.dtype != "float64" for p in stats.params):
            return StepDecision(
                False, f"the square of the gradient norm {applied_norm:.1e} overflows", "G103"
            )
        if ceiling and norms.num_healthy >= 1 and applied_norm > self.limits.jump * ceiling:
            ratio = stats.clipped_grad_norm / ceiling
            return StepDecision(
                False, f"the gradient norm is {ratio:.1e} times the largest of the run so far", "G103"
            )
        return StepDecision(True)

    def bound(self, norms: Norms) -> float:
        """The largest norm of a gradient that is not of float64 throughout at which :meth:`before` applies the step."""
        ceiling = norms.max_clipped_norm(None)
        if ceiling and norms.num_healthy >= 1:
            return min(SQUARE_OVERFLOWS, self.limits.jump * ceiling)
        return SQUARE_OVERFLOWS

    def at_rest(self, optimizer: int) -> bool:
        """Whether nothing is in force, and the coming step, if it is skipped, calls for nothing more than the skip.

        Unless the state turns out to be poisoned.
        """
        changed = self.clip is not None or self.lr_factor != 1.0 or self.rewarm_from is not None
        watching = self.incident is not None or self.check is not None
        skipping = (
            self.skips_in_a_row.get(optimizer, 0) or len(self.recent_skips) >= self.limits.max_skips_in_window
        )
        return not (changed or watching or skipping)

    def lr_scale(self, tick: int) -> float:
        """The factor on the learning rate for this step: the back-off, and the climb back to it."""
        if self.rewarm_from is None:
            return self.lr_factor
        climbed = (tick - self.rewarm_from + 1) / self.limits.rewarm_steps
        if climbed >= 1:
            self.rewarm_from = None
            return self.lr_factor
        return self.lr_factor * max(climbed, 0.01)

    # ------------------------------------------------------------------ after the step
    def after(
        self, stats: StepStats, findings: Sequence[Finding], norms: Norms, tick: int, poisoned: Sequence[str]
    ) -> Move | None:
        """What the findings of this step call for. ``poisoned``: names of non-finite state, if it was looked at."""
        if poisoned:
            shown = ", ".join(poisoned[:3]) + (f" and {len(poisoned) - 3} more" if len(poisoned) > 3 else "")
            return self._roll_back("bad_data", self._onset(tick), norms, tick, f"{shown} not finite", "P100")
        alarms = [f for f in findings if f.severity == "alarm" and f.code not in NONFINITE]
        if not stats.applied:
            self.exploding |= stats.finite or bool(alarms)
            return self._after_skip(stats, norms, tick)
        self.skips_in_a_row[stats.optimizer] = 0
        self.exploding = False
        self.recent_norms.append(min(stats.clipped_grad_norm, self.clip or math.inf))
        self._check_data(stats, tick)
        if self.incident is None and alarms and tick >= self.shifted_until:
            level = max(
                alarms[0].evidence.get("loss_before", -math.inf),
                (norms.start or 0.0) * max(1, stats.num_backwards),
            )
            self.incident = Incident(tick, alarms[0].code, stats.optimizer, alarms[0].message, level)
        return self._watch_incident(stats, norms, tick)

    def _after_skip(self, stats: StepStats, norms: Norms, tick: int) -> Move | None:
        in_a_row = self.skips_in_a_row.get(stats.optimizer, 0) + 1
        self.skips_in_a_row[stats.optimizer] = in_a_row
        self.recent_skips.append(tick)
        while self.recent_skips and self.recent_skips[0] <= tick - self.limits.skip_window:
            self.recent_skips.popleft()
        if self.incident is not None and self.incident.optimizer == stats.optimizer:
            # It was blowing up while finite, and now it has: the state is to blame, more skips are futile.
            reason = f"{self.incident.message}; then the gradient could not be used"
            return self._roll_back("explosion", self.incident.tick, norms, tick, reason, self.incident.code)
        if in_a_row >= self.limits.max_skips_in_a_row:
            reason = f"{in_a_row} steps in a row could not be used"
            kind: Literal["bad_data", "explosion"] = "explosion" if self.exploding else "bad_data"
            return self._roll_back(kind, tick - in_a_row + 1, norms, tick, reason, "G100")
        if len(self.recent_skips) > self.limits.max_skips_in_window:
            reason = f"{len(self.recent_skips)} of the last {self.limits.skip_window} steps could not be used"
            return self._roll_back("bad_data", self._onset(tick), norms, tick, reason, "G100")
        return None

    def _watch_incident(self, stats: StepStats, norms: Norms, tick: int) -> Move | None:
        """A finite incident: over when the loss is back, acted on when it is still far out after its patience."""
        incident = self.incident
        if incident is None or incident.optimizer != stats.optimizer:
            return None
        if stats.loss is not None and math.isfinite(stats.loss):
            incident.losses.append(stats.loss)
        if tick - incident.tick < self.limits.patience:
            return None
        self.incident = None
        if not incident.diverged():
            return None
        self.check = Incident(tick, incident.code, incident.optimizer, incident.message, incident.level)
        reason = f"{incident.message}; it did not recover in {self.limits.patience} steps"
        return self._roll_back("explosion", incident.tick, norms, tick, reason, incident.code)

    def _check_data(self, stats: StepStats, tick: int) -> None:
        """A rollback is a trial: good weights that give the same bad loss say that the data have changed."""
        check = self.check
        if check is None or check.optimizer != stats.optimizer or stats.loss is None:
            return
        check.losses.append(stats.loss)
        if len(check.losses) >= 5:
            self.check = None
            if median(check.losses) > far_above(check.level):
                self.shifted_until = tick + self.limits.same_place * 5
                self.incident = None

    def _onset(self, tick: int) -> int:
        """Where the trouble began, as far as is known."""
        return self.incident.tick if self.incident is not None else tick

    def _roll_back(
        self,
        kind: Literal["bad_data", "explosion"],
        onset: int,
        norms: Norms,
        tick: int,
        reason: str,
        code: str,
    ) -> Move:
        self.incident, self.exploding = None, False
        self.skips_in_a_row.clear()
        self.recent_skips.clear()
        again = (
            self.last_rollback_tick is not None and tick - self.last_rollback_tick <= self.limits.same_place
        )
        if not again:
            self.rung = 0 if self.clip is None else max(self.rung, 1)
        # The first answer to bad data is the next data. Everything else has to change something.
        change = kind == "explosion" or (again and self.last_kind == kind) or self.rung > 0
        if self.rollbacks >= self.limits.max_rollbacks or (change and self.rung >= len(self.limits.rungs)):
            return Stop(f"{reason}, after {self.rollbacks} rollbacks", code)
        if change and not self._climb(norms, tick):
            return Stop(f"{reason}, and there is nothing left to change", code)
        self.rollbacks += 1
        self.last_rollback_tick, self.last_kind = tick, kind
        return Rollback(onset, self.clip, self.lr_factor, reason, code)

    def _climb(self, norms: Norms, tick: int) -> bool:
        """Go up the ladder to the next rung that changes something. False: there is none."""
        before = (self.clip, self.lr_factor)
        usual = norms.median_clipped_norm(50)
        largest = max(self.recent_norms, default=math.inf)
        self.recent_norms.clear()
        while self.rung < len(self.limits.rungs) and (self.clip, self.lr_factor) == before:
            clip_factor, lr_factor = self.limits.rungs[self.rung]
            self.rung += 1
            if usual:
                level = self.limits.clip_over_median * usual
                # Steps no larger than that have just led into the trouble: they were too large already.
                level = (level if largest > level else largest / 4) * clip_factor
                self.clip = level if self.clip is None else min(level, self.clip)
            if lr_factor < self.lr_factor:
                self.lr_factor = lr_factor
                self.rewarm_from = tick + 1
        return (self.clip, self.lr_factor) != before

    # ------------------------------------------------------------------ state
    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to go on deciding alike, as plain data."""
        return {name: getattr(self, name) for name in _PLAIN} | {
            "incident": asdict(self.incident) if self.incident is not None else None,
            "check": asdict(self.check) if self.check is not None else None,
            "skips_in_a_row": {str(k): v for k, v in self.skips_in_a_row.items()},
            "recent_skips": list(self.recent_skips),
            "recent_norms": list(self.recent_norms),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in _PLAIN:
            setattr(self, name, state[name])
        self.skips_in_a_row = {int(k): v for k, v in state["skips_in_a_row"].items()}
        self.recent_skips = deque(state["recent_skips"])
        self.recent_norms = deque(state["recent_norms"], maxlen=3)
        self.incident, self.check = _incident(state["incident"]), _incident(state["check"])

    def forget_before(self, tick: int) -> None:
        """There is no state from before this tick to go back to: what is under way counts from there."""
        self.skips_in_a_row.clear()
        for open_ in (self.incident, self.check):
            if open_ is not None:
                open_.tick = max(open_.tick, tick)


def _incident(state: dict[str, Any] | None) -> Incident | None:
    return None if state is None else Incident(**{**state, "losses": list(state["losses"])})


_PLAIN = (
    "clip",
    "lr_factor",
    "exploding",
    "rung",
    "rollbacks",
    "last_rollback_tick",
    "last_kind",
    "rewarm_from",
    "shifted_until",
)
