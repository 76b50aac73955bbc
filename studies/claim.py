"""A claim as a study: the runs it takes, what is measured on each, the values it is judged by, and its picture."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.common import environment
from steadygrad.report.machine import strict
from studies.common import in_processes, one_thread

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HERE = Path(__file__).parent
IMAGES = HERE.parent / "docs" / "img"
Run = dict[str, Any]
"""One run: its arm, its ``seed``, and what was measured on it; plain data."""


@dataclass(frozen=True)
class Value:
    """One number that a study is judged by.

    Args:
        name: what it is.
        expected: what the paper or its theory gives, as it is printed.
        low: the smallest that passes.
        high: the largest that passes.
        of: gives it from the runs, one number a seed or one over all; nan never passes.
        needed: how many of the numbers must lie between; None: all.
        control: a negative control: it passes if what was to lie between does not.
    """

    name: str
    expected: str
    low: float
    high: float
    of: Callable[[Sequence[Run]], Sequence[float]]
    needed: int | None = None
    control: bool = False

    def judge(self, runs: Sequence[Run]) -> Judged:
        """What was measured, and whether it passes."""
        measured = [float(x) for x in self.of(runs)]
        within = sum(self.low <= x <= self.high for x in measured)
        enough = bool(measured) and within >= (len(measured) if self.needed is None else self.needed)
        return Judged(
            self.name,
            self.expected,
            self.low,
            self.high,
            measured,
            self.needed,
            self.control,
            enough != self.control,
        )


@dataclass(frozen=True)
class Judged:
    """A value with its verdict, as it is saved."""

    name: str
    expected: str
    low: float
    high: float
    measured: list[float]
    needed: int | None
    control: bool
    passed: bool


@dataclass(frozen=True)
class Study:
    """A claim that anybody can run again.

    Args:
        name: of its folder under ``studies``.
        arms: the settings that are compared; each is run with every seed.
        values: what it is judged by.
        measure: ``measure(seed, smoke, **arm)`` trains or measures one arm; plain data by name.
        draw: the picture from the runs; it must make the point by itself.
        seeds: at least three, unless an arm is its own repetition.
        smoke_arms: the arms of a run of seconds; None: all.
        image: file under docs/img; None: ``study_<name>.png``.
    """

    name: str
    arms: Sequence[Run]
    values: Sequence[Value]
    measure: Callable[..., Run]
    draw: Callable[[Sequence[Run]], Figure]
    seeds: Sequence[int] = (0, 1, 2)
    smoke_arms: Sequence[Run] | None = None
    image: str | None = None
    settings: Run = field(default_factory=dict)  # saved with the results

    @property
    def results(self) -> Path:
        """Where the numbers are kept."""
        return HERE / self.name / "results.json"

    @property
    def picture(self) -> Path:
        """Where the picture is kept."""
        return IMAGES / (self.image or f"study_{self.name}.png")

    def jobs(self, smoke: bool = False) -> list[Run]:
        """Arm and seed of each run. A smoke run has one seed."""
        arms = self.arms if self.smoke_arms is None or not smoke else self.smoke_arms
        return [{**arm, "seed": seed} for arm, seed in product(arms, self.seeds[: 1 if smoke else None])]

    def carry_out(self, jobs: Sequence[Run], smoke: bool = False, processes: int = 1) -> Iterator[Run]:
        """Each run as it ends: here, on one thread, or in so many processes of one thread each."""
        work = partial(one_run, self.measure, smoke)
        if processes > 1:
            yield from (run for _, run in in_processes(work, jobs, processes))
            return
        threads = torch.get_num_threads()
        one_thread()
        try:
            yield from map(work, jobs)
        finally:
            torch.set_num_threads(threads)

    def judge(self, runs: Sequence[Run]) -> list[Judged]:
        """The verdict on all runs."""
        return [value.judge(runs) for value in self.values]

    def in_order(self, runs: Sequence[Run]) -> list[Run]:
        """As the arms and seeds are declared."""
        place = {key(job): i for i, job in enumerate(self.jobs())}
        return sorted(runs, key=lambda run: place[self.key_of(run)])

    def key_of(self, run: Run) -> str:
        """Which of the jobs this is the run of."""
        return key({name: run[name] for name in (*self.arms[0], "seed")})

    def load(self) -> Run:
        """What was saved; empty if nothing was."""
        return read(self.results) if self.results.exists() else {}

    def save(self, runs: Sequence[Run], measured_on: Run | None = None) -> list[Judged]:
        """Write ``results.json`` and the picture; of an unfinished study the runs alone.

        Args:
            measured_on: the environment of runs that were measured before; None: this one.
        """
        runs = self.in_order(runs)
        finished = len(runs) == len(self.jobs())
        values = self.judge(runs) if finished else []
        timed = [run["seconds_taken"] for run in runs if "seconds_taken" in run]
        head = {
            "environment": measured_on or environment(),
            "study": self.name,
            "seeds": list(self.seeds),
            **self.settings,
            "seconds": round(sum(timed), 1) if timed else None,  # of one core
            "passed": all(v.passed for v in values) if finished else None,
            "values": [asdict(v) for v in values],
        }
        lines = ",\n".join(json.dumps(strict(run)) for run in runs)
        text = json.dumps(strict(head), indent=1)[:-2] + f',\n "runs": [\n{lines}\n ]\n}}\n'
        self.results.write_text(text)
        if finished:
            self.draw(runs).savefig(self.picture, dpi=110)
        return values


def read(path: Path) -> Run:
    """Saved results."""
    return _with_numbers(json.loads(path.read_text()))


def one_run(measure: Callable[..., Run], smoke: bool, job: Run) -> Run:
    """One arm with one seed, and the seconds of a core that it took."""
    arm = {name: value for name, value in job.items() if name != "seed"}
    torch.manual_seed(job["seed"])
    began = time.process_time()
    measured = measure(job["seed"], smoke, **arm)
    return {**job, **measured, "seconds_taken": round(time.process_time() - began, 2)}


def key(job: Run) -> str:
    """A job as one word."""
    return json.dumps(job, sort_keys=True)


def pick(runs: Sequence[Run], **arm: Any) -> list[Run]:
    """The runs of some arms, in the order of the seeds."""
    return [run for run in runs if all(run[name] == value for name, value in arm.items())]


def each(name: str, **arm: Any) -> Callable[[Sequence[Run]], list[float]]:
    """For :class:`Value`: one measured number of the runs of an arm."""
    return lambda runs: [run[name] for run in pick(runs, **arm)]


def ratios(name: str, above: Run, below: Run) -> Callable[[Sequence[Run]], list[float]]:
    """For :class:`Value`: the number of one arm over that of another, seed by seed; nan over 0 is nan."""

    def of(runs: Sequence[Run]) -> list[float]:
        pairs = zip(each(name, **above)(runs), each(name, **below)(runs), strict=True)
        return [a / b if b else math.nan for a, b in pairs]

    return of


def by_seed(of: Callable[[Sequence[Run]], float]) -> Callable[[Sequence[Run]], list[float]]:
    """For :class:`Value`: a number from all runs of a seed."""
    return lambda runs: [of(pick(runs, seed=s)) for s in sorted({run["seed"] for run in runs})]


def table(values: Sequence[Judged]) -> str:
    """Markdown: one line a value."""
    lines = ["| value | paper or theory | passes if | ours, seed by seed | |", "|---|---|---|---|---|"]
    for v in values:
        ours = ", ".join(f"{x:.4g}" for x in v.measured)
        lines.append(
            f"| {v.name} | {v.expected} | {condition(v)} | {ours} | {'pass' if v.passed else '**fail**'} |"
        )
    return "\n".join(lines)


def condition(v: Judged) -> str:
    """What the numbers must be."""
    if math.isinf(v.low) or math.isinf(v.high):
        bound = f"at most {v.high:g}" if math.isinf(v.low) else f"at least {v.low:g}"
    else:
        bound = f"{v.low:g} to {v.high:g}"
    if v.needed is not None:
        bound += f" on {v.needed} of {len(v.measured)}"
    return f"not {bound} (control)" if v.control else bound


def _with_numbers(value: Any) -> Any:
    """What :func:`strict` has made strings of, as numbers again."""
    if isinstance(value, dict):
        return {name: _with_numbers(v) for name, v in value.items()}
    if isinstance(value, list):
        return [_with_numbers(v) for v in value]
    return float(value) if value in ("NaN", "Infinity", "-Infinity") else value
