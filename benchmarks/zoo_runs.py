"""Watch the zoo: one row per training for its plain end, its forecast and its whole run under watch.

Rows are plain data. Findings and facts are kept as ``steadygrad diagnose`` reads them from a run directory, so that
causes can be worked out anew from a row without training again.
"""

from __future__ import annotations

import functools
import json
import math
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch

from benchmarks.peers import PEERS, AutoTrainer, Peer
from benchmarks.scores import onset
from benchmarks.zoo import Family, Outcome, Training, families
from benchmarks.zoo.training import judge
from steadygrad.diagnose.causes import diagnose
from steadygrad.diagnose.facts import Facts
from steadygrad.diagnose.stored import EVENT, facts_of_json, facts_to_json
from steadygrad.forecasting.result import Forecast
from steadygrad.forecasting.watch import FirstSteps
from steadygrad.integrations.options import Options
from steadygrad.integrations.replay import replay
from steadygrad.integrations.session import Session
from steadygrad.records import Action, Finding, RunSummary, StepStats
from steadygrad.rules.history import step_loss
from steadygrad.trace.jsontext import dumps, number
from steadygrad.trace.reader import Run

Row = dict[str, Any]
FORECAST_STEPS = 10
DRY_STEPS = 10  # of the dry run that a forecast is compared with
TIMED = 15  # plain steps timed before a forecast, and again after it


class Draw(NamedTuple):
    """One training of the zoo."""

    family: str
    seed: int
    fixed: bool

    def build(self) -> Training:
        return by_name()[self.family].build(self.seed, self.fixed)

    def __str__(self) -> str:
        return f"{self.family} {self.seed}{' fixed' if self.fixed else ''}"


@functools.cache
def by_name() -> dict[str, Family]:
    return {f.name: f for f in families()}


# ---------------------------------------------------------------------- how it ends without us
def truth_row(draw: Draw) -> Row:
    """The plain run: how it ends with nobody watching. A watched one must end the same."""
    torch.set_num_threads(1)
    training = draw.build()
    return _row(draw, outcome=_outcome(judge(training, list(_until_dead(training)))))


def dry_row(draw: Draw) -> Row:
    """The first steps alone: what they would say without any measurement."""
    torch.set_num_threads(1)
    losses = list(islice(draw.build().train(), DRY_STEPS))
    first = losses[0] if losses else math.nan
    return _row(draw, dry_run_fails=any(not math.isfinite(x) or x > 3 * abs(first) for x in losses))


def _until_dead(training: Training) -> Iterator[float]:
    """The losses, until the parameters have been non-finite for three steps, as `benchmarks.zoo.outcome` does."""
    dead = 0
    for loss in training.train():
        yield loss
        dead = 0 if all(bool(torch.isfinite(p).all()) for p in training.model.parameters()) else dead + 1
        if dead >= 3:
            return


# ---------------------------------------------------------------------- forecasts
@dataclass(frozen=True)
class FirstLook:
    """What the first steps of a training gave. ``forecast`` and ``facts`` are None if it took none."""

    forecast: Forecast | None
    findings: list[Finding]
    facts: Facts | None
    first: StepStats | None  # the first record
    seconds: float  # from the first step to the forecast
    error: str  # an error of the training or of ours, after which there is no forecast; "" if there was none


def forecast_of(draw: Draw, steps: int) -> FirstLook:
    """Forecast a training from its first steps, and stop it there, as ``steadygrad check`` does."""
    training = draw.build()
    results: list[Forecast] = []
    ours: list[Exception] = []
    watcher = FirstSteps(steps, results.append, failed=ours.append)
    start = time.perf_counter()
    watcher.joinpoints.install(all_optimizers=True)
    error = ""
    try:
        for _ in training.train():
            if results or ours:
                break
    except RuntimeError as raised:  # the training's own
        error = f"{type(raised).__name__}: {raised}"
    finally:
        watcher.joinpoints.remove()
        watcher.probe.close()
    if ours:
        error = f"ours: {type(ours[0]).__name__}: {ours[0]}"
    elif not results and watcher.steps:
        results.append(watcher.forecast())
    seconds = time.perf_counter() - start
    forecast = results[0] if results else None
    if forecast is None:
        return FirstLook(None, [], None, watcher._first, seconds, error)
    return FirstLook(
        forecast, list(forecast.findings), watcher.casefile.facts(), watcher._first, seconds, error
    )


def forecast_row(draw: Draw) -> Row:
    """The forecast, what the static rules say to its first step, and the cost in plain steps."""
    torch.set_num_threads(1)
    times = _step_times(draw)
    look = forecast_of(draw, FORECAST_STEPS)
    times += _step_times(draw)
    return _row(
        draw,
        findings=[_plain(f.to_json()) for f in look.findings],
        facts=None if look.facts is None else _plain(facts_to_json(look.facts)),
        steps=look.forecast.steps_seen if look.forecast is not None else 0,
        first_step=_static(look.first),
        seconds=look.seconds,
        step_seconds=median(times) if times else None,
        error=look.error,
    )


def _step_times(draw: Draw) -> list[float]:
    """Seconds of the first steps of a plain run, but for the very first, which warms up."""
    times: list[float] = []
    last = math.nan
    for i, _ in enumerate(draw.build().train()):
        now = time.perf_counter()
        if i:
            times.append(now - last)
        last = now
        if i == TIMED:
            break
    return times


def _static(stats: StepStats | None) -> dict[str, bool]:
    """What rules that look once would say to the first step."""
    if stats is None:
        return {}
    series = _Step.of(stats)
    once = AutoTrainer(every=1, checks=1)
    said = {"autotrainer": once(series.loss, series.norm, series.norms)}
    return said | {f"norm>{limit}": series.norm > limit for limit in (10, 100, 1000)}


# ---------------------------------------------------------------------- whole runs
class _Step(NamedTuple):
    """One step as the peers see it."""

    loss: float
    norm: float
    norms: list[float]

    @classmethod
    def of(cls, stats: StepStats) -> _Step:
        loss = step_loss(stats)
        norms = [float(x) for x in stats.grad_norms]
        if math.isfinite(stats.grad_norm):  # then a nan is a parameter without a gradient
            norms = [0.0 if math.isnan(x) else x for x in norms]
        return cls(math.nan if loss is None else loss, stats.grad_norm, norms)


@dataclass
class Onlooker:
    """Sees every step of a session: the peers' alarms, and the losses of the optimizer that stepped first."""

    losses: list[float] = field(default_factory=list)
    alarms: dict[str, list[int]] = field(default_factory=lambda: {name: [] for name in PEERS})
    errors: list[str] = field(default_factory=list)
    steps: int = 0
    _main: int | None = None
    _peers: dict[int, dict[str, Peer]] = field(default_factory=dict)  # each optimizer has its own

    def step(self, stats: StepStats, skipped: int, incidents: int) -> None:
        if self._main is None:
            self._main = stats.optimizer
        seen = _Step.of(stats)
        if stats.optimizer == self._main:
            self.losses.append(seen.loss)
        self.steps = max(self.steps, stats.step + 1)
        peers = self._peers.setdefault(stats.optimizer, {name: make() for name, make in PEERS.items()})
        for name, peer in peers.items():
            if peer(*seen):
                self.alarms[name].append(stats.step)

    def note(self, text: str) -> None:
        if "error of its own" in text:
            self.errors.append(text)

    def started(self, run_dir: str) -> None: ...
    def finding(self, finding: Finding) -> None: ...
    def action(self, action: Action) -> None: ...


def _recorded_facts(run_dir: Path) -> Any:
    """The facts of the end, as the run directory has them; None if they were not written."""
    ends = [e for e in Run(run_dir).events() if e.kind == EVENT and e.payload.get("end")]
    return ends[-1].payload["facts"] if ends else None


def watched(draw: Draw, runs: Path, observer: Onlooker) -> tuple[RunSummary, Outcome]:
    """A whole run under a session that only records; its summary, and how it ended by the training's own measure."""
    training = draw.build()
    session = Session(Options(runs=str(runs), guard="off"), script=f"{draw.family}.py", observer=observer)
    session.install()
    try:
        losses = list(_until_dead(training))
    finally:
        summary = session.close()
    return summary, judge(training, losses)


def diagnosis_row(draw: Draw) -> Row:
    """The whole run with the guard off: what was found, and when each peer would have spoken."""
    torch.set_num_threads(1)
    onlooker = Onlooker()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        summary, end = watched(draw, Path(folder), observer=onlooker)
        facts = None if summary.run_dir is None else _recorded_facts(Path(summary.run_dir))
    return _row(
        draw,
        findings=[_plain(f.to_json()) for f in summary.findings],
        facts=facts,
        outcome=_outcome(end),
        steps=onlooker.steps,
        onset=onset(onlooker.losses),
        peers={
            name: {"first": min(steps, default=None), "alarms": len(set(steps))}
            for name, steps in onlooker.alarms.items()
        },
        seconds=time.perf_counter() - start,
        error="; ".join(onlooker.errors),
    )


# ---------------------------------------------------------------------- with one thing changed
def intervention_row(draw: Draw) -> Row:
    """The run repeated with changes beside its unchanged twin: what each way of judging names first."""
    torch.set_num_threads(1)
    start = time.perf_counter()
    found = replay(lambda: draw.build().train())
    by_rules = diagnose(found.twin.findings, found.twin.facts)
    helped = [arm.intervention for arm in found.arms if arm.recovered]
    best = max(helped, key=lambda change: change.weight, default=None)
    return _row(
        draw,
        rules=[c.cause for c in by_rules],
        interventions=[] if best is None else list(best.causes),
        fused=[c.cause for c in found.causes],
        arms=[
            {"change": arm.intervention.name, "recovered": arm.recovered, "note": arm.note}
            for arm in found.arms
        ],
        notes=list(found.notes),
        seconds=time.perf_counter() - start,
    )


# ---------------------------------------------------------------------- rows
def _row(draw: Draw, **known: Any) -> Row:
    return {**draw._asdict(), **known}


def _outcome(end: Outcome) -> Row:
    return {"kind": end.kind, "trained": end.trained, "score": _plain(end.score), "steps": end.steps}


def _plain(value: Any) -> Any:
    """The same as strict JSON has it, never shortened."""
    plain = json.loads(dumps(value))
    if isinstance(plain, dict) and "too_long" in plain:
        raise ValueError(f"{plain['too_long']} bytes of findings or facts are too many to be kept")
    return plain


def findings_of(row: Row) -> list[Finding]:
    return [
        Finding(**{**f, "evidence": {k: number(v) for k, v in f["evidence"].items()}})
        for f in row["findings"]
    ]


def facts_of(row: Row) -> Facts | None:
    """None if the training took no step."""
    return None if row["facts"] is None else facts_of_json(row["facts"])
