"""Is a failure seen coming? The forecast of ten steps against how each training of the zoo really ends.

    OMP_NUM_THREADS=1 python benchmarks/forecast.py [--seeds 10 11 12] [--jobs 2] [--only NAME ...] [--fresh]
    python benchmarks/forecast.py --cost    the 25M-parameter Transformer alone; nothing is saved
    python benchmarks/forecast.py --fit     constants refitted on the families that are not blind, seeds 0 1 2; printed

Counted: of the runs whose fault is visible in the first step those that really fail, and every run that trains, twins
and healthy families among them. Prints tables, draws ``docs/img/forecast.png`` and saves
``benchmarks/results/forecast.json``, unless ``--only`` is given. Shares are ``{hits, of, value, interval}`` with
Wilson's 95 % interval. Keys of the file:

    seeds, commits         of the rows; more than one commit: a cache older than the code
    runs                   how many there are, how many took no step, whose forecast ended in an error (which)
    scores.GROUP           GROUP is overall, non-blind or blind
      precision, recall    on the runs that count
      recall_not_visible   failing runs whose fault is not visible in the first step
      cause_top1           among the true alarms
      healthy_runs, healthy_families    flagged; a family if it is at any seed
      twins                flagged, among those that train
    by_net, by_cause       recall, overall
    baselines.NAME.GROUP   precision and recall of static rules at step 0 and of a 10-step dry run
    bars                   what is to be beaten, and whether it is
    cost                   seconds of a forecast over those of a plain step: median and largest over families
    cost_25m               the Transformer on two threads: see benchmarks/forecast_cost.py
    missed, false_alarms   the runs behind the numbers
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.common import save
from benchmarks.fit import fit_forecast
from benchmarks.forecast_cost import cost_of_transformer
from benchmarks.scores import Share, precision_recall, share, to_json
from benchmarks.zoo import Family
from benchmarks.zoo_cache import draws, rows
from benchmarks.zoo_runs import (
    Draw,
    Row,
    by_name,
    diagnosis_row,
    dry_row,
    facts_of,
    findings_of,
    forecast_row,
    truth_row,
)
from steadygrad.diagnose.causes import rank_causes
from steadygrad.diagnose.risk import risk

SEEDS = (10, 11, 12)
GROUPS: dict[str, Callable[[Run], bool]] = {
    "overall": lambda r: True,
    "non-blind": lambda r: not r.family.blind,
    "blind": lambda r: r.family.blind,
}
BASELINES = ("autotrainer", "norm>10", "norm>100", "norm>1000", "dry run")


@dataclass(frozen=True)
class Run:
    """One training: how it ended, and what was said of it after ten steps."""

    family: Family
    seed: int
    fixed: bool
    failed: bool
    end: str
    confidence: float  # of failing; 0 if it took no step
    causes: tuple[str, ...]
    baselines: dict[str, bool]
    steps: int
    seconds: float
    step_seconds: float | None
    error: str

    @classmethod
    def of(cls, row: Row, truth: Row, dry: Row) -> Run:
        findings, facts = findings_of(row), facts_of(row)
        confidence = risk(findings, facts) if facts is not None else 0.0
        causes = rank_causes(findings, facts) if facts is not None and confidence >= 0.5 else []
        return cls(
            family=by_name()[row["family"]],
            seed=row["seed"],
            fixed=row["fixed"],
            failed=not truth["outcome"]["trained"],
            end=truth["outcome"]["kind"],
            confidence=confidence,
            causes=tuple(c.cause for c in causes),
            baselines={"dry run": dry["dry_run_fails"]}
            | {name: row["first_step"].get(name, False) for name in BASELINES if name != "dry run"},
            steps=row["steps"],
            seconds=row["seconds"],
            step_seconds=row["step_seconds"],
            error=row["error"],
        )

    @property
    def flagged(self) -> bool:
        return self.confidence >= 0.5

    @property
    def planted(self) -> bool:
        return not self.family.healthy and not self.fixed

    @property
    def positive(self) -> bool:
        """It fails of a fault that is there to be seen."""
        return self.failed and self.planted and self.family.visible

    @property
    def counted(self) -> bool:
        return self.positive or not self.failed

    def __str__(self) -> str:
        causes = ", ".join(self.causes[:2])
        name = Draw(self.family.name, self.seed, self.fixed)
        return f"{name}: {self.end}, {self.confidence:.2f}{' ' + causes if causes else ''}"


def runs_of(
    seeds: Sequence[int], only: Sequence[str], jobs: int, fresh: bool, blind: bool | None = None
) -> tuple[list[Run], list[Row], list[str]]:
    """The runs of the choice, the rows behind them, and the commits that those were made at."""
    wanted = draws(seeds, only, blind)
    ends = rows("diagnosis", diagnosis_row, wanted, jobs=jobs, fresh=fresh)
    first = [d for d in wanted if d.seed == min(seeds)][::5]
    rows(
        "truth", truth_row, first, jobs=jobs, fresh=fresh
    )  # diagnosis.py compares them with the watched ones
    dry = rows("dry", dry_row, wanted, jobs=jobs, fresh=fresh)
    looks = rows("forecast", forecast_row, wanted, jobs=jobs, fresh=fresh)
    commits = sorted({r["commit"] for r in [*ends, *looks]})
    return [Run.of(*rs) for rs in zip(looks, ends, dry, strict=True)], looks, commits


def scores(runs: Iterable[Run]) -> dict[str, Share]:
    """The scores of a group."""
    runs = list(runs)
    counted = [r for r in runs if r.counted]
    precision, recall = precision_recall([r.flagged for r in counted], [r.positive for r in counted])
    healthy = [r for r in runs if r.family.healthy and not r.failed]
    families = {r.family.name: False for r in healthy}
    for r in healthy:
        families[r.family.name] |= r.flagged
    hidden = [r for r in runs if r.planted and r.failed and not r.family.visible]
    return {
        "precision": precision,
        "recall": recall,
        "recall_not_visible": share(r.flagged for r in hidden),
        "cause_top1": share(
            r.causes[:1] and r.causes[0] in r.family.causes for r in runs if r.positive and r.flagged
        ),
        "healthy_runs": share(r.flagged for r in healthy),
        "healthy_families": share(families.values()),
        "twins": share(r.flagged for r in runs if r.fixed and not r.failed),
    }


def recall_by(runs: Iterable[Run], key: Callable[[Run], str]) -> dict[str, Share]:
    """Recall for each value of ``key`` among the runs whose fault is visible."""
    positive = [r for r in runs if r.positive]
    return {k: share(r.flagged for r in positive if key(r) == k) for k in sorted({key(r) for r in positive})}


def baselines(runs: Iterable[Run]) -> dict[str, dict[str, Share]]:
    counted = [r for r in runs if r.counted]
    found = {}
    for name in BASELINES:
        pair = precision_recall([r.baselines[name] for r in counted], [r.positive for r in counted])
        found[name] = dict(zip(("precision", "recall"), pair, strict=True))
    return found


def bars(scored: dict[str, dict[str, Share]]) -> dict[str, dict[str, Any]]:
    """The numbers to beat; of the prototype."""
    overall, blind = scored["overall"], scored["blind"]
    bar = {
        "precision": (overall["precision"].value, 0.925, overall["precision"].value > 0.925),
        "recall": (overall["recall"].value, 0.942, overall["recall"].value > 0.942),
        "recall_blind": (blind["recall"].value, 16 / 20, blind["recall"].value > 16 / 20),
        "healthy_families_flagged": (
            overall["healthy_families"].hits,
            0,
            overall["healthy_families"].hits == 0,
        ),
    }
    return {name: {"value": v, "bar": b, "beaten": ok} for name, (v, b, ok) in bar.items()}


def cost(runs: Iterable[Run]) -> dict[str, Any]:
    """Forecasts against plain steps of the same training, timed right before and after: median over a family's runs."""
    ratios: dict[str, list[float]] = {}
    seconds: dict[str, list[float]] = {}
    for r in runs:
        if r.step_seconds and r.steps:
            ratios.setdefault(r.family.name, []).append(r.seconds / r.step_seconds)
            seconds.setdefault(r.family.name, []).append(r.seconds)
    if not ratios:
        return {}
    by_family = {name: median(values) for name, values in ratios.items()}
    slowest = max(by_family, key=lambda name: by_family[name])
    took = {name: median(values) for name, values in seconds.items()}
    longest = max(took, key=lambda name: took[name])
    return {
        "steps_median": median(by_family.values()),
        "steps_max": by_family[slowest],
        "steps_max_family": slowest,
        "seconds_median": median(took.values()),
        "seconds_max": took[longest],
        "seconds_max_family": longest,
    }


def result_of(runs: Sequence[Run]) -> dict[str, Any]:
    """All numbers of a set of runs."""
    groups = {name: [r for r in runs if inside(r)] for name, inside in GROUPS.items()}
    scored = {name: scores(group) for name, group in groups.items()}
    compared = {name: baselines(group) for name, group in groups.items()}
    return {
        "runs": {
            "all": len(runs),
            "counted": sum(r.counted for r in runs),
            "no_step": sum(r.steps == 0 for r in runs),
            "errors": [f"{r}: {r.error}" for r in runs if r.error],
            "good_ones_that_fail": [str(r) for r in runs if r.failed and not r.planted],
        },
        "scores": scored,
        "by_net": recall_by(runs, lambda r: r.family.net),
        "by_cause": recall_by(runs, lambda r: r.family.causes[0]),
        "baselines": {b: {name: compared[name][b] for name in groups} for b in BASELINES},
        "bars": bars(scored),
        "cost": cost(runs),
        "missed": [str(r) for r in runs if r.positive and not r.flagged],
        "false_alarms": [str(r) for r in runs if r.flagged and not r.failed],
    }


def show(result: dict[str, Any]) -> None:
    names = list(result["scores"])
    print(f"{'':22}" + "".join(f"{name:32}" for name in names))
    for key in result["scores"]["overall"]:
        print(f"{key:22}" + "".join(f"{result['scores'][name][key]!s:32}" for name in names))
    for name, by_group in result["baselines"].items():
        for key in ("precision", "recall"):
            print(f"{name + ' ' + key:22}" + "".join(f"{by_group[g][key]!s:32}" for g in names))
    for title in ("by_net", "by_cause"):
        print(f"\nrecall {title.replace('_', ' ')}")
        for name, value in result[title].items():
            print(f"  {name:24} {value}")
    print()
    for title in ("missed", "false_alarms"):
        print(f"{title.replace('_', ' ')}: {len(result[title])}")
        for text in result[title]:
            print(f"  {text}")
    for name, bar in result["bars"].items():
        print(
            f"{name}: {bar['value']:.3f}, bar {bar['bar']:.3f}: {'beaten' if bar['beaten'] else 'NOT beaten'}"
        )
    print(f"runs: {result['runs']}")
    print(f"cost: {result['cost']}")
    if "cost_25m" in result:
        print(f"25M-parameter Transformer: {result['cost_25m']}")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--jobs", type=int, default=2, help="processes, one thread each")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="NAME", help="these families; nothing is saved"
    )
    parser.add_argument("--fresh", action="store_true", help="forget the rows of an earlier run")
    parser.add_argument("--cost", action="store_true", help="only the 25M-parameter Transformer")
    parser.add_argument("--fit", action="store_true", help="refit the constants and print them")
    args = parser.parse_args()
    if args.cost:
        print(cost_of_transformer())
        return 0
    if args.fit:
        runs, looks, _ = runs_of((0, 1, 2), args.only, args.jobs, args.fresh, blind=False)
        fit_forecast([(look, r.failed) for look, r in zip(looks, runs, strict=True) if r.counted])
        return 0
    runs, _, commits = runs_of(args.seeds, args.only, args.jobs, args.fresh)
    result = result_of(runs)
    if not args.only:
        result["cost_25m"] = cost_of_transformer()
    show(result)
    if not args.only:
        from benchmarks.figures import draw_forecast

        draw_forecast(result)
        save("forecast", to_json({"seeds": args.seeds, "commits": commits, **result}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
