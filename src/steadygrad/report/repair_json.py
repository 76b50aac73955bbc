"""What came of a repair, for machines: what ``--json`` and ``prescription.json`` hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from steadygrad.diagnose.trial import TrialReport
from steadygrad.repair.case import Case
from steadygrad.repair.mend import Repair
from steadygrad.repair.score import FAILING, trains
from steadygrad.repair.search import Tried
from steadygrad.report import machine

NO_RUN: Mapping[str, Any] = {
    "survived": None,
    "trains": None,
    "loss_last": None,
    "failed_at": None,
    "kind": "",
    "verdict": "",
}


def run_json(report: TrialReport | None) -> dict[str, Any]:
    """What a run came to. ``survived``: it stayed finite and did not explode; ``trains``: it does not fail at all."""
    if report is None:
        return dict(NO_RUN)
    verdict = report.facts.verdict
    assert verdict is not None
    survived = verdict.kind not in FAILING
    failed_at = Case(report.facts, findings=report.findings).failed_at
    return {
        "survived": survived,
        "trains": trains(report),
        "loss_first": verdict.start,
        "loss_last": verdict.end,
        "steps": report.steps,
        "failed_at": None if survived else failed_at,
        "kind": verdict.kind,
        "verdict": verdict.reason,
    }


def repair_json(repair: Repair, script: str, argv: Sequence[str]) -> dict[str, Any]:
    """All that a repair has found; where it was saved is not known yet."""
    twin = repair.twin
    located = twin.facts.located
    return {
        "schema": machine.SCHEMA,
        "cured": repair.cured,
        "healthy": repair.healthy,
        "causes": [c.to_json() for c in repair.causes],
        "prescription": None,
        "remedies": [r.name for r in repair.remedies],
        "patch": None,
        "twin": run_json(twin),
        "fixed": run_json(repair.fixed),
        "arms": [_arm_json(tried) for tried in repair.tried],
        "steps_total": repair.steps_total,
        "seconds": repair.seconds,
        "script": script,
        "argv": list(argv),
        "plan": repair.plan,
        "advice": [r.advice for r in repair.remedies],
        "safety": [r.safety for r in repair.remedies],
        "found_by": "evidence" if repair.lead else "search",
        "deterministic": repair.deterministic,
        "runs_worth": repair.steps_total / max(1, twin.steps, repair.fixed.steps if repair.fixed else 0),
        "seeds": [
            {
                "seed_offset": s.seed_offset,
                "twin": run_json(s.twin),
                "fixed": run_json(s.fixed),
                "twin_trains": s.twin_trains,
                "fixed_trains": s.fixed_trains,
            }
            for s in repair.seeds
        ],
        "findings": [f.to_json() for f in twin.findings],
        "first_nonfinite": located.to_json() if located is not None else None,
    }


def _arm_json(tried: Tried) -> dict[str, Any]:
    return {
        "name": tried.arm.name,
        "remedies": [r.name for r in tried.arm.remedies],
        "whole": tried.whole,
        "score": tried.score,
        "note": tried.note,
        "steps": 0,
        **run_json(tried.report),
    }
