"""Everything that the page shows of a run, as plain values: the only file here that reads a run."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from steadygrad.records import Action, Cause, Finding
from steadygrad.report import curves, heat, story
from steadygrad.report.text import clean, duration, number, scrub
from steadygrad.trace.codec import NOT_MEASURED
from steadygrad.trace.reader import Run

STATS = {  # in the order of the selector
    "grad_norm": "Gradient norm",
    "update_ratio": "Update ratio",
    "weight_norm": "Weight norm",
    "grad_max_abs": "Largest gradient entry",
    "adam_rms": "Adam RMS",
    "act_rms": "Activation RMS",
}
ENVIRONMENT = {  # keys of the run's meta that anybody may see
    "guard": "Guard",
    "steadygrad": "steadygrad",
    "torch": "PyTorch",
    "python": "Python",
    "device": "Device",
    "cuda": "CUDA",
    "threads": "CPU threads",
    "world_size": "Processes",
}
SCALARS = ("loss", "grad_norm", "clipped_grad_norm", "guard_clip", "lr", "loss_scale")
MAX_LOSSES = 3  # optimizers whose losses stand at the top
MAX_COLUMNS = 400
MAX_INCIDENTS = 200
MAX_CAUSES = 40
MAX_FINDINGS = 300  # rows of the table
ROTATION = 16  # most statistics are measured on a sixteenth of the tensors each step

Say = Callable[[object], str]


def collect(run: Run, *, include_private: bool = False) -> dict[str, Any]:
    """Return the run as plain values with clean texts, ready for :func:`steadygrad.report.html.render`.

    Args:
        run: the run to read.
        include_private: also show the script's arguments, and leave paths and host names in messages.
    """
    hosts = [str(run.meta[key]) for key in ("host", "hostname") if run.meta.get(key)]
    say: Say = clean if include_private else lambda text: scrub(text, hosts)
    findings, actions, causes = run.findings(), run.actions(), run.causes()
    optimizers = run.optimizers()
    series = {o: {key: run.scalar(key, o) for key in run.scalar_keys(o)} for o in optimizers}
    happened = story.incidents(findings, actions, causes)
    error = clean(run.meta.get("error") or "", 100)
    verdict = story.verdict(series, findings, actions, len(happened), not run.truncated, error, run.damaged)
    messages = {f.code: say(f.message) for f in reversed(findings)}  # the first of each code
    names = {o: _optimizer_name(run, o, len(optimizers)) for o in optimizers}
    return {
        "script": clean(_base_name(run.meta.get("script")) or run.path.name),
        "run": clean(run.path.name),
        "complete": not run.truncated,
        "guard": clean(run.meta.get("guard", "")),
        "started": _date(run.meta.get("started")),
        "verdict": {
            "kind": verdict.kind,
            "word": verdict.word,
            "headline": verdict.headline,
            "detail": say(verdict.detail),
        },
        "first_shown": _first_shown(happened, findings, optimizers),
        "numbers": _numbers(run, series, actions),
        "incidents": [_incident(i, messages, names, say) for i in happened[:MAX_INCIDENTS]],
        "incidents_left_out": max(0, len(happened) - MAX_INCIDENTS),
        "optimizers": [{"id": o, "name": names[o]} for o in optimizers],
        "pictures": {str(o): _pictures(run, o, series[o], findings, actions, say) for o in optimizers},
        "findings": _findings(findings, names, say),
        "causes": [_cause(cause, messages, say) for cause in causes[:MAX_CAUSES]],
        "environment": _environment(run, include_private),
        "notes": [say(note) for note in _notes(run)],
    }


def _base_name(path: object) -> str:
    return str(path or "").replace("\\", "/").rstrip("/").rpartition("/")[2]


def _date(started: object) -> str:
    if isinstance(started, (int, float)) and 0 <= started < 1e11:  # nan is not >= 0
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(started))
    return ""


def _optimizer_name(run: Run, optimizer: int, total: int) -> str:
    """``optimizer 1: decoder``, after the modules whose tensors it trains; nothing if it is the only one."""
    if total < 2:
        return ""
    tops = list(dict.fromkeys(p.name.partition(".")[0] for p in run.params if p.optimizer == optimizer))
    shown = ", ".join(tops[:3]) + (", …" if len(tops) > 3 else "")
    return clean(f"optimizer {optimizer}" + (f": {shown}" if shown else ""), 60)


def _first_shown(
    happened: Sequence[story.Incident], findings: Sequence[Finding], optimizers: Sequence[int]
) -> int:
    """The optimizer whose pictures the page opens with: where something happened."""
    troubled = [i.optimizer for i in happened] + [f.optimizer for f in findings if f.severity != "info"]
    return next((o for o in troubled if o in optimizers), optimizers[0] if optimizers else 0)


def _numbers(
    run: Run, series: Mapping[int, Mapping[str, curves.Curve]], actions: Sequence[Action]
) -> list[list[str]]:
    """The main numbers: label, value."""
    done = Counter(a.action for a in actions)
    most = max((len(steps) for per in series.values() for steps, _ in per.values()), default=0)
    rows = [["Steps", f"{most:,}"]]
    both = [(o, ends) for o, per in series.items() if (ends := story.ends(per))]
    for o, (first, last) in both[:MAX_LOSSES]:
        which = f" of optimizer {o}" if len(both) > 1 else ""
        rows.append([f"Loss{which}", f"{number(first)} → {number(last)}"])
    rows.append(["Steps skipped", f"{done['skip']:,}"])
    rows.append(["Rollbacks", f"{done['rollback']:,}"])
    overflows = int(sum(np.nansum(per["amp_skips"][1]) for per in series.values() if "amp_skips" in per))
    if overflows:
        rows.append(["Skipped by the GradScaler", f"{overflows:,}"])
    if done["lr_backoff"]:
        rows.append(["Learning rate lowered", f"{done['lr_backoff']:,} ×"])
    seconds = [float(np.nansum(per["seconds"][1])) for per in series.values() if "seconds" in per]
    if seconds:  # the optimizers of a GAN share the time
        rows.append(["Time", duration(max(seconds))])
    return rows


def _pictures(
    run: Run,
    optimizer: int,
    series: Mapping[str, curves.Curve],
    findings: Sequence[Finding],
    actions: Sequence[Action],
    say: Say,
) -> dict[str, Any]:
    """What is drawn for one optimizer."""
    seen = [f for f in findings if f.optimizer == optimizer]
    done = [a for a in actions if a.optimizer == optimizer]
    drawn = {key: series[key] for key in SCALARS if key in series}
    steps = max((len(s) for s, _ in series.values()), default=0)
    return {
        "scalars": curves.thin(drawn, [*(f.step for f in seen), *(a.step for a in done)]),
        "marks": curves.marks(seen, done, say),
        "heat": [
            picture
            for stat in STATS
            if stat in run.stats() and (picture := _heat(run, stat, optimizer, steps))
        ],
    }


def _heat(run: Run, stat: str, optimizer: int, steps: int) -> dict[str, Any] | None:
    """One heat-map, packed; None where nothing was measured."""
    everywhere = stat == "grad_norm"
    # Where a tensor is measured on every sixteenth step, a column of sixteen steps has a value for each.
    columns = steps if everywhere else max(steps // ROTATION, min(steps, 40))
    picture = run.heatmap(stat, max(1, min(columns, MAX_COLUMNS)), optimizer)
    measured = (picture.codes != NOT_MEASURED).any(axis=1)
    if not measured.any():
        return None
    rows = heat.group_rows(picture.names)
    return {
        "stat": stat,
        "title": STATS[stat],
        "names": [clean(row.name, 200) for row in rows],
        "sizes": [len(row.members) for row in rows],
        "edges": [int(edge) for edge in picture.edges],
        "codes": heat.pack(heat.merge(picture.codes, rows)),
    }


def _incident(
    incident: story.Incident, messages: Mapping[str, str], names: Mapping[int, str], say: Say
) -> dict[str, Any]:
    return {
        "optimizer": incident.optimizer,
        "optimizer_name": names.get(incident.optimizer, ""),
        "first": incident.first,
        "last": incident.last,
        "seen": [
            {
                "code": clean(f.code),
                "step": f.step,
                "severity": f.severity,
                "where": clean(f.where),
                "message": say(f.message),
            }
            for f in incident.seen
        ],
        "done": [
            {
                "action": clean(d.action),
                "first": d.first,
                "last": d.last,
                "count": d.count,
                "reason": say(d.reason),
            }
            for d in incident.done
        ],
        "cause": _cause(incident.cause, messages, say) if incident.cause else None,
    }


def _cause(cause: Cause, messages: Mapping[str, str], say: Say) -> dict[str, Any]:
    """A cause, with the codes for and against it resolved to what the findings said."""
    return {
        "name": re.sub(r"^lr\b", "learning rate", clean(cause.cause).replace("_", " ")),
        "probability": cause.probability,
        "where": clean(cause.where),
        "message": say(cause.message),
        "advice": say(cause.advice),
        "for": [[clean(code), messages.get(code, "")] for code in cause.supporting],
        "against": [[clean(code), messages.get(code, "")] for code in cause.contradicting],
    }


def _findings(findings: Sequence[Finding], names: Mapping[int, str], say: Say) -> dict[str, Any]:
    """Rows of the table: the same finding at the same place is one row, with its first message."""
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for f in sorted(findings, key=lambda f: f.step):
        row = rows.setdefault(
            (f.code, f.where, f.optimizer, f.severity),
            {
                "code": clean(f.code),
                "rule": clean(f.rule).replace("_", " "),
                "severity": f.severity,
                "optimizer": names.get(f.optimizer, ""),
                "optimizer_id": f.optimizer,
                "where": clean(f.where),
                "message": say(f.message),
                "evidence": [[clean(k).replace("_", " "), number(v)] for k, v in f.evidence.items()],
                "first": f.step,
                "last": f.step,
                "count": 0,
            },
        )
        row["last"], row["count"] = f.step, row["count"] + 1
    order = {"alarm": 0, "warning": 1, "info": 2}
    shown = sorted(rows.values(), key=lambda r: (order[r["severity"]], r["first"]))[:MAX_FINDINGS]
    return {"rows": sorted(shown, key=lambda r: r["first"]), "left_out": len(rows) - len(shown)}


def _environment(run: Run, include_private: bool) -> list[list[str]]:
    rows = [["Script", clean(_base_name(run.meta.get("script")) or "unknown")]]
    if include_private and run.meta.get("argv"):
        rows.append(["Arguments", clean(" ".join(map(str, run.meta["argv"])))])
    rows += [
        [label, scrub(run.meta[key])] for key, label in ENVIRONMENT.items() if run.meta.get(key) is not None
    ]
    if run.params:
        values = sum(p.numel for p in run.params)
        rows.append(["Trained", f"{values:,} values in {story.count(len(run.params), 'tensor')}"])
        dtypes = Counter(p.dtype for p in run.params)
        rows.append(["Data types", ", ".join(clean(dtype) for dtype, _ in dtypes.most_common())])
    prescribed = dict.fromkeys(a.reason for a in run.actions() if a.prescribed)
    rows += [["Prescription", scrub(reason)] for reason in prescribed]
    return rows


def _notes(run: Run) -> list[str]:
    """What could not be seen, besides what the run says itself."""
    notes = [str(note) for note in run.notes]
    if run.truncated:
        notes.append("The record has no end mark: the run is still going, or it was killed.")
    if run.damaged and not run.notes:
        notes.append("Parts of the record are damaged and were left out.")
    if len(run.ranks) > 1:
        notes.append(
            f"{len(run.ranks)} processes were recorded (ranks {', '.join(map(str, run.ranks[:16]))}). Curves "
            "show the first of them; the heat-map shows the largest value of all."
        )
    if len(run.attempts) > 1:
        notes.append(
            f"The step count went back {story.count(len(run.attempts) - 1, 'time')} (a run that was "
            "resumed, or started again in one process). The newest attempt is shown."
        )
    return notes
