"""The tables of the repair benchmark, for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.repair_zoo import GROUPS


def show(result: Mapping[str, Any]) -> None:
    show_zoo(result["zoo"])
    for name in ("cases", "text"):
        if result[name]["rows"]:
            show_cases(name, result[name])
    patches = result["patches"]
    if patches["claimed"].of:
        print("\npatches, of the prescriptions for scripts")
        for key in ("claimed", "trains", "same_score"):
            print(f"  {key:12} {patches[key]}")
        for text in patches["failed"]:
            print(f"  {text}")


def show_zoo(zoo: Mapping[str, Any]) -> None:
    runs = zoo["runs"]
    print(
        f"zoo: {runs['failing']} of {runs['faulty']} draws with a fault fail; trained under each way of mending them"
    )
    print(f"  {'':22}" + "".join(f"{group:32}" for group in GROUPS))
    for name, by_group in zoo["trained"].items():
        print(f"  {name:22}" + "".join(f"{by_group[group]!s:32}" for group in GROUPS))
    for name, bar in zoo["bars"].items():
        print(
            f"  {name}: {bar['value']:.3f}, bar {bar['bar']}: {'reached' if bar['reached'] else 'NOT reached'}"
        )
    for name, texts in runs["strategy_errors"].items():
        for text in texts:
            print(f"  {name} raised: {text}")
    for name in ("healthy", "twins"):
        print(f"\n{name} untouched: {zoo[name]['untouched']}")
        _lines(zoo[name]["touched"])
    for name in ("failing", "healthy"):
        _show_cost(name, zoo["cost"][name], zoo["cost"]["most_median"][name])
    if zoo["by_cause"]:
        print("\nmended, by cause")
        for cause, found in sorted(zoo["by_cause"].items(), key=lambda pair: pair[1].value):
            print(f"  {cause:24} {found}")
    print(f"\ncures: {len(zoo['cures'])}")
    for c in zoo["cures"]:
        print(f"  {c['run']:36} {' + '.join(c['remedies']):44} {c['cured']:20} twin {c['twin']}")
    print(f"\nmissed: {len(zoo['missed'])}")
    _lines(zoo["missed"])


def _lines(texts: Sequence[str]) -> None:
    for text in texts:
        print(f"  {text}")


def _show_cost(name: str, cost: Mapping[str, Any], most: float | None = None) -> None:
    if not cost["repairs"]:
        return
    print(f"\ncost of a repair, {name}: {cost['repairs']} repairs; median, 90th percentile")
    for key in ("runs", "extra_steps", "extra_seconds", "seconds_per_run_second"):
        print(f"  {key:22} {cost[key]['median']:10.2f} {cost[key]['p90']:10.2f}")
    if most is not None:
        print(f"  median at most {most} runs: {'yes' if cost['runs']['median'] <= most else 'NO'}")


def show_cases(name: str, scored: Mapping[str, Any]) -> None:
    print(f"\n{name}, through the command line")
    for r in scored["rows"]:
        run = f"{r['family']}{' --fixed' if r['fixed'] else ''} {r['seed']}"
        found = "healthy" if r["healthy"] else " + ".join(r["remedies"]) or "nothing found"
        ends = [f"plain {r['plain']['verdict']}"]
        ends += [f"{key} {r[key]['verdict']}" for key in ("repaired", "patched") if r[key] is not None]
        print(f"  {run:56} {found:44} {', '.join(ends)}")
    for key in ("cured", "healthy_left_alone", "fixed_left_alone", "trains_plainly"):
        print(f"  {key:20} {scored[key]}")
    for key in ("failing", "healthy"):
        _show_cost(f"{name}, {key}", scored["cost"][key])
