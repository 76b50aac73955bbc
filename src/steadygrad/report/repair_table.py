"""The arms of a repair: live while they run, and the table that stays."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

from steadygrad.report.terminal import DIM, GREEN, RED, is_terminal
from steadygrad.report.text import clean, duration, number

Line = tuple[str, str]  # style and text
INDENT = "       "
MAX_NAME = 44
MAX_ROWS = 14  # of the table that stays
REFRESH = 8  # drawings of the live table in a second
KEPT_FREE = 3  # rows of the terminal that the live table leaves
GROWN = (
    "exploded",
    "unbounded",
)  # verdicts of runs that did not survive, whose last loss says how far they went


@dataclass
class _Row:
    name: str
    step: int = 0
    loss: float | None = None
    said: str = ""  # how it ended; "" while it runs
    good: bool = False


class ArmsScreen:
    """Shows runs that are under way: a table that moves in a terminal, a line for each end elsewhere.

    Args:
        stream: where the live table is drawn, if it is a terminal.
        plain: where the lines go if it is not.
    """

    def __init__(self, stream: TextIO, plain: TextIO) -> None:
        self._stream, self._plain = stream, plain
        self._title = ""
        self._rows: list[_Row] = []
        self._began = 0.0
        self._live: Any = None

    def begin(self, title: str, names: Sequence[str]) -> int:
        """Further runs of a stage begin; another title is another stage. Returns the number of the first."""
        if title != self._title:
            self.close()
            self._title, self._began, self._rows = title, time.monotonic(), []
        first = len(self._rows)
        self._rows += [_Row(clean(name, MAX_NAME)) for name in names]
        if self._live is None and is_terminal(self._stream):
            from rich.console import Console  # only where there is somebody to look
            from rich.live import Live

            console = Console(file=self._stream, highlight=False)
            self._live = Live(
                self,  # type: ignore[arg-type]
                console=console,
                transient=True,
                refresh_per_second=REFRESH,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._live.start()
        return first

    def step(self, row: int, step: int, loss: float | None) -> None:
        """A run is so far."""
        if row < len(self._rows):
            self._rows[row].step, self._rows[row].loss = step, loss

    def end(self, row: int, said: str, good: bool = False) -> None:
        """It is over; ``said`` is what came of it."""
        if row >= len(self._rows):
            return
        self._rows[row].said, self._rows[row].good = clean(said) or "ended", good
        if self._live is None:
            print(
                f"{self._title}: {self._rows[row].name}: {self._rows[row].said}", file=self._plain, flush=True
            )

    def close(self) -> None:
        """Take the live table away."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def __rich__(self) -> Any:
        from rich.text import Text

        text = Text(no_wrap=True, overflow="ellipsis")
        for i, (style, line) in enumerate(self.lines(_height(self._stream) - KEPT_FREE)):
            text.append(("\n" if i else "") + line, style=style)
        return text

    def lines(self, most: int) -> list[Line]:
        """The live table, in styles of rich, in ``most`` lines or fewer: what runs comes first."""
        rows = list(self._rows)
        ended = sum(bool(r.said) for r in rows)
        took = duration(time.monotonic() - self._began)
        head = f"{self._title}  {ended} of {len(rows)} runs ended, {took}"
        room = max(most - 2, 1)
        shown = rows
        if len(rows) > room:
            running = [r for r in rows if not r.said][:room]
            over = [r for r in rows if r.said]
            shown = over[len(over) - (room - len(running)) :] + running
        width = max((len(r.name) for r in shown), default=0)
        out = [("bold", head)]
        for r in shown:
            if r.said:
                out.append(("green" if r.good else "dim", f"{INDENT}{r.name:{width}}  {r.said}"))
            elif r.step:
                loss = "" if r.loss is None else f"   loss {number(r.loss)}"
                out.append(("", f"{INDENT}{r.name:{width}}  step {r.step:,}{loss}"))
            else:
                out.append(("dim", f"{INDENT}{r.name:{width}}  ..."))
        if len(shown) < len(rows):
            out.append(("dim", f"{INDENT}and {len(rows) - len(shown)} more"))
        return out


def _height(stream: TextIO) -> int:
    try:
        return os.get_terminal_size(stream.fileno()).lines or 24  # 0: it does not know
    except (OSError, ValueError):
        return 24


# ---------------------------------------------------------------------- the table that stays
def table(twin: Mapping[str, Any], arms: Sequence[Mapping[str, Any]], best: str) -> Iterable[Line]:
    """Every remedy that was tried beside the untouched run, best first.

    Args:
        twin: of the JSON object of a repair.
        arms: the same.
        best: name of the arm that was adopted; "" if none was.
    """
    rows = merged(arms)
    rows.sort(key=lambda row: (row["name"] != best, row["order"]))
    brief_at = max((row["brief_steps"] for row in rows), default=0)
    shown = rows[:MAX_ROWS]
    width = max([len("nothing changed (twin)"), *(min(len(r["name"]), MAX_NAME) for r in shown)])
    early = f"{f'loss at {brief_at:,}':>16}" if brief_at else ""
    yield "", f"{INDENT}{'arm':{width}}{early}  loss at the end"
    last = outcome(twin)
    yield RED, f"{INDENT}{'nothing changed (twin)':{width}}{' ' * len(early)}  {last:>15}"
    for row in shown:
        brief = f"{row['brief']:>16}" if brief_at else ""
        end = row["whole"]
        mark = "  <-" if row["name"] == best else ""
        style = GREEN if mark else "" if row["trains"] else DIM
        line = f"{INDENT}{clean(row['name'], MAX_NAME):{width}}{brief}  {end:>15}{mark}"
        said = "" if mark or not row["said"] else f"  {clean(row['said'], 60)}"
        yield style, (line + said).rstrip()
    if len(rows) > len(shown):
        yield DIM, f"{INDENT}and {len(rows) - len(shown)} more that did no better"


def merged(arms: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row for each remedy: what it came to briefly and in a whole run, in the order of what it is worth."""
    rows: dict[str, dict[str, Any]] = {}
    for arm in arms:
        row = rows.setdefault(
            arm["name"],
            {"name": arm["name"], "brief": "", "whole": "", "brief_steps": 0, "trains": False, "said": "",
             "order": (1, math.inf)},
        )  # fmt: skip
        row["whole" if arm["whole"] else "brief"] = outcome(arm)
        if not arm["whole"]:
            row["brief_steps"] = arm["steps"]
        score = float(arm["score"])
        row["order"] = min(row["order"], (0 if arm["whole"] else 1, score))
        row["trains"] |= bool(arm["whole"] and arm["trains"])
        row["said"] = arm["note"]
    return sorted(rows.values(), key=lambda row: row["order"])


def outcome(run: Mapping[str, Any]) -> str:
    """What a run came to, in a word: its last loss, or where it was lost.

    Example:
        >>> outcome({"loss_last": 1.2345, "failed_at": None, "survived": True, "kind": "learned"})
        '1.23'
        >>> outcome({"loss_last": "NaN", "failed_at": 37, "survived": False, "kind": "nonfinite"})
        'NaN at 37'
    """
    loss = run["loss_last"]
    if loss is None:
        return "no end"
    value = float(loss)
    if run["survived"]:
        return number(value)
    if math.isfinite(value) and run["kind"] in GROWN:
        return number(value)
    word = (
        "NaN" if math.isfinite(value) else number(value)
    )  # the script may end before it has a loss that is none
    return f"{word} at {run['failed_at']:,}" if run["failed_at"] is not None else word
