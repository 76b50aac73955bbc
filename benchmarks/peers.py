"""The alarm rules of the peers, as detectors over the numbers of one step.

Each is made from its peer's own source with its default settings, and treats non-finite numbers as that source
does: most comparisons with NaN are false, so several of them say nothing once a NaN has come in. ``PEERS`` makes
a new detector by name; a detector keeps its own history and must see every step of one run, in order.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import numpy as np


class Peer(Protocol):
    """A detector. Call it once per step, after the backward pass and before any clipping.

    ``loss``: of the step. ``grad_norm``: the 2-norm of the whole gradient. ``grad_norms``: of each parameter's
    gradient, in the order of ``model.parameters()``, 0 for a parameter without one. True: the peer would act.
    """

    name: str

    def __call__(self, loss: float, grad_norm: float, grad_norms: Sequence[float]) -> bool: ...


class AutoTrainer:
    """AUTOTRAINER's exploding and vanishing gradient (github.com/shiningrain/AUTOTRAINER, utils/monitor.py).

    Every ``every`` steps: ``||g first kernel|| / ||g last kernel||`` above 70 counts as exploding; below 1e-3 with
    ``||g first kernel||`` below 1e-4 as vanishing; one of the two counts must come to ``checks``. A NaN or an
    infinity in the loss or in any gradient is an alarm at the next check, without counting.

    As in the original, parameters are taken to be kernel, bias, kernel, bias: the first kernel is ``[0]``, the last
    ``[-2]``. The original also asks for a low accuracy, which is not among the numbers here, so this one speaks
    more often; its symptoms that need accuracies or activations are left out.
    """

    name = "autotrainer"

    def __init__(self, every: int = 10, checks: int = 3) -> None:
        self.every, self.checks = every, checks
        self.steps = self.exploding = self.vanishing = 0
        self.nonfinite = False

    def __call__(self, loss: float, grad_norm: float, grad_norms: Sequence[float]) -> bool:
        self.steps += 1
        if self.steps % self.every:
            return False
        if not (math.isfinite(loss) and all(math.isfinite(g) for g in grad_norms)):
            self.nonfinite = True
        elif len(grad_norms) >= 2:
            first, last = grad_norms[0], grad_norms[-2]
            ratio = first / last if last else (math.inf if first else math.nan)
            self.exploding += ratio > 70
            self.vanishing += ratio < 1e-3 and first < 1e-4
        return self.nonfinite or max(self.exploding, self.vanishing) >= self.checks


class FixedNorm:
    """The gradient norm is above a number set by hand: ``clip_grad_norm_`` would clip. NaN is not above it."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.name = f"norm>{limit:g}"

    def __call__(self, loss: float, grad_norm: float, grad_norms: Sequence[float]) -> bool:
        return grad_norm > self.limit


class ZClip:
    """ZClip's spike: more than 2.5 standard deviations above a moving mean of norms (github.com/bluorion-com/ZClip).

    Mean and variance start from the first ``warmup`` norms and then forget with ``alpha``; a spike enters them as
    what it is clipped to (``adaptive_scaling``). Its fixed ``max_grad_norm`` is left out: that is `FixedNorm`.

    One NaN norm makes mean and variance NaN for ever, and no later norm is an alarm. One infinite norm after the
    warm-up is an alarm and enters as the mean; within the warm-up it makes the variance NaN.
    """

    name = "zclip"

    def __init__(self, alpha: float = 0.97, threshold: float = 2.5, warmup: int = 25) -> None:
        self.alpha, self.threshold, self.warmup = alpha, threshold, warmup
        self.first: list[float] = []
        self.mean = self.var = math.nan

    def __call__(self, loss: float, grad_norm: float, grad_norms: Sequence[float]) -> bool:
        if len(self.first) < self.warmup:
            self.first.append(grad_norm)
            if len(self.first) == self.warmup:
                self.mean = sum(self.first) / self.warmup
                self.var = sum((x - self.mean) * (x - self.mean) for x in self.first) / self.warmup
            return False
        std = math.sqrt(self.var)
        z = (grad_norm - self.mean) / (std + 1e-6)
        spike = z > self.threshold
        seen = self.mean + self.threshold * std * (self.threshold / z) if spike else grad_norm
        self.mean = self.alpha * self.mean + (1 - self.alpha) * seen
        self.var = self.alpha * self.var + (1 - self.alpha) * (seen - self.mean) * (seen - self.mean)
        return spike


class AutoClip:
    """AutoClip as an alarm: the norm is above the 90th percentile of the last 1000.

    The percentile is of the norms before this one, and there is none at the first step (PyPI autoclip 0.2.1,
    ``QuantileClip`` with ``global_threshold``). The paper's own code clips nearly always, at the 10th percentile
    of all norms so far, the current one included (github.com/pseeth/autoclip): as an alarm it would never be quiet.

    While one NaN is among the last 1000 the percentile is NaN, and nothing is an alarm.
    """

    name = "autoclip"

    def __init__(self, quantile: float = 0.9, window: int = 1000) -> None:
        self.quantile = quantile
        self.norms: deque[float] = deque(maxlen=window)

    def __call__(self, loss: float, grad_norm: float, grad_norms: Sequence[float]) -> bool:
        alarm = False
        if self.norms:
            with np.errstate(
                invalid="ignore"
            ):  # two infinities: their interpolation is NaN, as it is in torch
                alarm = bool(grad_norm > np.quantile(list(self.norms), self.quantile))
        self.norms.append(grad_norm)
        return alarm


class SpikeDetection:
    """Lightning's SpikeDetection (lightning.fabric.utilities.spike): |loss - mean10| >= 2 |mean10|.

    Only for a loss that is worse than the one before it; nothing is asked of the first step. A non-finite loss is
    always a spike, except at the first step. A spike does not enter the mean. The original stops the run at the
    first spike and resumes without the batch; this one goes on. NaN is left out of the mean, as torchmetrics does;
    an infinity (possible at the first step) stays in it for ten updates.
    """

    name = "lightning"

    def __init__(self, window: int = 10, warmup: int = 1, rtol: float = 2.0) -> None:
        self.warmup, self.rtol = warmup, rtol
        self.losses: deque[float] = deque(maxlen=window)
        self.last = 0.0
        self.steps = 0

    def __call__(self, loss: float, grad_norm: float, grad_norms: Sequence[float]) -> bool:
        spike = self.steps >= self.warmup and self.is_spike(loss)
        self.steps += 1
        if not spike:
            self.losses.append(loss)
            self.last = loss
        return spike

    def is_spike(self, loss: float) -> bool:
        if not math.isfinite(loss):
            return True
        if loss - self.last <= 0:
            return False
        known = [x for x in self.losses if not math.isnan(x)]
        mean = sum(known) / len(known) if known else math.nan
        return abs(loss - mean) >= abs(self.rtol * mean)


class KillLossSpike:
    """llm-foundry's KillLossSpike: loss >= 2 x mean100, five times in a row (llmfoundry/callbacks).

    The mean is of the 100 losses before this one, spikes included; nothing is asked until there are 100. Its window
    is 100 up to 2000 steps, longer for a longer run; its second rule, a loss above a fixed height, is left out.

    A NaN loss is no outlier and ends a row; the mean is then NaN, and all is quiet, until it has left the window.
    A mean below 0 makes nearly every loss an outlier.
    """

    name = "llm-foundry"

    def __init__(self, window: int = 100, multiplier: float = 2.0, patience: int = 4) -> None:
        self.multiplier, self.patience = multiplier, patience
        self.window = window
        self.losses: deque[float] = deque(maxlen=window)
        self.outliers = 0

    def __call__(self, loss: float, grad_norm: float, grad_norms: Sequence[float]) -> bool:
        if len(self.losses) == self.window:
            mean = sum(self.losses) / self.window
            self.outliers = self.outliers + 1 if loss >= mean * self.multiplier else 0
        self.losses.append(loss)
        return self.outliers > self.patience


PEERS: dict[str, Callable[[], Peer]] = {
    "autotrainer": AutoTrainer,
    "norm>10": partial(FixedNorm, 10.0),
    "norm>100": partial(FixedNorm, 100.0),
    "norm>1000": partial(FixedNorm, 1000.0),
    "zclip": ZClip,
    "autoclip": AutoClip,
    "lightning": SpikeDetection,
    "llm-foundry": KillLossSpike,
}
