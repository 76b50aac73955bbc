"""What repair does for the zoo: every training repaired in this process, and trained afresh under what was found.

A prescription is judged by the training's own measure, which repair never sees, and on a run of its own.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.repair_baselines import STRATEGIES, kind
from benchmarks.repair_plans import ended, outcome_json, record
from benchmarks.scores import share
from benchmarks.zoo import Family, Training
from benchmarks.zoo_cache import cached
from benchmarks.zoo_runs import Draw, Row, by_name
from steadygrad.integrations.mend_here import repair_training
from steadygrad.repair.effects.effect import NotApplicable
from steadygrad.repair.mend import Repair

KIND = "repair"
OURS = "steadygrad repair"
TARGETS = {"overall": 0.975, "blind": 0.85}
NAMED = (
    "trunk_detached",
    "zero_grad_before_step",
)  # blind ones whose names were known when a remedy for them was built
MOST = {"failing": 3.0, "healthy": 1.2}  # cost in runs, the median


def repair_row(draw: Draw) -> Row:
    """The plain run, the repair, and a run under what it prescribes."""
    torch.set_num_threads(1)
    plain = ended(draw)
    runs: list[list[float]] = []  # losses of each training that repair makes; the first is its untouched one

    def make_training(seed_offset: int) -> Iterator[float]:
        training = again(draw, seed_offset)
        runs.append([])
        record(training, runs[-1])
        return training.train()

    found: Repair | None = None
    result, error = plain.outcome, ""
    start = time.perf_counter()
    try:
        found = repair_training(make_training)
    except Exception as ours:  # noqa: BLE001 - it counts as a miss, and the row says why
        error = f"repair raised {type(ours).__name__}: {ours}"
    seconds = time.perf_counter() - start
    if found is not None and found.cured:
        try:
            result = ended(draw, found.plan).outcome
        except (NotApplicable, RuntimeError) as raised:
            error = f"{type(raised).__name__}: {raised}"
    return {
        **draw._asdict(),
        "healthy": found is not None and found.healthy,
        "plan": dict(found.plan) if found is not None and found.cured else None,
        "remedies": [remedy.name for remedy in found.remedies] if found is not None else [],
        "by_evidence": found is not None and found.lead,
        "causes": [cause.cause for cause in found.causes[:3]] if found is not None else [],
        "plain": outcome_json(plain.outcome),
        "repaired": outcome_json(result),
        "trained": not error and result.trained,
        "identical": bool(runs) and same_losses(runs[0], plain.losses),
        "notes": list(found.notes) if found is not None else [],
        "extra_steps": found.steps_total if found is not None else 0,
        "run_steps": draw.build().steps,
        "seconds": seconds,
        "run_seconds": plain.seconds,
        "error": error,
    }


def again(draw: Draw, seed_offset: int) -> Training:
    """The same draw; with an offset, other weights: what a script's own seed changes."""
    random = np.random.RandomState(1009 * draw.seed + 17)
    torch.manual_seed(draw.seed + 1000 * seed_offset)
    return by_name()[draw.family].build_with(random, draw.seed, draw.fixed)


def same_losses(watched: Sequence[float], plain: Sequence[float]) -> bool:
    """Bit for bit, as far as the plain run goes, which ends three steps after the weights are lost."""
    size = min(len(watched), len(plain))
    one, two = np.array(watched[:size]), np.array(plain[:size])
    return size > 0 and one.tobytes() == two.tobytes()


# ---------------------------------------------------------------------- scores
GROUPS = ("overall", "non-blind", "blind")


def groups(family: Family) -> tuple[str, ...]:
    return ("overall", "blind" if family.blind else "non-blind")


def failing_draws(draws: Iterable[Draw], truth: Mapping[Draw, Row]) -> list[Draw]:
    """Those with a planted fault that fail when nobody helps."""
    return [
        d
        for d in draws
        if not d.fixed
        and not by_name()[d.family].healthy
        and d in truth
        and not truth[d]["outcome"]["trained"]
    ]


def _by_group(rows: Mapping[Draw, Row], failing: Sequence[Draw]) -> dict[str, Any]:
    known = [d for d in failing if d in rows]
    return {
        group: share(rows[d]["trained"] for d in known if group in groups(by_name()[d.family]))
        for group in GROUPS
    }


def zoo_scores(draws: Sequence[Draw], truth: Mapping[Draw, Row]) -> dict[str, Any]:
    """All numbers of the zoo, from the rows there are: each share says of how many.

    Shares are of the draws that fail when nothing is done, so that "nothing" has 0 of them by definition.
    """
    failing = failing_draws(draws, truth)
    faulty = [d for d in draws if not d.fixed and not by_name()[d.family].healthy and d in truth]
    ours = cached(KIND)
    trained = {"nothing": _by_group({d: truth[d]["outcome"] for d in failing}, failing)}
    trained |= {name: _by_group(cached(kind(name)), failing) for name in STRATEGIES}
    trained[OURS] = _by_group(ours, failing)
    mended = [ours[d] for d in failing if d in ours]
    good = [ours[d] for d in draws if d in ours and (d.fixed or by_name()[d.family].healthy)]
    healthy = [r for r in good if not r["fixed"]]
    return {
        "runs": {
            "faulty": len(faulty),
            "failing": len(failing),
            "trained_without_help": sorted(str(d) for d in set(faulty) - set(failing)),
            "strategy_errors": {
                name: [
                    f"{d}: {r['error']}"
                    for d, r in cached(kind(name)).items()
                    if r["error"] and d in set(failing)
                ]
                for name in STRATEGIES
            },
        },
        "trained": trained,
        "bars": {
            group: {
                "value": trained[OURS][group].value,
                "bar": bar,
                "reached": trained[OURS][group].value >= bar,
            }
            for group, bar in TARGETS.items()
        },
        "blind_without_named": share(
            ours[d]["trained"]
            for d in failing
            if d in ours and by_name()[d.family].blind and d.family not in NAMED
        ),
        "by_cause": _by_cause(mended),
        "healthy": _untouched(healthy),
        "twins": _untouched([r for r in good if r["fixed"]]),
        "cost": {"failing": cost(mended), "healthy": cost(healthy), "most_median": MOST},
        "cures": [cure(r) for r in mended if r["trained"]],
        "missed": [missed(r) for r in mended if not r["trained"]],
    }


def _by_cause(rows: Sequence[Row]) -> dict[str, Any]:
    named = [(by_name()[r["family"]].causes[0], r["trained"]) for r in rows]
    return {
        cause: share(ok for name, ok in named if name == cause) for cause in sorted({c for c, _ in named})
    }


def _untouched(rows: Sequence[Row]) -> dict[str, Any]:
    """Nothing was prescribed, and watching has changed no loss by a bit."""
    left = [r["plan"] is None and r["healthy"] and r["identical"] for r in rows]
    return {
        "untouched": share(left),
        "touched": [_told(r) for r, ok in zip(rows, left, strict=True) if not ok],
    }


def cure(row: Row) -> dict[str, Any]:
    """One cure beside its twin, the run that nothing was done to."""
    return {
        "run": str(_draw(row)),
        "remedies": row["remedies"],
        "twin": f"{row['plain']['kind']} {_short(row['plain']['score'])}",
        "cured": f"{row['repaired']['kind']} {_short(row['repaired']['score'])}",
    }


def missed(row: Row) -> str:
    said = "taken for healthy" if row["healthy"] else " + ".join(row["remedies"]) or "nothing found"
    cause = by_name()[row["family"]].causes[0]
    return f"{_draw(row)} ({cause}): {said}; {row['error'] or row['repaired']['kind']}"


def _told(row: Row) -> str:
    found = " + ".join(row["remedies"]) or "nothing"
    return f"{_draw(row)}: {found}, {row['error'] or row['repaired']['kind']}"


def _draw(row: Row) -> Draw:
    return Draw(row["family"], row["seed"], row["fixed"])


def _short(score: Any) -> str:
    return score if isinstance(score, str) else f"{score:.3g}"


def cost(rows: Sequence[Row]) -> dict[str, Any]:
    """What a repair takes: in runs of its training, in steps and in seconds. Median and 90th percentile.

    ``runs`` counts the untouched run; the steps and seconds are those beyond it. ``seconds_per_run_second`` is the time
    of the whole repair in times of a plain run, with what watching costs.
    """
    rows = [r for r in rows if r["run_steps"]]
    return {
        "repairs": len(rows),
        "runs": _spread([1 + r["extra_steps"] / r["run_steps"] for r in rows]),
        "extra_steps": _spread([r["extra_steps"] for r in rows]),
        "extra_seconds": _spread([r["seconds"] - r["run_seconds"] for r in rows]),
        "seconds_per_run_second": _spread([r["seconds"] / r["run_seconds"] for r in rows]),
    }


def _spread(values: Sequence[float]) -> dict[str, float] | None:
    return {"median": median(values), "p90": float(np.percentile(values, 90))} if values else None
