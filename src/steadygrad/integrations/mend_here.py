"""Repair a training in this process: every run is made anew by a function, one after the other."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from steadygrad.guard.rng import rng_state, set_rng_state
from steadygrad.integrations.replay import train_once
from steadygrad.repair.effects.effect import NotApplicable
from steadygrad.repair.mend import Answer, Repair, Request, mend


def repair_training(
    make_training: Callable[[int], Iterator[float]],
    *,
    seeds: int = 2,
    max_runs: float = 30.0,
    max_seconds: float = float("inf"),
    told: Callable[[str, Any], None] = lambda what, value: None,
) -> Repair:
    """Find a remedy for a training that fails, and prove it against an untouched twin.

    Each run starts from the same state of the random generators; behind the last one they are as they were before.

    Args:
        make_training: given a seed, 0 for the run that is to be repaired and 1, 2, ... for its repetitions, builds
            model and optimizer anew and returns an iterator that trains one step each time it is asked. Nothing may
            be carried over from call to call: no data order, no model. The generators of torch, numpy and random are
            reseeded before it is called for a seed above 0.
        seeds: seeds on which the remedy is compared with the untouched run; at least 1.
        max_runs: what the search may cost, in whole runs.
        max_seconds: the same in time.
        told: called with ("verdict", Case), ("tried", Tried), ("seed", Seeded) as they come.

    Raises:
        NoRun: the training took no optimizer step.
        Exception: whatever the unchanged training raises before its first step.

    Example:
        >>> def training(seed):
        ...     model = torch.nn.Linear(4, 1, bias=False)
        ...     optimizer = torch.optim.SGD(model.parameters(), lr=3.0)
        ...     x = torch.randn(64, 4)
        ...     for _ in range(60):
        ...         optimizer.zero_grad()
        ...         loss = torch.nn.functional.mse_loss(model(x), x.sum(1, keepdim=True))
        ...         loss.backward()
        ...         optimizer.step()
        ...         yield loss.item()
        >>> found = repair_training(training)
        >>> found.cured, found.causes[0].cause, len(found.remedies)
        (True, 'lr_too_large', 1)
    """
    start = rng_state()

    def one(request: Request) -> Answer:
        begun = time.monotonic()
        set_rng_state(start)
        if request.seed_offset:
            torch.manual_seed(request.seed_offset)
            np.random.seed(request.seed_offset)
            random.seed(request.seed_offset)
        note = ""
        report = None
        try:
            report, error = train_once(
                lambda: make_training(request.seed_offset), request.plan, request.steps, survey=request.survey
            )
            if error is not None:
                if request.survey and report is None:
                    raise error
                note = f"{type(error).__name__}: {error}"
        except NotApplicable as reason:
            note = str(reason)
        return Answer(report if not note or request.survey else None, note, time.monotonic() - begun)

    def runs(requests: Sequence[Request]) -> list[Answer]:
        return [one(request) for request in requests]

    freezes = gc.get_freeze_count() == 0
    if freezes:
        gc.freeze()  # models are sought among all live objects: those of before are other trainings'
    try:
        return mend(runs, seeds=seeds, max_runs=max_runs, max_seconds=max_seconds, told=told)
    finally:
        if freezes:
            gc.unfreeze()
        set_rng_state(start)
