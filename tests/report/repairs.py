"""Repairs made up for tests of what is said about them."""

from __future__ import annotations

import math
from typing import Any

from steadygrad.diagnose.facts import Facts
from steadygrad.diagnose.trial import TrialReport
from steadygrad.diagnose.verdict import Verdict

NAN = math.nan


def verdict(kind: str, end: float, reason: str = "as it is", start: float = 2.0) -> Verdict:
    return Verdict(kind, NAN, start, end, NAN, reason)


def report(kind: str = "learned", losses: tuple[float, ...] = (2.0, 1.0), **more: Any) -> TrialReport:
    facts = Facts(verdict=verdict(kind, losses[-1]), loss_noise=0.01)
    return TrialReport(facts, (), losses, **({"steps": len(losses), "skipped": 0} | more))


def run(loss: float | str | None, **more: Any) -> dict[str, Any]:
    """A run in the JSON object of a repair."""
    lost = isinstance(loss, str)
    return {
        "survived": not lost, "trains": not lost, "loss_first": 2.0, "loss_last": loss, "steps": 300,
        "failed_at": 37 if lost else None, "kind": "nonfinite" if lost else "learned", "verdict": "as it is",
        **more,
    }  # fmt: skip


def arm(name: str, loss: float | str | None, whole: bool = True, **more: Any) -> dict[str, Any]:
    score = "Infinity" if not isinstance(loss, float) else math.log(loss)
    return {"name": name, "remedies": [name], "whole": whole, "score": score, "note": "", **run(loss), **more}


def repaired(**more: Any) -> dict[str, Any]:
    """The JSON object of a repair that has found a cure and a patch."""
    cause = {"cause": "recurrent_growth", "probability": 0.94, "where": "rnn", "for": ["G201"], "against": []}
    cause |= {"message": "the gradient grows x1.9 a time step", "advice": "clip"}
    other = {**cause, "cause": "lr_too_large", "probability": 0.31}
    seeds = [
        {"seed_offset": k, "twin": run("NaN"), "fixed": run(1.31 + k / 100), "twin_trains": False, "fixed_trains": True}
        for k in range(3)
    ]  # fmt: skip
    return {
        "schema": 1, "cured": True, "healthy": False, "causes": [cause, other],
        "prescription": "runs/train-8/prescription.json", "remedies": ["clip at 1.1"],
        "patch": "runs/train-8/fix.patch", "twin": run("NaN", verdict="parameters are NaN"), "fixed": run(1.31),
        "arms": [
            arm("lr / 10", 2.48, whole=False, steps=120), arm("clip at 1.1", 1.92, whole=False, steps=120),
            arm("clip at 1.1", 1.31), arm("slow one", None, note="it was still going after 90 s"),
        ],
        "steps_total": 1200, "seconds": 41.0, "script": "train.py", "argv": ["train.py"],
        "plan": {"clip_norm": 1.1}, "advice": ["clip the gradient to norm 1.1"], "safety": ["tuning"],
        "found_by": "search", "deterministic": True, "runs_worth": 4.0, "cut_at": None, "resumed_from": None,
        "seeds": seeds, "findings": [], "first_nonfinite": None, "patch_state": "proven", "patch_steps": 300,
        "patch_note": "", "patch_notes": [], "notes": [], **more,
    }  # fmt: skip


DIFF = """--- a/train.py
+++ b/train.py
@@ -41,4 +41,5 @@
         loss.backward()
+        clip(model.parameters(), "1 < 2")
         optimizer.step()
"""
