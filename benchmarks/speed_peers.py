"""Other ways to watch a training, each logging at every step, beside ours at every step."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from statistics import median
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from benchmarks.speed_clip import Given
from benchmarks.speed_clock import interleave, ratio, typical
from benchmarks.speed_models import WORKLOADS, Training, Workload, training
from benchmarks.speed_monitor import YOUNG, Monitor
from benchmarks.speed_rows import Effort, Missing, Row, row
from steadygrad.clip import FoldedClip

Peer = Callable[[Workload], Iterator[Training]]


def installed(name: str) -> ModuleType:
    """The peer's package.

    Raises:
        Missing: it is not installed.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise Missing(f"{name} is not installed: pip install 'steadygrad[bench]'") from error


# ---------------------------------------------------------------------- whole steps
@contextmanager
def wandb_watch(workload: Workload) -> Iterator[Training]:
    """``wandb.watch(log="gradients", log_freq=1)``: a histogram of each gradient.

    Offline; its service process is not counted.
    """
    os.environ["WANDB_SILENT"] = "true"
    wandb = installed("wandb")
    with tempfile.TemporaryDirectory() as folder:
        run = wandb.init(mode="offline", dir=folder, project="speed")

        def update(model: nn.Module, optimizer: Optimizer) -> Callable[[], object]:
            run.watch(model, log="gradients", log_freq=1)
            return lambda: (optimizer.step(), run.log({"step": 1}))

        try:
            yield training(workload, update=update)
        finally:
            run.finish()


@contextmanager
def tensorboard_histograms(workload: Workload) -> Iterator[Training]:
    """``SummaryWriter.add_histogram`` of every gradient."""
    installed("tensorboard")
    writer_class = import_module("torch.utils.tensorboard").SummaryWriter
    with tempfile.TemporaryDirectory() as folder, writer_class(folder) as writer:

        def update(model: nn.Module, optimizer: Optimizer) -> Callable[[], object]:
            steps = iter(range(10**9))

            def act() -> None:
                optimizer.step()
                step = next(steps)
                for name, p in model.named_parameters():
                    writer.add_histogram(name, p.grad, step)

            return act

        yield training(workload, update=update)


@contextmanager
def anomaly_mode(workload: Workload) -> Iterator[Training]:
    """``torch.autograd.set_detect_anomaly(True)``: stops at the first NaN of a backward pass."""
    inner = training(workload)

    def step() -> None:
        with warnings.catch_warnings(), torch.autograd.set_detect_anomaly(True):
            inner.step()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is slow
        yield Training(inner.model, inner.optimizer, step)


WATCHERS: dict[str, tuple[str, Any, float | None]] = {
    "wandb": ('wandb.watch(log="gradients")', wandb_watch, 1 / 25),
    "tensorboard": ("TensorBoard histograms", tensorboard_histograms, None),
    "anomaly": ("anomaly mode", anomaly_mode, None),
}


ROUNDS = {"1M": 60, "25M": 20}  # whole steps of larger models take seconds


def watcher_rows(peer: str, size: str, effort: Effort) -> list[Row]:
    """Ours: the time inside our hooks, with its own reduction of the gradients. Theirs: whole steps less plain ones.

    None of the peers reads activations, so steps on which ours does are not counted.
    """
    says, open_peer, goal = WATCHERS[peer]
    workload = WORKLOADS[size]
    with open_peer(workload) as theirs:
        plain, ours = training(workload), training(workload)
        monitor = Monitor(ours.model)
        around = {"ours": partial(monitor.listening, ours.optimizer)}
        interleave({"ours": ours.step}, YOUNG, warm=0, around=around)
        rounds = effort.of(ROUNDS.get(size, 8))
        calls = {"plain": plain.step, "theirs": theirs.step, "ours": ours.step}
        t = interleave(calls, rounds, around=around)
    mine = median(monitor.steps[-rounds:])
    extra = [a - b for a, b in zip(t["theirs"], t["plain"], strict=True)]
    cadence = f"each at every step, no clip, no activations; {workload.says}, fused AdamW"
    share = typical([e / p for e, p in zip(extra, t["plain"], strict=True)])
    return [
        row(
            f"{size}: our monitor to {says}",
            mine / median(extra),
            goal=goal,
            unit="ratio",
            cadence=cadence,
            rounds=rounds,
        ),
        row(f"{size}: {says}", share, unit="share of a step", cadence=cadence),
        row(
            f"{size}: our monitor beside {says}",
            mine / median(t["plain"]),
            unit="share of a step",
            cadence=cadence,
            rounds=rounds,
        ),
    ]


# ---------------------------------------------------------------------- clips
def lightning_clip(given: Given, max_norm: float, optimizer: Optimizer) -> Callable[[], object]:
    """Lightning's ``grad_norm``, logged every step, and the clip of its Trainer, which is torch's."""
    grad_norm = installed("lightning.pytorch.utilities").grad_norm

    def act() -> None:
        grad_norm(given.model, norm_type=2)
        clip_grad_norm_(given.params, max_norm)
        optimizer.step()

    return act


def accelerate_clip(given: Given, max_norm: float, optimizer: Optimizer) -> Callable[[], object]:
    """Accelerate's ``clip_grad_norm_``, which the Trainer of Hugging Face calls."""
    accelerator = installed("accelerate").Accelerator(cpu=True)

    def act() -> None:
        accelerator.clip_grad_norm_(given.params, max_norm)
        optimizer.step()

    return act


CLIPS = {
    "lightning": ("Lightning's grad_norm + clip", lightning_clip),
    "accelerate": ("Hugging Face's clip", accelerate_clip),
}


def clip_peer_rows(peer: str, size: str, effort: Effort) -> list[Row]:
    says, make = CLIPS[peer]
    given = Given(size)
    max_norm = 2 * given.norm
    watched, theirs = given.adamw(fused=True), given.adamw(fused=True)
    monitor = Monitor(given.model)
    t = interleave(
        {"ours": FoldedClip(watched, max_norm).step, "theirs": make(given, max_norm, theirs)},
        effort.of(200 if size == "1M" else 30),
        warm=3,
        before=given.put_back,
        around={"ours": partial(monitor.listening, watched)},
    )
    cadence = f"every step, no step clipped, fused AdamW; {given.says}, gradients given"
    name = f"{size}: folded clip + monitor + AdamW to {says} + AdamW"
    return [row(name, ratio(t["ours"], t["theirs"]), unit="ratio", cadence=cadence)]
