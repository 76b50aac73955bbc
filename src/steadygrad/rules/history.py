"""What a run has been like so far: the numbers that the rules and the guard compare a step with."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Any, NamedTuple, TypeVar

import numpy as np

from steadygrad.records import StepStats
from steadygrad.rules.param_norms import ParamNorms
from steadygrad.rules.window import MAD_TO_SIGMA, Window

T = TypeVar("T")

WINDOW = 50  # accepted steps; science.md's W
HEALTHY = 200  # norms kept for the guard
RATES = 30  # learning rates kept to see a jump
PEAKS = 200  # losses kept to know how far the run jumps by itself
MIN_NORMS = 10  # below this a robust z says nothing
Z_FLOOR = 0.05  # decades added to the spread of the log norm: a run that hardly varies is not to be punished
Z_SPIKE = 6.0


class Reading(NamedTuple):
    """One step set against the history *before* it. Computed once, shared by all rules."""

    finite: bool  # loss (if seen) and gradient
    usable: bool  # finite and applied: the statistics will take it in
    loss: float | None  # per backward; None if none was seen or it is not finite
    reference: float | None  # median of the last 50 losses
    start: float | None  # median of the first three losses
    excess: float | None  # how far the loss is above start and reference, in units of `scale`
    log_norm: float | None  # log10 of the gradient norm; None if that is 0 or not finite
    median_log_norm: float | None  # of the last 50; None until there are ten
    z: float  # robust z of log_norm where it is above the median; 0 below it, or if it cannot be told


class History:
    """Statistics of the accepted steps of one optimizer.

    A step is accepted if its loss and its gradient are finite and it was applied. Anything else is counted and
    kept out: one NaN in a moving average would blind it for good. Losses are taken per backward, so that the
    short last group of an accumulation and the many calls of a closure leave the level where it is.

    Example:
        >>> from steadygrad.records import StepStats
        >>> h = History()
        >>> for step, norm in enumerate([1.0, 2.0, float("nan"), 3.0]):
        ...     h.ingest(StepStats(step, 0, 1.0, norm, norm, np.zeros(0, np.float32), 0.1))
        >>> h.median_grad_norm(), h.num_healthy, h.num_rejected
        (2.0, 3, 1)
    """

    def __init__(self) -> None:
        self.num_accepted = 0
        self.num_healthy = 0  # accepted, and nothing was wrong with it
        self.num_rejected = 0  # not finite, or skipped
        self.first_losses: list[float] = []
        self.losses = Window(WINDOW)
        self.recent_losses = Window(20)
        self.best_loss: float | None = None  # lowest median of 20 losses so far
        self.loss_peaks: deque[float] = deque(maxlen=PEAKS)
        self.log_norms = Window(WINDOW)
        self.norms: deque[float] = deque(maxlen=HEALTHY)
        self.clipped_norms: deque[float] = deque(maxlen=HEALTHY)
        self.largest_norm: float | None = None  # of all healthy steps of the run, as it reached the optimizer
        self.rates: deque[float] = deque(maxlen=RATES)  # learning rates
        self._param_norms = ParamNorms()
        self._reading: tuple[StepStats, Reading] | None = None
        self._worked_out: dict[Callable[[StepStats, History], Any], Any] = {}  # of the step of the reading

    # ------------------------------------------------------------------ what the guard asks
    def median_grad_norm(self, window: int = WINDOW) -> float | None:
        """Median norm before the user's clipping over the last ``window`` (1 to 200) healthy steps."""
        return _median(_last(self.norms, window))

    def median_clipped_norm(self, window: int = WINDOW) -> float | None:
        """Median norm that reached the optimizer over the last ``window`` (1 to 200) healthy steps."""
        return _median(_last(self.clipped_norms, window))

    def max_clipped_norm(self, window: int | None = WINDOW) -> float | None:
        """Largest norm that reached the optimizer in the last ``window`` healthy steps; None: in the whole run."""
        if window is None:
            return self.largest_norm
        return max(_last(self.clipped_norms, window), default=None)

    @property
    def loss_scale(self) -> float:
        """How big a change of the loss is in this run: its level or its robust spread, whichever is larger.

            scale = max(|start|, |median of 50|, 1.4826 MAD of 50)

        Multiplying the loss by a constant multiplies it too; 0 for a loss that is 0. Not GradScaler's scale.
        """
        if not self.losses:
            return 0.0
        return max(abs(self.start or 0.0), abs(self.losses.median()), self.loss_spread)

    # ------------------------------------------------------------------ what the rules ask
    @property
    def start(self) -> float | None:
        """Level of the loss at the start of the run."""
        return _median(self.first_losses)

    @property
    def loss_spread(self) -> float:
        return MAD_TO_SIGMA * self.losses.mad() if self.losses else 0.0

    @property
    def param_log_norms(self) -> np.ndarray:
        """(parameters,): moving average of log10 of each one's gradient norm; nan where there was none yet."""
        return self._param_norms.logs()

    def loss_peak(self, but: int) -> float:
        """Largest of the last 200 losses, without the newest ``but``: they may be the beginning of the trouble."""
        return max(islice(self.loss_peaks, max(0, len(self.loss_peaks) - but)), default=-math.inf)

    def reading(self, stats: StepStats) -> Reading:
        """The step against what came before it. Cached: every rule of a step gets the same."""
        if self._reading is None or self._reading[0] is not stats:
            self._reading = (stats, self._read(stats))
            self._worked_out.clear()
        return self._reading[1]

    def once(self, stats: StepStats, what: Callable[[StepStats, History], T]) -> T:
        """``what(stats, history)``, worked out once for all rules that ask for it in a step."""
        self.reading(stats)
        if what not in self._worked_out:
            self._worked_out[what] = what(stats, self)
        found: T = self._worked_out[what]
        return found

    def _read(self, stats: StepStats) -> Reading:
        loss = step_loss(stats)
        finite_loss = loss is None or math.isfinite(loss)
        norm, start = stats.grad_norm, self.start
        log_norm = math.log10(norm) if 0 < norm < math.inf else None
        reference = excess = None
        if loss is not None and finite_loss and self.losses:
            reference = self.losses.median()
            assert start is not None
            above = loss - max(start, reference)
            # The spread is looked at only where it can matter: it costs a sort.
            scale = max(abs(start), abs(reference))
            if above > scale:
                scale = max(scale, self.loss_spread)
            excess = above / scale if scale > 0 else None
        median_log, z = None, 0.0
        if len(self.log_norms) >= MIN_NORMS:
            median_log = self.log_norms.median()
            if log_norm is not None and log_norm > median_log + Z_FLOOR:
                z = (log_norm - median_log) / (MAD_TO_SIGMA * self.log_norms.mad() + Z_FLOOR)
        finite = finite_loss and stats.finite
        usable = finite and stats.applied
        return Reading(
            finite, usable, loss if finite_loss else None, reference, start, excess, log_norm, median_log, z
        )

    # ------------------------------------------------------------------ taking a step in
    def ingest(self, stats: StepStats, alarmed: bool = False) -> None:
        """Take the step in, unless it is not finite or was skipped.

        An alarmed step counts as accepted but not as healthy: medians of the window shrug it off, and the norms
        from which the guard learns its clip level leave it out.
        """
        now = self.reading(stats)
        self._reading = None
        if not now.usable:
            self.num_rejected += 1
            return
        self.num_accepted += 1
        if now.loss is not None:
            self._ingest_loss(now.loss)
        if now.log_norm is not None:
            self.log_norms.push(now.log_norm)
        self.rates.append(stats.lr)
        self._param_norms.push(stats.grad_norms)
        if not alarmed and now.z <= Z_SPIKE:
            self.num_healthy += 1
            self.norms.append(stats.grad_norm)
            self.clipped_norms.append(stats.clipped_grad_norm)
            self.largest_norm = max(self.largest_norm or 0.0, stats.clipped_grad_norm)

    def _ingest_loss(self, loss: float) -> None:
        if len(self.first_losses) < 3:
            self.first_losses.append(loss)
        self.losses.push(loss)
        self.loss_peaks.append(loss)
        self.recent_losses.push(loss)
        if len(self.recent_losses) == self.recent_losses.size:
            median = self.recent_losses.median()
            self.best_loss = median if self.best_loss is None else min(self.best_loss, median)

    # ------------------------------------------------------------------ state
    def state_dict(self) -> dict[str, Any]:
        """Everything, as plain numbers and lists (JSON can hold it; nan of an unseen parameter is None)."""
        return {
            "num_accepted": self.num_accepted,
            "num_healthy": self.num_healthy,
            "num_rejected": self.num_rejected,
            "first_losses": list(self.first_losses),
            "losses": list(self.losses.values),
            "recent_losses": list(self.recent_losses.values),
            "best_loss": self.best_loss,
            "loss_peaks": list(self.loss_peaks),
            "log_norms": list(self.log_norms.values),
            "norms": list(self.norms),
            "clipped_norms": list(self.clipped_norms),
            "largest_norm": self.largest_norm,
            "rates": list(self.rates),
            "param_log_norms": self._param_norms.state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        missing = self.state_dict().keys() - state.keys()
        if missing:
            raise ValueError(f"history state lacks {sorted(missing)}: it was saved by another version")
        self.num_accepted = int(state["num_accepted"])
        self.num_healthy = int(state["num_healthy"])
        self.num_rejected = int(state["num_rejected"])
        self.first_losses = list(state["first_losses"])
        self.losses = Window(WINDOW, state["losses"])
        self.recent_losses = Window(20, state["recent_losses"])
        self.best_loss = state["best_loss"]
        self.loss_peaks = deque(state["loss_peaks"], maxlen=PEAKS)
        self.log_norms = Window(WINDOW, state["log_norms"])
        self.norms = deque(state["norms"], maxlen=HEALTHY)
        self.clipped_norms = deque(state["clipped_norms"], maxlen=HEALTHY)
        self.largest_norm = state["largest_norm"]
        self.rates = deque(state["rates"], maxlen=RATES)
        self._param_norms.load(state["param_log_norms"])
        self._reading = None


def step_loss(stats: StepStats) -> float | None:
    """The loss of a step per backward call."""
    return None if stats.loss is None else stats.loss / max(1, stats.num_backwards)


def _last(values: deque[float], window: int) -> list[float]:
    if not 1 <= window <= HEALTHY:
        raise ValueError(f"window must be between 1 and {HEALTHY} steps, got {window}")
    return list(values)[-window:]


def _median(values: list[float]) -> float | None:
    if not values:
        return None
    ordered, n = sorted(values), len(values)
    return (ordered[(n - 1) // 2] + ordered[n // 2]) / 2
