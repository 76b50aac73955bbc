"""False alarms on what trains, and how early alarms come on what fails: our rules beside those of the peers.

All see the same steps. An alarm of ours is a finding with severity alarm, one of a peer a step at which it would act.
Alarms per 1000 steps count steps with an alarm. A lead is the number of steps from the first alarm to the onset, the
first step whose loss is not finite or above ten times the first one; negative: it came late. A run whose onset is among
its first 20 steps fails fast, any other slowly; a failing run without an onset has no lead time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.peers import PEERS
from benchmarks.scores import lead_time, share

if TYPE_CHECKING:
    from benchmarks.diagnosis import Run

OURS = "steadygrad"
NOTICED = "steadygrad, warnings too"
FAST = 20  # steps before the onset


def alarm_scores(runs: Iterable[Run]) -> dict[str, Any]:
    """Alarms on the healthy runs and the twins that trained: {"healthy"|"twins": {who: {...}}}."""
    runs = list(runs)
    parts = {
        "healthy": [r for r in runs if r.good and r.family.healthy],
        "twins": [r for r in runs if r.good and r.fixed],
    }
    return {name: _alarms(part) for name, part in parts.items()}


def _alarms(runs: Sequence[Run]) -> dict[str, Any]:
    steps = sum(r.row["steps"] for r in runs)

    def per_1000(alarms: Iterable[int]) -> float:
        return 1000 * sum(alarms) / steps if steps else float("nan")

    table: dict[str, Any] = {}
    for name, severities in ((OURS, ("alarm",)), (NOTICED, ("alarm", "warning"))):
        spoke = [len({f.step for f in r.findings if f.severity in severities}) for r in runs]
        table[name] = {"runs_with_alarm": share(n > 0 for n in spoke), "per_1000_steps": per_1000(spoke)}
    table[OURS]["runs_with_cause"] = share(bool(r.causes) for r in runs)
    for name in PEERS:
        spoke = [r.row["peers"][name]["alarms"] for r in runs]
        table[name] = {"runs_with_alarm": share(n > 0 for n in spoke), "per_1000_steps": per_1000(spoke)}
    return {"runs": len(runs), "steps": steps, "by": table}


def lead_scores(runs: Iterable[Run]) -> dict[str, Any]:
    """Lead times on the failing runs that have an onset: {"fast"|"slow"|"all": {who: Lead}}."""
    struck = [r for r in runs if r.incident and r.row["onset"] is not None]
    parts = {
        "all": struck,
        "fast": [r for r in struck if r.row["onset"] < FAST],
        "slow": [r for r in struck if r.row["onset"] >= FAST],
    }
    codes = sorted({f.code for r in struck for f in r.findings if f.severity != "info"})
    who: dict[str, Callable[[Run], int | None]] = {
        OURS: lambda r: _first(r, lambda f: f.severity == "alarm"),
        NOTICED: lambda r: _first(r, lambda f: f.severity != "info"),
    }
    who |= {name: _of_peer(name) for name in PEERS}
    who |= {code: _of_rule(code) for code in codes}
    return {
        part: {name: lead_time((r.row["onset"], first(r)) for r in chosen) for name, first in who.items()}
        for part, chosen in parts.items()
    }


def _first(run: Run, counts: Callable[[Any], bool]) -> int | None:
    return min((f.step for f in run.findings if counts(f)), default=None)


def _of_peer(name: str) -> Callable[[Run], int | None]:
    return lambda run: run.row["peers"][name]["first"]


def _of_rule(code: str) -> Callable[[Run], int | None]:
    return lambda run: _first(run, lambda f: f.code == code and f.severity != "info")


def show_alarms(alarms: dict[str, dict[str, Any]]) -> None:
    for group, parts in alarms.items():
        for part, found in parts.items():
            print(f"\nalarms on {part} runs, {group}: {found['runs']} runs, {found['steps']} steps")
            for name, row in found["by"].items():
                cause = f"  with a cause {row['runs_with_cause']}" if "runs_with_cause" in row else ""
                print(
                    f"  {name:26}{row['per_1000_steps']:9.3f} / 1000   runs {row['runs_with_alarm']!s:32}{cause}"
                )


def show_leads(leads: dict[str, dict[str, Any]]) -> None:
    for part, found in leads.items():
        runs = next(iter(found.values())).runs
        print(f"\nlead times, {part}: {runs} runs    (before the onset, by onset + 1, lead q25 median q75)")
        for name, lead in found.items():
            if lead.spoke:
                quartiles = " ".join(f"{q:6.1f}" for q in lead.quartiles)
                print(
                    f"  {name:26}{lead.before.value:6.2f} {lead.by_next.value:6.2f}   {quartiles}   ({lead.spoke})"
                )
