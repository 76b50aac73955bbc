"""What repeating a failed run with one thing changed adds: the first cause by rules, by changes alone, and by both.

By changes alone: the causes of the most specific change under which the run trained, none if none did. Both: what
`steadygrad.integrations.replay.replay` says. All three for the same runs, the failing ones of one seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.scores import share
from benchmarks.zoo_runs import Row, by_name

WAYS = ("rules", "interventions", "fused")


def intervention_scores(rows: Sequence[Row]) -> dict[str, Any]:
    """{GROUP: {WAY: {told, top1, top2}}}, all of the runs; ``changed``: right by both ways and not by rules, or the
    other way round."""
    blind = {name: family.blind for name, family in by_name().items()}
    groups = {
        "overall": list(rows),
        "non-blind": [r for r in rows if not blind[r["family"]]],
        "blind": [r for r in rows if blind[r["family"]]],
    }
    changed = [r for r in rows if _right(r, "fused", 1) != _right(r, "rules", 1)]
    return {
        "seeds": sorted({r["seed"] for r in rows}),
        "by": {name: {way: _scores(group, way) for way in WAYS} for name, group in groups.items()},
        "changed": [
            f"{r['family']} {r['seed']}: {'mended' if _right(r, 'fused', 1) else 'spoilt'}, {r['rules'][:2]} -> "
            f"{r['fused'][:2]}, trained with {[a['change'] for a in r['arms'] if a['recovered']]}"
            for r in changed
        ],
        "arms_per_run": sum(len(r["arms"]) for r in rows) / len(rows) if rows else None,
    }


def _scores(rows: Sequence[Row], way: str) -> dict[str, Any]:
    return {
        "told": share(bool(r[way]) for r in rows),
        "top1": share(_right(r, way, 1) for r in rows),
        "top2": share(_right(r, way, 2) for r in rows),
    }


def _right(row: Row, way: str, first: int) -> bool:
    return bool(set(row[way][:first]) & set(by_name()[row["family"]].causes))


def show_interventions(scored: dict[str, Any]) -> None:
    print(f"\ninterventions, seed {scored['seeds']}: {scored['arms_per_run']} changed runs each")
    for group, ways in scored["by"].items():
        for way, found in ways.items():
            text = "   ".join(f"{key} {value!s:32}" for key, value in found.items())
            print(f"  {group:10} {way:14} {text}")
    for text in scored["changed"]:
        print(f"  {text}")
