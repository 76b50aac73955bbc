"""What everything that is on by default costs a run, end to end."""

from __future__ import annotations

import gc
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from runpy import run_path

import torch
import torch.nn.functional as F
from torch import nn

import steadygrad as sg
from benchmarks.common import ROOT
from benchmarks.speed_clock import Estimate, interleave, ratio, typical
from benchmarks.speed_models import WORKLOADS, Training, Workload, training
from benchmarks.speed_monitor import YOUNG
from benchmarks.speed_rows import Effort, Row, row
from benchmarks.speed_state import resident_bytes
from steadygrad.probe.joinpoints import JoinPoints

CHAR_RNN = ROOT / "examples" / "char_rnn.py"
TRANSFORMER = ROOT / "benchmarks" / "speed_transformer.py"
LEARNING_RATE = 0.01  # of the char-RNN: it trains; as the example stands, it dies


# ---------------------------------------------------------------------- pairs of processes
def process_rows(
    name: str, script: Path, arguments: Sequence[str], steps: int, goal: float, effort: Effort
) -> list[Row]:
    """``python script`` and ``steadygrad run script`` in turns; who is first changes from pair to pair."""
    steps = effort.of(steps, least=30)
    pairs = effort.of(5, least=1)
    seconds: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
    for i in range(pairs):
        for watched in (i % 2 == 1, i % 2 == 0):
            seconds[watched].append(run_script(script, [*arguments, f"--steps={steps}"], watched))
    wall, cpu = (ratio([s[k] for s in seconds[True]], [s[k] for s in seconds[False]]) for k in (0, 1))
    cadence = f"`steadygrad run`, whole processes of {steps} steps, median of {pairs} pairs"
    row_of = partial(row, cadence=cadence)
    return [
        row_of(f"{name}: a run, end to end", less_one(wall), goal=goal, unit="share of wall time"),
        row_of(f"{name}: a run, end to end, all threads", less_one(cpu), unit="share of CPU time"),
        row_of(f"{name}: the run without", typical([s[0] for s in seconds[False]]), unit="s"),
    ]


def run_script(script: Path, arguments: Sequence[str], watched: bool) -> tuple[float, float]:
    """Wall seconds and CPU seconds of one process, in an empty folder and on one thread."""
    command = [sys.executable]
    with tempfile.TemporaryDirectory() as folder:
        if watched:
            command += ["-m", "steadygrad", "run", "--quiet", "--runs", folder]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        begun = time.perf_counter()
        done = subprocess.run(
            [*command, str(script), *arguments],
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        wall = time.perf_counter() - begun
    if done.returncode:
        raise RuntimeError(f"{script.name} failed:\n{done.stderr}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


# ---------------------------------------------------------------------- steps in turns
def char_rnn() -> Training:
    """The training of ``examples/char_rnn.py``, on random characters."""
    make = run_path(str(CHAR_RNN))["CharRNN"]
    data = torch.randint(0, 96, (20_000,))

    def loss(model: nn.Module) -> torch.Tensor:
        starts = torch.randint(0, len(data) - 101, (32,))
        batch = torch.stack([data[start : start + 101] for start in starts])
        return F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())

    workload = Workload("character RNN of 192 units, batch 32 of 100", lambda: make(96, 192, 0.9), loss)
    return training(workload, lambda params: torch.optim.SGD(params, lr=LEARNING_RATE))


def transformer() -> Training:
    """The training of ``speed_transformer.py``."""
    return training(WORKLOADS["25M"], lambda params: torch.optim.AdamW(params, lr=3e-4))


def clipped_transformer() -> Training:
    """The same with a clip of the script's own."""

    def update(model: nn.Module, optimizer: torch.optim.Optimizer) -> Callable[[], object]:
        params = list(model.parameters())
        return lambda: (nn.utils.clip_grad_norm_(params, 1.0), optimizer.step())

    return training(WORKLOADS["25M"], lambda params: torch.optim.AdamW(params, lr=3e-4), update)


def step_rows(name: str, make: Callable[[], Training], steps: int, effort: Effort) -> list[Row]:
    """One copy watched and one not, step by step in turns, in this process. Wall time."""
    plain, watched = make(), make()
    left_alone = JoinPoints(None)  # type: ignore[arg-type]  # inside its block nothing is told
    around = {"plain": partial(left_alone.alone, plain.optimizer)}
    with tempfile.TemporaryDirectory() as folder, sg.watch(watched.model, watched.optimizer, runs=folder):
        young = interleave(
            {"plain": plain.step, "watched": watched.step},
            YOUNG,
            warm=0,
            clock=time.perf_counter,
            around=around,
        )
        t = interleave(
            {"plain": plain.step, "watched": watched.step},
            effort.of(steps, least=20),
            warm=0,
            clock=time.perf_counter,
            around=around,
        )
    start = sum(young["watched"]) - sum(young["plain"])
    row_of = partial(row, cadence="`sg.watch` with its defaults, steps of two copies in turns")
    return [
        row_of(
            f"{name}: a watched step, once the run has started",
            less_one(ratio(t["watched"], t["plain"])),
            unit="share of wall time",
        ),
        row_of(f"{name}: the first {YOUNG} steps, beyond plain ones", start, unit="s"),
    ]


# ---------------------------------------------------------------------- a million steps
def million_rows(effort: Effort, block: int = 2000) -> list[Row]:
    """One parameter, a million watched steps, and blocks of plain ones between: what is left is all ours."""
    plain, watched = one_parameter(), one_parameter()
    blocks = effort.of(500)

    def run(one: Training) -> None:
        for _ in range(block):
            one.step()

    left_alone = JoinPoints(None)  # type: ignore[arg-type]  # inside its block nothing is told
    with tempfile.TemporaryDirectory() as folder, sg.watch(watched.model, watched.optimizer, runs=folder):
        calls = {"plain": partial(run, plain), "watched": partial(run, watched)}
        around = {"plain": partial(left_alone.alone, plain.optimizer)}
        memory = []
        t = interleave(
            calls,
            blocks,
            warm=0,
            clock=time.perf_counter,
            before=lambda: memory.append(resident_bytes()),
            around=around,
        )
        gc.collect()
        memory.append(resident_bytes())
    extra = typical([(w - p) / block * 1e6 for w, p in zip(t["watched"], t["plain"], strict=True)])
    start = min(5, blocks // 2)  # blocks of each, until buffers are full and caches warm
    grown = (memory[-1] - memory[2 * start]) / 1e6
    cadence = f"{blocks * block:,} watched steps of SGD on one parameter, `sg.watch` with its defaults"
    return [
        row("one parameter: a watched step beyond a plain one", extra, goal=60, unit="us", cadence=cadence),
        row(
            "one parameter: growth of resident memory",
            grown,
            goal=5,
            unit="MB",
            cadence=f"{cadence}, from step {start * block:,} on",
            rounds=blocks,
        ),
    ]


def one_parameter() -> Training:
    def loss(model: nn.Module) -> torch.Tensor:
        return model(x).square().mean()

    x = torch.randn(8, 1)
    workload = Workload("one parameter", lambda: nn.Linear(1, 1, bias=False), loss)
    return training(workload, lambda params: torch.optim.SGD(params, lr=1e-3))


def less_one(estimate: Estimate) -> Estimate:
    value, low, high, rounds = estimate
    return Estimate(value - 1, low - 1, high - 1, rounds)
