"""A training of the zoo under a plan: put in force as in an arm of `steadygrad repair`, and judged while it is."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from benchmarks.zoo import Outcome, Training, outcome
from benchmarks.zoo.training import plain_loop
from benchmarks.zoo_runs import Draw, Row
from steadygrad.integrations.in_force import CarefulChange, InForce
from steadygrad.probe.joinpoints import JoinPoints
from steadygrad.trace.jsontext import dumps


@dataclass(frozen=True)
class Ended:
    """A training that is over."""

    outcome: Outcome
    losses: list[float]
    steps: int  # that it was to take
    seconds: float


class _Listener:
    """The listener that carries out what is in force, and nothing else."""

    def __init__(self, in_force: InForce) -> None:
        self.in_force = in_force

    def optimizer_built(self, optimizer: Optimizer) -> None:
        self.in_force.optimizer_built(optimizer)

    def graph(self, roots: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        self.in_force.backward(roots, values)

    @torch.no_grad()
    def before_step(self, optimizer: Optimizer) -> bool:
        return self.in_force.before_step(optimizer)

    @torch.no_grad()
    def after_step(self, optimizer: Optimizer, applied: bool) -> None:
        self.in_force.after_step(optimizer, applied)

    def step_raised(self, optimizer: Optimizer) -> None:
        self.in_force.undo_step()

    def scheduler_built(self, scheduler: Any) -> None: ...
    def scaler_seen(self, scaler: Any) -> None: ...
    def backward(self, roots: Sequence[Tensor]) -> None: ...
    def clipped(self, params: Sequence[Tensor], max_norm: float) -> None: ...
    def amp_skipped(self, optimizer: Optimizer, scaler: Any) -> None: ...


def _not_in_force(error: Exception) -> None:
    raise error


@contextmanager
def under(plan: Mapping[str, Any]) -> Iterator[None]:
    """Inside the block a training that is built and run there is changed as the plan says; no plan changes nothing.

    Raises:
        NotApplicable: the plan cannot be put in force, here or in the training's first forward pass.
    """
    if not plan:
        yield
        return
    gc.collect()  # models of earlier trainings must not be found
    change, in_force = CarefulChange(plan, _not_in_force), InForce()
    joinpoints = JoinPoints(_Listener(in_force))
    joinpoints.install(all_optimizers=True)
    try:
        for optimizer in joinpoints.optimizers():
            joinpoints.detach(optimizer)  # of other trainings in this process
        in_force.add(change)
        yield
    finally:
        in_force.clear()
        joinpoints.remove()


def ended(draw: Draw, plan: Mapping[str, Any] | None = None) -> Ended:
    """Train a draw afresh to its end under a plan, and judge it there; None is the plain run."""
    losses: list[float] = []
    start = time.perf_counter()
    with under(plan or {}):
        training = draw.build()
        record(training, losses)
        end = outcome(training)
    return Ended(end, losses, training.steps, time.perf_counter() - start)


def record(training: Training, losses: list[float]) -> None:
    """Write down every loss of the training, as it comes."""
    loop = training.loop or plain_loop

    def recording(t: Training) -> Iterator[float]:
        for loss in loop(t):
            losses.append(loss)
            yield loss

    training.loop = recording


def outcome_json(end: Outcome) -> Row:
    """As the rows of the zoo have it: numbers that are not finite are their names."""
    kept = {"kind": end.kind, "trained": end.trained, "score": end.score, "steps": end.steps}
    row: Row = json.loads(dumps(kept))
    return row
