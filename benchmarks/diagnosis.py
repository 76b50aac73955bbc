"""Is the cause named right, and is what trains left alone? Whole runs of the zoo, watched with the guard off.

    OMP_NUM_THREADS=1 python benchmarks/diagnosis.py [--seeds 10 11 12] [--jobs 2] [--only NAME ...] [--fresh]
                                                     [--cases] [--interventions]
    python benchmarks/diagnosis.py --fit    constants refitted on the families that are not blind, seeds 0 1 2; printed

Prints tables, draws ``docs/img/diagnosis.png`` and saves ``benchmarks/results/diagnosis.json``, unless ``--only`` is
given. Shares are ``{hits, of, value, interval}`` with Wilson's 95 % interval. Keys of the file:

    seeds, commits           of the rows; more than one commit: a cache older than the code
    runs                     how many there are, how many failed, whose watching had an error, which ended otherwise
                             than the plain run did (None where no plain run is cached)
    incidents.GROUP          runs with a planted fault that really failed; GROUP is overall, non-blind or blind
      told                   any cause at all
      top1, top2             right name first, or among the first two; of all
      top1_of_told, top2_of_told
      macro_f1               over canonical names, one against the rest, what was told first
      calibration            bins of the first cause's probability {low, high, count, said, was}, and their error
    f1_by_cause, confusions  overall; confusions are [true, said, times]
    bars                     what is to be beaten, and whether it is
    alarms, lead_times       see benchmarks/diagnosis_alarms.py
    interventions            with --interventions: see benchmarks/diagnosis_interventions.py
    cases                    with --cases: see benchmarks/diagnosis_cases.py
    wrong, told_on_good      the runs behind the numbers
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.common import save
from benchmarks.diagnosis_alarms import alarm_scores, lead_scores, show_alarms, show_leads
from benchmarks.diagnosis_cases import case_scores, run_cases, show_cases
from benchmarks.diagnosis_interventions import intervention_scores, show_interventions
from benchmarks.fit import fit_diagnosis
from benchmarks.scores import confusions, f1_by_class, macro_f1, reliability, share, to_json
from benchmarks.zoo import Family
from benchmarks.zoo_cache import cached, draws, rows
from benchmarks.zoo_runs import Draw, Row, by_name, diagnosis_row, facts_of, findings_of, intervention_row
from steadygrad.diagnose.causes import diagnose
from steadygrad.records import Cause, Finding

SEEDS = (10, 11, 12)
BARS = {
    "top1_of_told": ("overall", 27 / 29),
    "top1_of_told_blind": ("blind", 18 / 22),
    "macro_f1": ("overall", 0.85),
}


@dataclass(frozen=True)
class Run:
    """One whole run: how it ended, what was said of it, and when."""

    row: Row
    family: Family
    findings: list[Finding]
    causes: list[Cause]

    @classmethod
    def of(cls, row: Row) -> Run:
        findings, facts = findings_of(row), facts_of(row)
        causes = diagnose(findings, facts) if facts is not None else []
        return cls(row, by_name()[row["family"]], findings, causes)

    @property
    def draw(self) -> Draw:
        return Draw(self.row["family"], self.row["seed"], self.row["fixed"])

    @property
    def fixed(self) -> bool:
        return self.draw.fixed

    @property
    def failed(self) -> bool:
        return not self.row["outcome"]["trained"]

    @property
    def incident(self) -> bool:
        """It has a planted fault and really failed."""
        return self.failed and not self.fixed and not self.family.healthy

    @property
    def good(self) -> bool:
        """A healthy run or a twin that trained: to be left alone."""
        return not self.failed and (self.fixed or self.family.healthy)

    @property
    def names(self) -> list[str]:
        return [c.cause for c in self.causes]

    def right(self, first: int) -> bool:
        """Whether a true cause is among the first ones told."""
        return bool(set(self.names[:first]) & set(self.family.causes))

    @property
    def first(self) -> str | None:
        return self.names[0] if self.names else None

    def __str__(self) -> str:
        told = ", ".join(f"{c.cause} {c.probability:.2f}" for c in self.causes[:3]) or "nothing"
        true = "/".join(self.family.causes) or "healthy"
        return f"{self.draw} ({true}): {self.row['outcome']['kind']}, told {told}"


def grouped(runs: Sequence[Run]) -> dict[str, list[Run]]:
    return {
        "overall": list(runs),
        "non-blind": [r for r in runs if not r.family.blind],
        "blind": [r for r in runs if r.family.blind],
    }


def incident_scores(runs: Iterable[Run]) -> dict[str, Any]:
    """How well the causes of failed runs are named."""
    failed = [r for r in runs if r.incident]
    told = [r for r in failed if r.causes]
    table, error = reliability((r.causes[0].probability, r.right(1)) for r in told)
    return {
        "told": share(bool(r.causes) for r in failed),
        "top1": share(r.right(1) for r in failed),
        "top2": share(r.right(2) for r in failed),
        "top1_of_told": share(r.right(1) for r in told),
        "top2_of_told": share(r.right(2) for r in told),
        "macro_f1": macro_f1((r.family.causes, r.first) for r in failed),
        "calibration": {"bins": table, "error": error},
    }


def bars(incidents: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The numbers to beat: of the prototype, and the best academic F1."""
    found = {}
    for name, (group, bar) in BARS.items():
        value = incidents[group][name.removesuffix("_blind")]
        value = getattr(value, "value", value)
        found[name] = {"value": value, "bar": bar, "beaten": value > bar}
    return found


def result_of(runs: Sequence[Run], plain: dict[Draw, Row]) -> dict[str, Any]:
    """All numbers of a set of runs. ``plain``: rows of the plain runs, by draw, as far as there are any."""
    incidents = {name: incident_scores(group) for name, group in grouped(runs).items()}
    failed = [r for r in runs if r.incident]
    told = [(r.family.causes, r.first) for r in failed]
    return {
        "runs": {
            "all": len(runs),
            "failed": sum(r.failed for r in runs),
            "incidents": len(failed),
            "errors": [f"{r}: {r.row['error']}" for r in runs if r.row["error"]],
            "ended_otherwise": _ended_otherwise(runs, plain),
        },
        "incidents": incidents,
        "f1_by_cause": f1_by_class(told),
        "confusions": confusions(told),
        "bars": bars(incidents),
        "alarms": {name: alarm_scores(group) for name, group in grouped(runs).items()},
        "lead_times": lead_scores(runs),
        "wrong": [str(r) for r in failed if not r.right(1)],
        "told_on_good": [str(r) for r in runs if r.good and r.causes],
    }


def _ended_otherwise(runs: Iterable[Run], plain: dict[Draw, Row]) -> list[str] | None:
    """Runs that watching has changed: there must be none."""
    pairs = [(r, plain.get(r.draw)) for r in runs]
    known = [(r, p) for r, p in pairs if p is not None]
    return [str(r) for r, p in known if r.row["outcome"] != p["outcome"]] if known else None


def show(result: dict[str, Any]) -> None:
    groups = list(result["incidents"])
    print(f"{'incidents':22}" + "".join(f"{name:32}" for name in groups))
    for key in ("told", "top1", "top2", "top1_of_told", "top2_of_told"):
        print(f"{key:22}" + "".join(f"{result['incidents'][g][key]!s:32}" for g in groups))
    print(f"{'macro_f1':22}" + "".join(f"{result['incidents'][g]['macro_f1']:<32.3f}" for g in groups))
    errors = [result["incidents"][g]["calibration"]["error"] for g in groups]
    print(f"{'calibration error':22}" + "".join(f"{x:<32.3f}" for x in errors))
    for group in ("non-blind", "blind"):
        print(f"\nprobability of the first cause, {group}: said, was right, runs")
        for b in result["incidents"][group]["calibration"]["bins"]:
            if b.count:
                print(f"  {b.low:.1f}-{b.high:.1f}  {b.said:.2f}  {b.was:.2f}  {b.count}")
    print("\nF1 by cause")
    for name, value in sorted(result["f1_by_cause"].items(), key=lambda pair: pair[1]):
        print(f"  {name:24} {value:.2f}")
    print("\nconfused most (true, told, times)")
    for true, said, times in result["confusions"][:15]:
        print(f"  {true:24} {said:24} {times}")
    show_alarms(result["alarms"])
    show_leads(result["lead_times"])
    for title in ("wrong", "told_on_good"):
        print(f"\n{title.replace('_', ' ')}: {len(result[title])}")
        for text in result[title]:
            print(f"  {text}")
    print()
    for name, bar in result["bars"].items():
        print(
            f"{name}: {bar['value']:.3f}, bar {bar['bar']:.3f}: {'beaten' if bar['beaten'] else 'NOT beaten'}"
        )
    print(f"runs: {result['runs']}")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--jobs", type=int, default=2, help="processes, one thread each")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="NAME", help="these families; nothing is saved"
    )
    parser.add_argument("--fresh", action="store_true", help="forget the rows of an earlier run")
    parser.add_argument(
        "--cases", action="store_true", help="the real cases through the command line as well"
    )
    parser.add_argument(
        "--interventions", action="store_true", help="repeat the failing runs of the first seed, changed"
    )
    parser.add_argument("--fit", action="store_true", help="refit the constants and print them")
    args = parser.parse_args()
    if args.fit:
        wanted = draws((0, 1, 2), args.only, blind=False)
        runs = [Run.of(r) for r in rows("diagnosis", diagnosis_row, wanted, jobs=args.jobs, fresh=args.fresh)]
        fit_diagnosis([(r.row, r.family.causes) for r in runs if r.incident and r.causes])
        return 0
    wanted = draws(args.seeds, args.only)
    made = rows("diagnosis", diagnosis_row, wanted, jobs=args.jobs, fresh=args.fresh)
    runs = [Run.of(row) for row in made]
    result = result_of(runs, cached("truth"))
    show(result)
    if args.interventions:
        failed = [r.draw for r in runs if r.incident and r.draw.seed == args.seeds[0]]
        arms = rows("interventions", intervention_row, failed, jobs=args.jobs, fresh=args.fresh)
        result["interventions"] = intervention_scores(arms)
        show_interventions(result["interventions"])
    if args.cases:
        result["cases"] = case_scores(run_cases(args.jobs))
        show_cases(result["cases"])
    if not args.only:
        from benchmarks.figures import draw_diagnosis

        draw_diagnosis(result)
        commits = sorted({row["commit"] for row in made})
        save("diagnosis", to_json({"seeds": args.seeds, "commits": commits, **result}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
