"""What ``--json`` writes: one object whose keys are never renamed, in strict JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from steadygrad.records import RunSummary

SCHEMA = 1  # raised when a meaning changes


def summary_json(
    summary: RunSummary | None, exit_code: int, script: str, argv: Sequence[str]
) -> dict[str, Any]:
    """The object that ``steadygrad run --json`` writes. Numbers that are not finite are strings.

    Args:
        summary: what the run came to; None if nothing was watched.
        exit_code: of the script.
        script: what was run, as typed.
        argv: its arguments.

    Example:
        >>> summary_json(None, 0, "train.py", ["--epochs", "3"])["steps"]
        0
    """
    loss: tuple[float | None, ...] = (None, None, None)
    if summary is not None:
        loss = (summary.loss_first, summary.loss_last, summary.loss_best)
    return strict(
        {
            "schema": SCHEMA,
            "run_dir": summary.run_dir if summary else None,
            "script": script,
            "argv": list(argv),
            "exit_code": exit_code,
            "steps": summary.steps if summary else 0,
            "stopped_by_guard": bool(summary and summary.stopped_by_guard),
            "seconds": summary.seconds if summary else 0.0,
            "loss": dict(zip(("first", "last", "best"), loss, strict=True)),
            "skipped": summary.skipped if summary else 0,
            "amp_skips": summary.amp_skips if summary else 0,
            "findings": [f.to_json() for f in summary.findings] if summary else [],
            "actions": [a.to_json() for a in summary.actions] if summary else [],
            "causes": [c.to_json() for c in summary.causes] if summary else [],
            "notes": list(summary.notes) if summary else [],
            "verdict": summary.verdict if summary else "",
            "first_nonfinite": summary.first_nonfinite.to_json()
            if summary and summary.first_nonfinite
            else None,
            "forecast": dict(summary.forecast) if summary and summary.forecast else None,
        }
    )


def dumps(value: Mapping[str, Any]) -> str:
    """One line of strict JSON."""
    return json.dumps(strict(value), allow_nan=False)


def strict(value: Any) -> Any:
    """The same value with NaN, Infinity and -Infinity as strings, exact otherwise.

    Example:
        >>> strict({"loss": [1.5, float("-inf")]})
        {'loss': [1.5, '-Infinity']}
    """
    if isinstance(value, Mapping):
        return {str(k): strict(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [strict(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value
