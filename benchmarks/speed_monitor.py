"""What watching costs beyond the clip, timed in isolation inside the hooks of a real training."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from statistics import mean, median
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from benchmarks.speed_clock import beyond, interleave, typical
from benchmarks.speed_models import WORKLOADS, training
from benchmarks.speed_rows import Effort, Row, row
from steadygrad.clip import FoldedClip
from steadygrad.probe.joinpoints import JoinPoints
from steadygrad.probe.probe import Probe
from steadygrad.probe.rotation import EARLY_TURNS
from steadygrad.probe.tiers import CHEAP, TIERS
from steadygrad.records import StepStats

TURN = 50  # steps from one look at the activations to the next
YOUNG = EARLY_TURNS * CHEAP.rotation + 1  # the first steps are looked at more closely
LOOKING = replace(CHEAP, name="looking", activation_every=1, portrait_every=1)


class Monitor:
    """Listens to a training with the probe's default tier and nothing else, and counts the seconds that this takes.

    Args:
        model: is trained.
        settings: of the probe, where they are not the default.

    Attributes:
        steps: seconds inside our hooks, of each optimizer step so far.
    """

    def __init__(self, model: nn.Module, **settings: Any) -> None:
        self.steps: list[float] = []
        self._probe = Probe([model], **settings)
        self._seconds = 0.0
        self._open: dict[Optimizer, StepStats] = {}

    @contextmanager
    def listening(self, optimizer: Optimizer) -> Iterator[None]:
        """Listen to this optimizer inside the block, and to nothing outside of it."""
        joinpoints = JoinPoints(self)
        joinpoints.install(all_optimizers=False)
        joinpoints.attach(optimizer)
        try:
            yield
        finally:
            joinpoints.remove()

    def _timed(self, call: Callable[..., Any], *args: Any) -> Any:
        begun = time.thread_time()
        with torch.no_grad():
            out = call(*args)
        self._seconds += time.thread_time() - begun
        return out

    def backward(self, roots: Sequence[Tensor]) -> None:
        self._timed(self._probe.saw_backward, roots)

    def graph(self, roots: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        self._timed(self._probe.saw_graph, roots)

    def clipped(self, params: Sequence[Tensor], max_norm: float) -> None:
        self._timed(self._probe.saw_clip, params, max_norm)

    def before_step(self, optimizer: Optimizer) -> bool:
        self._open[optimizer] = self._timed(self._probe.before, optimizer)
        return True

    def after_step(self, optimizer: Optimizer, applied: bool) -> None:
        self._timed(self._probe.after, optimizer, self._open.pop(optimizer), applied)
        self.steps.append(self._seconds)
        self._seconds = 0.0

    def step_raised(self, optimizer: Optimizer) -> None:
        self._probe.step_raised()

    def amp_skipped(self, optimizer: Optimizer, scaler: Any) -> None:
        raise AssertionError("no step of a benchmark overflows")

    def optimizer_built(self, optimizer: Optimizer) -> None: ...
    def scheduler_built(self, scheduler: Any) -> None: ...
    def scaler_seen(self, scaler: Any) -> None: ...


def monitor_rows(size: str, effort: Effort) -> list[Row]:
    """The default monitor of a training that clips by :class:`FoldedClip`, whose norms it is given.

    Steps on which activations are sampled have hooks in the forward pass: they are timed as whole steps beside plain
    ones. Of all other steps the time inside our hooks counts.
    """
    workload = WORKLOADS[size]

    def folded(model: nn.Module, optimizer: Optimizer) -> Callable[[], object]:
        return FoldedClip(optimizer, 1.0).step

    plain, watched, looked_at = (training(workload, update=folded) for _ in range(3))
    monitor, sampling = Monitor(watched.model), Monitor(looked_at.model, tier=LOOKING)
    listening = {
        "watched": partial(monitor.listening, watched.optimizer),
        "looked at": partial(sampling.listening, looked_at.optimizer),
    }
    interleave({"watched": watched.step}, rounds=YOUNG, warm=0, around=listening)
    calls = {"plain": plain.step, "watched": watched.step}
    parts = parts_of(watched.model)
    rounds = effort.of(max(2 * TURN, 4 * parts), least=CHEAP.rotation)
    seconds = interleave(calls, rounds, warm=0, around=listening)
    calls = {"plain": plain.step, "looked at": looked_at.step}
    beside = interleave(calls, rounds=effort.of(20), warm=3, around=listening)
    step = median(seconds["plain"])
    share = [s / step for s in monitor.steps]
    usual = [s for i, s in enumerate(share) if i >= YOUNG and i % TURN]
    sampled = beyond(beside["looked at"], beside["plain"], beside["plain"])
    average = mean(usual) * (TURN - 1) / TURN + sampled.value / TURN
    cadence = f"every step, activations every {TURN}; {workload.says}, folded clip + fused AdamW"
    row_of = partial(row, unit="share of a step", cadence=cadence)
    name = f"{size}: monitor beyond the clip"
    return [
        row_of(f"{name}, mean over steps", average, goal=0.005, rounds=len(usual)),
        row_of(f"{name}, worst step", worst_part(share, YOUNG, parts), goal=0.01, rounds=len(usual)),
        row_of(f"{name}, a step with its activations", sampled),
        row_of(f"{name}, worst of the first {YOUNG} steps", max(share[:YOUNG])),
        row(f"{size}: a plain step", typical(seconds["plain"]), unit="s", cadence=workload.says),
    ]


def tier_rows(size: str, effort: Effort) -> list[Row]:
    """What each tier takes beyond a plain step, averaged over whole turns: whole steps of copies in turns."""
    workload = WORKLOADS[size]
    plain = training(workload)
    watched = {name: training(workload) for name in TIERS}
    listening = {
        name: partial(Monitor(one.model, tier=TIERS[name]).listening, one.optimizer)
        for name, one in watched.items()
    }
    calls = {"plain": plain.step, **{name: one.step for name, one in watched.items()}}
    interleave(calls, rounds=YOUNG, warm=0, around=listening)
    t = interleave(calls, rounds=effort.of(2 * TURN, least=CHEAP.rotation), warm=0, around=listening)
    step = median(t["plain"])
    return [
        row(
            f"{size}: the tier {name}, mean over steps",
            mean(w - p for w, p in zip(t[name], t["plain"], strict=True)) / step,
            unit="share of a step",
            cadence=f"two turns of {TURN} steps, whole steps; {workload.says}, fused AdamW",
            rounds=len(t[name]),
        )
        for name in TIERS
    ]


def parts_of(model: nn.Module) -> int:
    """Steps in one turn of the rotation, once the first turns are over."""
    return max(CHEAP.rotation, math.ceil(len(list(model.parameters())) / (CHEAP.most_tensors or math.inf)))


def worst_part(steps: Sequence[float], start: int, parts: int) -> float:
    """The part of the rotation that takes longest: the largest of the medians over its turns.

    Steps before ``start`` do not count, nor do those on which activations are sampled: an outlier is no worst part.
    """
    turns: dict[int, list[float]] = defaultdict(list)
    for i, value in enumerate(steps):
        if i >= start and i % TURN:
            turns[i % parts].append(value)
    return max(map(median, turns.values()))
