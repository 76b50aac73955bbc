"""The table of speed, for people."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.speed_rows import Row


def show(rows: Sequence[Row]) -> None:
    """Print what is promised, then what stands beside it."""
    promised = [r for r in rows if r["goal"] is not None]
    for title, some in (
        (f"promised, {sum(map(met, promised))} of {len(promised)} met; less is better", promised),
        ("beside it", [r for r in rows if r["goal"] is None]),
    ):
        if some:
            print(f"\n{title}")
        for r in some:
            marks = f"{verdict(r):8} {number(r['value']):>8}  {goal(r):12}{interval(r):20}{r['unit']:24}"
            print(f"  {marks} {r['name']}{'  (quick)' if r['quick'] else ''}")


def met(row: Row) -> bool:
    """Whether a promise is kept."""
    return row["value"] <= row["goal"]


def verdict(row: Row) -> str:
    """``met`` or ``NOT met``; nothing for a row without a goal."""
    if row["goal"] is None:
        return ""
    return "met" if met(row) else "NOT met"


def goal(row: Row) -> str:
    return "" if row["goal"] is None else f"<= {number(row['goal'])}"


def interval(row: Row) -> str:
    """The 95 % interval of a median."""
    return "" if row["low"] is None else f"{number(row['low'])} to {number(row['high'])}"


def number(value: float) -> str:
    """Three digits."""
    return f"{value:.3g}"
