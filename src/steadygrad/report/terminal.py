"""What a watched run says while it goes: one live line, or plain lines where there is no terminal."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TextIO

from steadygrad.report.screen import Proxy, Screen
from steadygrad.report.text import clean

if TYPE_CHECKING:
    from steadygrad.records import Action, Finding, StepStats

LIVE_SECONDS = 0.2  # between two drawings of the live line
PLAIN_SECONDS = 10.0  # between two plain lines
MAX_SAID = 20  # findings and actions told while the run goes; all of them are recorded
TROUBLE_STEPS = 100  # a finding stays on the live line for so many steps
DONE = {"skip": "skipped", "clip": "clipped", "rollback": "rolled back", "stop": "stopped"}
DIM, RED, YELLOW, GREEN = "\x1b[2m", "\x1b[31m", "\x1b[33m", "\x1b[32m"
BOLD, RESET = "\x1b[1m", "\x1b[0m"


def is_terminal(stream: TextIO | None) -> bool:
    """Whether somebody looks at ``stream`` in a terminal that can move its cursor."""
    try:
        return stream is not None and stream.isatty() and os.environ.get("TERM", "dumb") != "dumb"
    except ValueError:  # closed
        return False


def shown_path(path: str, cwd: str) -> str:
    """A path as it is typed from ``cwd``: relative if it lies inside.

    Example:
        >>> shown_path("/home/a/runs/train-7", "/home/a")
        'runs/train-7'
    """
    inside = path.startswith(cwd.rstrip(os.sep) + os.sep)
    return clean(os.path.relpath(path, cwd) if inside else path)


def step_line(stats: StepStats, health: str, skipped: int, incidents: int, rate: float) -> str:
    """The live line.

    Args:
        stats: the newest step.
        health: a word or two.
        skipped: steps that the guard has skipped so far.
        incidents: how often it had something to act on.
        rate: steps per second; nan if not known yet.
    """
    parts = [f"step {stats.step:,}"]
    if stats.loss is not None:
        parts.append(f"loss {stats.loss:.4g}")
    parts += [f"grad norm {stats.grad_norm:.3g}", health]
    happened = f"{incidents:,} {'incident' if incidents == 1 else 'incidents'}, " if incidents else ""
    parts.append(f"{happened}{skipped:,} skipped")
    if math.isfinite(rate):
        parts.append(f"{rate:,.0f} steps/s" if rate >= 10 else f"{rate:.2g} steps/s")
    return "  ".join(parts)


class Terminal:
    """Tells on stderr how the run goes. Implements ``integrations.options.Observer``; no method raises.

    Args:
        shown: what is run, for people.
        cwd: the folder that paths are shown from.
        quiet: say nothing but notes.
        live: False: plain lines, even in a terminal. Used where several processes share one.
    """

    def __init__(self, shown: str, *, cwd: str, quiet: bool = False, live: bool = True) -> None:
        self.stream: TextIO | None = sys.stderr  # as it was before the script; None: nobody listens
        self._shown, self._cwd, self._quiet = shown, cwd, quiet
        self._colour = is_terminal(self.stream) and "NO_COLOR" not in os.environ
        self._screen: Screen | None = None
        if live and not quiet and self.stream is not None and is_terminal(self.stream):
            self._screen = Screen(self.stream)
        self._proxies: dict[str, Proxy] = {}
        self._label = "steadygrad"
        self._pid = os.getpid()
        self._steps = 0
        self._drawn_at, self._drawn_steps, self._rate = math.nan, 0, math.nan
        self._due = math.inf if quiet else 0.0
        self._trouble: tuple[str, str, int] | None = None  # words, colour, at how many steps
        self._said: set[tuple[str, str]] = set()
        self._acted: tuple[int, int] | None = None  # optimizer and step of the newest action
        self._unsaid: list[str] = []  # notes that had no room while the script drew its own picture

    # ------------------------------------------------------------------ the script's own output
    def open(self) -> None:
        """Stand between the script and its terminal, so that the two outputs do not mix."""
        if self._screen is None:
            return
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if is_terminal(stream):
                self._proxies[name] = self._screen.share(stream)
                setattr(sys, name, self._proxies[name])

    def close(self) -> None:
        """Wipe the live line and give the script's streams back, unless it has put others there."""
        if self._screen is not None:
            self._screen.close()
            self._screen = None
        self._due = math.inf
        while self._unsaid:
            self._say(self._unsaid.pop(0))
        for name, proxy in self._proxies.items():
            if getattr(sys, name) is proxy:
                setattr(sys, name, object.__getattribute__(proxy, "_steadygrad")[0])

    # ------------------------------------------------------------------ what the session tells
    def started(self, run_dir: str) -> None:
        if not self._quiet:
            self._say(f"{self._label}  watching {clean(self._shown)}, run {shown_path(run_dir, self._cwd)}")

    def step(self, stats: StepStats, skipped: int, incidents: int) -> None:
        self._steps += 1
        now = time.monotonic()
        if now < self._due:
            return
        self._due = now + (LIVE_SECONDS if self._screen is not None else PLAIN_SECONDS)
        if now > self._drawn_at:
            rate = (self._steps - self._drawn_steps) / (now - self._drawn_at)
            self._rate = rate if math.isnan(self._rate) else 0.8 * self._rate + 0.2 * rate
        self._drawn_at, self._drawn_steps = now, self._steps
        health, colour = self._health()
        line = step_line(stats, health, skipped, incidents, self._rate)
        if self._screen is not None:
            self._screen.show("  " + line, (colour or DIM) if self._colour else "")
        else:
            self._say(f"{self._label}  {line}")

    def finding(self, finding: Finding) -> None:
        if finding.severity == "info":
            return
        colour = RED if finding.severity == "alarm" else YELLOW
        self._trouble = (finding.rule.replace("_", " "), colour, self._steps)
        if self._acted == (finding.optimizer, finding.step):
            return  # what was done about it has been told, with the reason
        where = "" if finding.where in finding.message else f" ({finding.where})"
        self._tell((finding.rule, finding.where), f"step {finding.step:,}  {finding.message}{where}", colour)

    def action(self, action: Action) -> None:
        self._acted = (action.optimizer, action.step)
        done = DONE.get(action.action, action.action)
        self._tell((action.action, action.code), f"step {action.step:,}  {done}: {action.reason}", BOLD)

    def note(self, text: str) -> None:
        text = clean(text).removeprefix("steadygrad ")
        line = self._coloured(f"{self._label}  {text}", YELLOW)
        if not self._say(line):
            self._unsaid.append(line)

    # ------------------------------------------------------------------ parts
    def _health(self) -> tuple[str, str]:
        if self._trouble is None or self._steps - self._trouble[2] >= TROUBLE_STEPS:
            return "steady", ""
        return clean(self._trouble[0]), self._trouble[1]

    def _tell(self, kind: tuple[str, str], text: str, colour: str) -> None:
        """Say something once for each kind, and not for ever."""
        if self._quiet or kind in self._said or len(self._said) > MAX_SAID:
            return
        self._said.add(kind)
        if len(self._said) > MAX_SAID:
            text, colour = "more is only recorded from here on", ""
        self._say(self._coloured(f"{self._label}  {clean(text)}", colour))

    def _coloured(self, text: str, colour: str) -> str:
        return f"{colour}{text}{RESET}" if self._colour and colour else text

    def _say(self, line: str) -> bool:
        """Write a whole line; False if the script's own picture leaves no room for it."""
        if os.getpid() != self._pid:
            return True  # a child of the script is not watched and says nothing
        if self._screen is not None:
            return self._screen.say(line)
        if self.stream is not None:
            try:
                print(line, file=self.stream, flush=True)
            except (OSError, ValueError):  # nobody listens any more
                self.stream = None
        return True


class ChildTerminal(Terminal):
    """For one of several processes that share a terminal: plain lines, and progress from the first rank only.

    Args:
        first_step: called at the first step.
        cwd: the folder that paths are shown from.
        quiet: say nothing but notes.
        rank: of this process; None if it has none.
    """

    def __init__(self, first_step: Callable[[], object], *, cwd: str, quiet: bool, rank: str | None) -> None:
        super().__init__("", cwd=cwd, quiet=quiet, live=False)
        self._first_step = first_step
        self._label = "steadygrad" if rank is None else f"steadygrad rank {clean(rank, 8)}"
        if rank not in (None, "0"):
            self._due = math.inf

    def started(self, run_dir: str) -> None:
        """The launcher has said it."""

    def step(self, stats: StepStats, skipped: int, incidents: int) -> None:
        if self._steps == 0:
            self._pid = os.getpid()  # may be a fork of the process that imported torch
            self._first_step()
        super().step(stats, skipped, incidents)
