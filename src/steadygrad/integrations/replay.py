"""Repeat a training in this process with one thing changed, beside the unchanged twin."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from steadygrad.diagnose.interventions import Intervention
from steadygrad.diagnose.trial import TrialReport
from steadygrad.guard.rng import rng_state, set_rng_state
from steadygrad.integrations.investigation import Rerun, investigate
from steadygrad.integrations.trial import Trial


def replay(
    make_training: Callable[[], Iterator[float]],
    interventions: Sequence[Intervention] | None = None,
    *,
    steps: int | None = None,
    most: int = 4,
) -> Rerun:
    """Find out why a training fails by repeating it in this process.

    Each run starts from the same state of the random generators; behind the last one they are as they were before.

    Args:
        make_training: builds model and optimizer anew and returns an iterator that trains one step each time it is
            asked. Nothing may be carried over from call to call: no data order, no model.
        interventions: changes to try; None: those that serve the likely causes of the unchanged run.
        steps: optimizer steps of each run at most; None: until the iterator ends.
        most: number of changes at most.

    Raises:
        ValueError: the training took no optimizer step.
        Exception: whatever the unchanged training raises before its first step.

    Example:
        >>> import torch
        >>> def training():
        ...     model = torch.nn.Linear(4, 1, bias=False)
        ...     optimizer = torch.optim.SGD(model.parameters(), lr=3.0)
        ...     x = torch.randn(64, 4)
        ...     for _ in range(60):
        ...         optimizer.zero_grad()
        ...         loss = torch.nn.functional.mse_loss(model(x), x.sum(1, keepdim=True))
        ...         loss.backward()
        ...         optimizer.step()
        ...         yield loss.item()
        >>> found = replay(training)
        >>> found.causes[0].cause, found.arms[0].intervention.name, found.arms[0].recovered
        ('lr_too_large', 'lr / 10', True)
    """
    start = rng_state()
    try:
        twin, error = train_once(make_training, {}, steps)
        if twin is None:
            raise error or ValueError(
                "the training took no optimizer step: make_training() must return an iterator that trains"
            )

        def run_arms(chosen: Sequence[Intervention]) -> list[tuple[TrialReport | None, str]]:
            out = []
            for change in chosen:
                set_rng_state(start)
                report, error = train_once(make_training, change.plan, steps)
                out.append((report, "" if error is None else f"{type(error).__name__}: {error}"))
            return out

        found = investigate(twin, run_arms, interventions=interventions, most=most)
        return found if error is None else replace(found, notes=(*found.notes, f"the twin raised {error!r}"))
    finally:
        set_rng_state(start)


def train_once(
    make_training: Callable[[], Iterator[float]],
    plan: Mapping[str, Any],
    steps: int | None,
    *,
    survey: bool = False,
) -> tuple[TrialReport | None, Exception | None]:
    """One run, to its end or to what it raises; an error of ours is raised."""
    ours: list[Exception] = []
    trial = Trial(plan, survey=survey, failed=ours.append, steps=steps)
    raised: Exception | None = None
    trial.install(existing=False)
    try:
        for _ in make_training():
            if trial.ended or ours:
                break
    except Exception as error:  # noqa: BLE001 - how a failing training may end
        raised = error
    finally:
        trial.close()
    if ours:
        raise ours[0]
    report = trial.report()
    del trial
    gc.collect()  # models of this run must not be found by the next
    return report, raised
