"""Watch the first steps of a training, and say what will become of it."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._python_dispatch import _disable_current_modes

from steadygrad.diagnose.casefile import CaseFile, optimizer_facts
from steadygrad.diagnose.causes import rank_causes
from steadygrad.diagnose.risk import risk
from steadygrad.forecasting.result import Forecast, LayerGain
from steadygrad.forecasting.schedule import largest_lr
from steadygrad.forecasting.sharpness import Sharpness, largest_stable_lr, sharpness
from steadygrad.graph.layers import backward_gains, forward_gains
from steadygrad.graph.walk import Graph
from steadygrad.locating.live import LiveLocator
from steadygrad.probe.joinpoints import JoinPoints
from steadygrad.probe.loss import without_sync
from steadygrad.probe.portrait import loss_scale
from steadygrad.probe.probe import Probe
from steadygrad.records import NAN, Finding, Portrait, StepStats
from steadygrad.rules.engine import RuleSet

T = TypeVar("T")
MAX_SECONDS = 15.0  # after the first backward pass no further step is waited for
MAX_CURVATURE = 6.0  # of them for the curvature
MAX_PARAMETERS = 300_000_000  # beyond it curvature is not measured: each product is a backward pass


def _guarded(default: Any) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """An error of ours ends the forecast, not the user's loop."""

    def decorate(method: Callable[..., T]) -> Callable[..., T]:
        @functools.wraps(method)
        def safe(self: FirstSteps, *args: Any, **kwargs: Any) -> T:
            if self._over:
                return cast(T, default)
            try:
                with torch.no_grad(), _disable_current_modes() if self.locator.armed else nullcontext():
                    return method(self, *args, **kwargs)
            except Exception as error:  # noqa: BLE001 - whatever we did wrong
                self._give_up(error)
                return cast(T, default)

        return safe

    return decorate


class FirstSteps:
    """The listener of a forecast: sees the first steps of a training, and says when it has seen enough.

    Args:
        steps: optimizer steps to watch, of whichever optimizer takes them first.
        enough: called with the forecast after the last of them; may end the process.
        models: what is trained; found in memory if None.
        gradients: makes the gradients of the first batch anew, for operations without a second derivative; None in a
            script, whose forward cannot be repeated.

    What fails inside goes to ``failed`` instead of into the user's loop.
    """

    def __init__(
        self,
        steps: int,
        enough: Callable[[Forecast], None],
        *,
        models: Sequence[nn.Module] | None = None,
        gradients: Callable[[], list[Tensor]] | None = None,
        failed: Callable[[Exception], None],
    ) -> None:
        self.probe = Probe(models)
        self.rules = RuleSet()
        self.casefile = CaseFile()
        self.locator = LiveLocator()
        self.joinpoints = JoinPoints(self, "sg.forecast")
        self.steps = 0
        self._taken: dict[int, int] = {}  # steps of each optimizer
        self._wanted, self._enough, self._failed = steps, enough, failed
        self._gradients = gradients
        self._findings: list[Finding] = []
        self._first: StepStats | None = None
        self._sharpness: Sharpness | None = None
        self._lr = self._limit = NAN
        self._open: dict[int, StepStats] = {}
        self._newest: StepStats | None = None
        self._over = False
        self._met: set[int] = set()
        self._began: float | None = None

    # ------------------------------------------------------------------ what the join points tell
    def optimizer_built(self, optimizer: Optimizer) -> None: ...
    def scheduler_built(self, scheduler: Any) -> None: ...
    def step_raised(self, optimizer: Optimizer) -> None: ...

    @_guarded(None)
    def scaler_seen(self, scaler: Any) -> None:
        self.probe.saw_scaler(scaler)

    @_guarded(None)
    def clipped(self, params: Sequence[Tensor], max_norm: float) -> None:
        self.probe.saw_clip(params, max_norm)

    @_guarded(None)
    def amp_skipped(self, optimizer: Optimizer, scaler: Any) -> None:
        self.probe.saw_amp_skip(optimizer)

    @_guarded(None)
    def backward(self, roots: Sequence[Tensor]) -> None:
        self._began = self._began or time.monotonic()
        self._meet()
        self.probe.saw_backward(roots)

    @_guarded(None)
    def graph(self, roots: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        self.locator.before_backward(roots, without_sync(values), self.steps)
        self.probe.saw_graph(roots, now=True)
        if self._sharpness is None:
            self._measure_curvature(roots)

    @_guarded(True)
    def before_step(self, optimizer: Optimizer) -> bool:
        self._meet()
        self.locator.before_step()
        index = self.probe.optimizer_index(optimizer)
        self._open[index] = self.probe.before(optimizer)
        return True

    def after_step(self, optimizer: Optimizer, applied: bool) -> None:
        self._after_step(optimizer, applied)
        if self._over:
            return
        late = self._began is not None and time.monotonic() - self._began > MAX_SECONDS
        try:  # apart: a mode cannot be entered or left while modes are switched off
            if self._newest is not None:
                self.locator.after_step(self._newest, self.probe.roots)
                self._newest = None
            if self.steps >= self._wanted or late:
                self.locator.close()
        except Exception as error:  # noqa: BLE001 - as in _guarded
            self._give_up(error)
        if self.steps >= self._wanted or late:
            self._end()

    @_guarded(None)
    def _end(self) -> None:
        forecast = self.forecast()
        self._over = True
        self._enough(forecast)

    def _give_up(self, error: Exception) -> None:
        self._over = True
        self.joinpoints.remove()
        self._failed(error)

    @_guarded(None)
    def _after_step(self, optimizer: Optimizer, applied: bool) -> None:
        index = self.probe.optimizer_index(optimizer)
        stats = self.probe.after(optimizer, self._open.pop(index), applied)
        found = self.rules.observe(stats)
        self._findings += found
        self._taken[index] = self._taken.get(index, 0) + 1
        self.steps = max(self._taken.values())  # one that is built and never used is not waited for
        self._first = self._first or stats
        self._newest = stats
        types = sorted({type(m).__name__ for r in self.probe.roots for m in r.modules()})
        self.casefile.step(stats, found, self.rules.history(index), optimizer_facts(optimizer, types))

    def _meet(self) -> None:
        optimizers = self.joinpoints.optimizers()
        if any(id(o) not in self._met for o in optimizers):
            self._met = {id(o) for o in optimizers}
            self.probe.look_around(optimizers)
            for optimizer in optimizers:
                self.probe.optimizer_index(optimizer)

    def _measure_curvature(self, roots: Sequence[Tensor]) -> None:
        """In the parameters of the first optimizer that the loss reaches; each has a limit of its own."""
        reached = _reached(roots)
        optimizers = sorted(self.joinpoints.optimizers(), key=self.probe.optimizer_index)
        trained = (
            (o, [p for g in o.param_groups for p in g["params"] if id(p) in reached]) for o in optimizers
        )
        optimizer, params = next(((o, params) for o, params in trained if params), (None, []))
        if optimizer is None:  # a backward pass of something else: the next one will do
            return
        if sum(p.numel() for p in params) > MAX_PARAMETERS:
            self._sharpness = Sharpness(NAN, 0, "the model is too large")
            return
        beta1 = _beta1(optimizer)
        found = sharpness(
            roots, params, adaptive=beta1 is not None, gradients=self._gradients, seconds=MAX_CURVATURE
        )
        if beta1 is None:  # a preconditioned Hessian has the factor twice, and it cancels
            found = found._replace(value=found.value / loss_scale(roots))
        self._sharpness = found
        group = optimizer.param_groups[0]
        self._lr = largest_lr(optimizer)
        momentum = float(group.get("momentum", 0.0) or 0.0)
        self._limit = largest_stable_lr(found.value, momentum=momentum, beta1=beta1)
        self.casefile.lr_limit, self.casefile.lr_peak = self._limit, self._lr

    # ------------------------------------------------------------------ the forecast
    def forecast(self) -> Forecast:
        """What these steps say. Call it once, at the end."""
        self.locator.close()
        self.casefile.located = self.locator.found
        facts = self.casefile.facts()
        if facts is None or self._first is None:
            raise ValueError("no optimizer step was seen: there is nothing to forecast from")
        confidence = risk(self._findings, facts)
        will_fail = confidence >= 0.5
        portrait = facts.portrait
        return Forecast(
            will_fail=will_fail,
            confidence=confidence,
            causes=tuple(rank_causes(self._findings, facts)) if will_fail else (),
            findings=tuple(self._findings),
            layers=_gains(portrait),
            steps_seen=self.steps,
            loss=NAN if self._first.loss is None else self._first.loss,
            sharpness=self._sharpness.value if self._sharpness is not None else NAN,
            lr=self._lr if not math.isnan(self._lr) else self._first.lr,
            lr_limit=self._limit,
            first_nonfinite=self.locator.found,
            cannot_see=tuple(self._cannot_see(portrait)),
        )

    def _cannot_see(self, portrait: Portrait | None) -> list[str]:
        out = [
            "what only later batches bring: a bad batch, an unsafe operation at a value not met yet, drift"
        ]
        if self._sharpness is not None and math.isnan(self._sharpness.value):
            out.append(f"the learning rate against the curvature: {self._sharpness.how}")
        if portrait is None or not portrait.layers:
            out.append("the layers: the graph of the loss shows none (compiled, or made by custom functions)")
        elif not portrait.complete:
            out.append("all of the graph: it is larger than what is read, or parts of it are recomputed")
        if portrait is not None and not portrait.terms:
            out.append("what the loss should give at the start: it is of no kind that is known")
        return out + self.probe.notes


def _gains(portrait: Portrait | None) -> tuple[LayerGain, ...]:
    if portrait is None:
        return ()
    gains = zip(portrait.layers, forward_gains(portrait.layers), backward_gains(portrait.layers), strict=True)
    return tuple(LayerGain(row.name, forward, backward) for row, forward, backward in gains)


def _reached(roots: Sequence[Tensor]) -> set[int]:
    return {id(leaf) for leaf in Graph(roots).leaves.values()}


def _beta1(optimizer: Optimizer) -> float | None:
    """The first beta of an optimizer that divides by a second moment; None for one that does not."""
    betas = optimizer.param_groups[0].get("betas")
    if isinstance(betas, (tuple, list)) and betas and type(optimizer).__name__ not in ("Lion",):
        return min(float(betas[0]), 0.999)
    return (
        0.0
        if isinstance(optimizer, (torch.optim.RMSprop, torch.optim.Adagrad, torch.optim.Adadelta))
        else None
    )
