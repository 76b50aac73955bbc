"""What happened, in words: one sentence for the whole run, and a list of incidents.

Nothing is detected here: the findings, actions and causes that the run recorded are put in order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from steadygrad.records import Action, Cause, Finding
from steadygrad.report.curves import Curve
from steadygrad.report.text import number

Kind = Literal["steady", "warned", "recovered", "died", "stopped", "empty"]
SAME_INCIDENT_GAP = 20  # steps: an alarm so soon after an action is its aftermath


@dataclass(frozen=True)
class Done:
    """The same action on one or several steps."""

    action: str
    first: int
    last: int
    count: int
    reason: str  # of the first


@dataclass(frozen=True)
class Incident:
    """Alarms and actions that belong together."""

    optimizer: int
    first: int
    last: int
    seen: tuple[Finding, ...]
    done: tuple[Done, ...]
    cause: Cause | None


@dataclass(frozen=True)
class Verdict:
    """The whole run in a word, a headline and a sentence more."""

    kind: Kind
    word: str
    headline: str
    detail: str = ""


@dataclass
class _Group:
    optimizer: int
    first: int
    last: int
    seen: list[Finding] = field(default_factory=list)
    acts: list[Action] = field(default_factory=list)

    def add(self, record: Finding | Action) -> None:
        self.last = max(self.last, record.step)
        if isinstance(record, Action):
            self.acts.append(record)
        else:
            self.seen.append(record)


def incidents(
    findings: Sequence[Finding], actions: Sequence[Action], causes: Sequence[Cause]
) -> list[Incident]:
    """Return the incidents of a run, first one first: alarms and actions at most 20 steps apart go together.

    Warnings join an incident that they fall into and never open one.
    """
    groups: list[_Group] = []
    opening: list[Finding | Action] = [f for f in findings if f.severity == "alarm"]
    opening += [a for a in actions if not a.prescribed]
    for record in sorted(opening, key=lambda r: (r.optimizer, r.step)):
        last = groups[-1] if groups else None
        if (
            last is None
            or last.optimizer != record.optimizer
            or _reach(record) - last.last > SAME_INCIDENT_GAP
        ):
            last = _Group(record.optimizer, record.step, record.step)
            groups.append(last)
        last.add(record)
    for group in groups:
        group.seen += [f for f in findings if f.severity == "warning" and _falls_into(f, group)]
    groups.sort(key=lambda g: g.first)
    return [
        Incident(
            g.optimizer, g.first, g.last, _distinct(g.seen), _runs(g.acts), _cause(g, causes, len(groups))
        )
        for g in groups
    ]


def _reach(record: Finding | Action) -> float:
    """The first step that a record is about: a rollback answers what began before the state it went back to."""
    return record.step - (record.details.get("steps_back", 0) if isinstance(record, Action) else 0)


def _falls_into(finding: Finding, group: _Group) -> bool:
    near = group.first - SAME_INCIDENT_GAP <= finding.step <= group.last
    return near and finding.optimizer == group.optimizer


def _distinct(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """The first finding of each code and place; alarms before warnings."""
    first: dict[tuple[str, str], Finding] = {}
    for f in sorted(findings, key=lambda f: (f.severity != "alarm", f.step)):
        first.setdefault((f.code, f.where), f)
    return tuple(first.values())


def _runs(actions: Iterable[Action]) -> tuple[Done, ...]:
    """Skips, and clips, that follow each other become one line."""
    done: list[Done] = []
    for a in sorted(actions, key=lambda a: a.step):
        if done and done[-1].action == a.action and a.action in ("skip", "clip"):
            d = done[-1]
            done[-1] = Done(d.action, d.first, a.step, d.count + 1, d.reason)
        else:
            done.append(Done(a.action, a.step, a.step, 1, a.reason))
    return tuple(done)


def _cause(group: _Group, causes: Sequence[Cause], num_groups: int) -> Cause | None:
    codes = {f.code for f in group.seen} | {a.code for a in group.acts}
    for cause in causes:
        if codes & set(cause.supporting):
            return cause
    # With one incident the ranking of the run is the ranking of the incident.
    return causes[0] if causes and num_groups == 1 else None


def verdict(
    series: Mapping[int, Mapping[str, Curve]],
    findings: Sequence[Finding],
    actions: Sequence[Action],
    num_incidents: int,
    complete: bool = True,
    error: str = "",
    damaged: bool = False,
) -> Verdict:
    """Say how a run ended.

    A run died if its last applied updates had gradients that are not finite, or its last losses are not finite
    and a rule raised an alarm there. A loss that is not finite is not enough by itself: some such runs train.

    Args:
        series: optimizer -> name of a scalar -> its steps and values.
        findings: everything that the rules noticed.
        actions: everything that the guard did.
        num_incidents: as many as :func:`incidents` returns.
        complete: the record has its end mark; otherwise the run is still going, or was killed.
        error: class name of the exception that ended the script, if one did.
        damaged: something in the record could not be read.
    """
    steps = max((len(steps) for curves in series.values() for steps, _ in curves.values()), default=0)
    if not steps:
        if damaged:
            return Verdict("empty", "Not readable", "The record of this run cannot be read")
        return Verdict("empty", "Nothing seen", "No optimizer step was seen")
    for a in actions:
        if a.action == "stop":
            return Verdict("stopped", "Stopped", f"The guard stopped the run at step {a.step:,}", a.reason)
    skipped = {(a.optimizer, a.step) for a in actions if a.action == "skip"}
    alarms = {(f.optimizer, f.step) for f in findings if f.severity == "alarm"}
    deaths = {
        o: step for o, curves in series.items() if (step := _died_at(o, curves, skipped, alarms)) is not None
    }
    if deaths:
        optimizer, step = min(deaths.items(), key=lambda item: item[1])
        return Verdict("died", "Died", f"The run died at step {step:,}", _how(series[optimizer], step))
    course = f" over {count(steps, 'step')}{_course(series)}"
    tail = max((_skipped_at_end(o, curves, skipped) for o, curves in series.items()), default=0)
    if tail > 2:
        headline = f"The run ended in an incident: its last {tail:,} steps were skipped"
        return Verdict("warned", "Ended in an incident", headline)
    if error:
        what = "was interrupted" if error == "KeyboardInterrupt" else f"ended with {error}"
        return Verdict("warned", "Ended early", f"The script {what}{course.replace(' over', ' after')}")
    so_far = "" if complete else " so far"
    if any(a.action not in ("clip", "disarm") and not a.prescribed for a in actions):
        met = f"The run met {count(num_incidents, 'incident')} and went on:"
        return Verdict("recovered", "Recovered" + so_far, met + course.removeprefix(" over"))
    for severity in ("alarm", "warning"):
        found = sum(f.severity == severity for f in findings)
        if found:
            ran = f"The run {'went on to its end' if complete else 'is going on'} with {count(found, severity)}:"
            return Verdict("warned", f"{severity.capitalize()}s{so_far}", ran + course.removeprefix(" over"))
    ran = "trained steadily" if complete else "has trained steadily so far,"
    return Verdict("steady", "Steady" + so_far, f"The run {ran}{course}")


def count(n: int, noun: str) -> str:
    """Return ``3 incidents``, ``1 incident``.

    Example:
        >>> count(1, "skip"), count(2500, "step")
        ('1 skip', '2,500 steps')
    """
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def ends(curves: Mapping[str, Curve]) -> tuple[float, float] | None:
    """First loss and last: the median of the last 20, or the very last one if that is not finite."""
    losses = curves["loss"][1] if "loss" in curves else np.empty(0)
    if not len(losses):
        return None
    tail = losses[-20:]
    last = np.median(tail[np.isfinite(tail)]) if np.isfinite(losses[-1]) else losses[-1]
    return float(losses[0]), float(last)


def _course(series: Mapping[int, Mapping[str, Curve]]) -> str:
    """``, loss 4.63 → 1.31``, if there is one loss to speak of: those of a GAN say nothing in a sentence."""
    both = [b for curves in series.values() if (b := ends(curves))]
    return f", loss {number(both[0][0])}\u00a0→ {number(both[0][1])}" if len(both) == 1 else ""


def _died_at(
    optimizer: int, curves: Mapping[str, Curve], skipped: set[tuple[int, int]], alarms: set[tuple[int, int]]
) -> int | None:
    """First applied step of the last stretch of non-finite numbers; None if the run does not end in one."""
    if "grad_norm" in curves:
        died = _last_stretch(optimizer, curves["grad_norm"], skipped)
        if died is not None:
            return died
    if "loss" not in curves:
        return None
    died = _last_stretch(optimizer, curves["loss"], skipped)
    if died is None or "grad_norm" not in curves:
        return died
    alarmed = any(o == optimizer and step >= died - SAME_INCIDENT_GAP for o, step in alarms)
    return died if alarmed else None


def _last_stretch(optimizer: int, curve: Curve, skipped: set[tuple[int, int]]) -> int | None:
    steps, values = curve
    good = np.flatnonzero(np.isfinite(values))
    tail = steps[good[-1] + 1 :] if len(good) else steps
    return next((int(s) for s in tail if (optimizer, int(s)) not in skipped), None)


def _skipped_at_end(optimizer: int, curves: Mapping[str, Curve], skipped: set[tuple[int, int]]) -> int:
    """Length of the last stretch of steps that were all skipped."""
    steps = curves["grad_norm"][0] if "grad_norm" in curves else np.empty(0)
    applied = np.array([(optimizer, int(step)) not in skipped for step in steps], bool)
    return len(steps) - 1 - int(np.flatnonzero(applied)[-1]) if applied.any() else len(steps)


def _how(curves: Mapping[str, Curve], step: int) -> str:
    """What the numbers did just before the end."""
    parts = []
    for key, name in (("grad_norm", "gradient norm"), ("loss", "loss")):
        steps, values = curves.get(key, (np.empty(0), np.empty(0)))
        before, at = values[steps < step][-10:], values[steps == step]
        before = before[np.isfinite(before)]
        if len(before) and len(at):
            path = " → ".join(number(float(v)) for v in (before[0], before[-1], at[-1]))
            parts.append(f"{name} {path}")
    return f"In the last steps before that: {', '.join(parts)}." if parts else ""
