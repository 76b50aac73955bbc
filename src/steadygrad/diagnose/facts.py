"""What a session knows about a run besides its findings: the other half of a diagnosis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from steadygrad.diagnose.verdict import Verdict
from steadygrad.records import NAN, FirstNonFinite, ParamInfo, Portrait, StepStats
from steadygrad.rules.history import History, step_loss

RECURRENT = ("RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell")
ATTENTION = ("MultiheadAttention", "TransformerEncoderLayer", "TransformerDecoderLayer")


@dataclass(frozen=True, slots=True)
class Facts:
    """Plain facts at an incident, or at the end of a run that had none. What is not known is nan, None or empty.

    Example:
        >>> Facts(optimizer="SGD", lr=0.3, module_types=("RNN", "Linear")).recurrent
        ['RNN']
    """

    optimizer: str = ""  # class name
    lr: float = NAN
    momentum: float = 0.0
    betas: tuple[float, float] | None = None
    lr_jump: float = 1.0  # largest ratio of a learning rate to that of the step before, in the last 30 steps
    module_types: tuple[str, ...] = ()  # class names present in the model
    params: tuple[ParamInfo, ...] = ()
    half: bool = False  # float16 somewhere: parameters, autocast, or a GradScaler
    healthy_steps: int = 0  # before the incident
    loss_first: float = NAN
    loss_best: float = NAN
    loss_before: float = NAN  # recent median before the incident
    loss_at: float = NAN  # at the incident; may be nan or inf because the loss was
    loss_seen: bool = False
    loss_last: float = NAN  # of the step before
    norm_before: float = NAN  # median of the healthy gradient norms; the smallest of fewer than ten
    norm_last: float = NAN  # of the step before
    norm_at: float = NAN  # before clipping
    one_step_only: bool | None = None  # the step after it was normal again; None: not known yet
    input_rms: float = NAN  # of the first input of the root
    user_clipped: bool = False
    largest_growth: str = ""  # parameter whose gradient norm had grown most at the incident
    growth: float = NAN  # by this factor over its usual norm
    portrait: Portrait | None = None  # of the first step
    at: Portrait | None = None  # of the incident, or of the last sampled step
    last: Portrait | None = None  # the newest
    lowest: float = NAN  # lowest finite loss of any optimizer
    rise: float = NAN  # median of losses 5 to 9 over that of losses 0 to 2, for a positive loss
    num_backwards: int = 1  # most backward passes that went into one step
    verdict: Verdict | None = None  # at the end of the run
    located: FirstNonFinite | None = None
    update_ratio: float = NAN  # median over weights and the first 20 steps of ||update|| / ||weight||
    update_ratio_last: float = NAN  # the same over the last 50 looks
    loss_noise: float = NAN  # spread of the late losses from step to step, over their level
    steps: int = 0
    optimizers: int = 1
    eps: float = NAN  # of the optimizer
    weight_decay: float = 0.0
    lr_limit: float = (
        NAN  # largest stable learning rate by the curvature of the first step; a forecast has it
    )
    lr_peak: float = NAN  # largest learning rate that the schedule will reach, as far as can be seen

    @property
    def in_half(self) -> bool:
        """Whether anything was computed in float16."""
        seen = any(
            row.dtype == "float16" for p in (self.portrait, self.at) if p is not None for row in p.layers
        )
        located = self.located is not None and (
            self.located.op == "to_copy" or "float16" in self.located.detail
        )
        return self.half or seen or located

    @property
    def lr_over_limit(self) -> float:
        """Largest learning rate of the schedule over the largest stable one."""
        return self.lr_peak / self.lr_limit if self.lr_limit > 0 else NAN

    @property
    def recurrent(self) -> list[str]:
        return [t for t in self.module_types if t in RECURRENT]

    @property
    def attention(self) -> list[str]:
        return [t for t in self.module_types if t in ATTENTION or "Attention" in t]

    @property
    def normalised(self) -> bool:
        return any("Norm" in t for t in self.module_types)

    @property
    def adaptive(self) -> bool:
        """Whether the optimizer divides by a second moment."""
        return self.betas is not None or "Adam" in self.optimizer or "RMSprop" in self.optimizer

    @property
    def num_matrices(self) -> int:
        return sum(len(p.shape) >= 2 for p in self.params)

    @property
    def had_grown(self) -> bool:
        """Whether the loss or the gradient was far up in the step before the incident, or, in the first ten steps,
        the loss in the incident itself."""
        # Comparisons with nan are False: what is not known has not grown.
        loss = self.loss_last > self.loss_first + 4 * abs(self.loss_first)
        at_once = self.healthy_steps < 10 and 100 * abs(self.loss_first) < self.loss_at < math.inf
        return loss or at_once or self.norm_last > 30 * self.norm_before

    @property
    def blowing_up(self) -> bool:
        """Whether the incident itself was finite, and far up."""
        if not math.isfinite(self.norm_at) or self.loss_seen and not math.isfinite(self.loss_at):
            return False
        loss = self.loss_at - self.loss_first > 9 * abs(self.loss_first)
        return loss or self.norm_at > 30 * self.norm_before

    @property
    def was_normal(self) -> bool:
        """Whether the run had a history, and nothing was wrong with it up to the step before."""
        known = self.healthy_steps >= 10 and math.isfinite(self.loss_first)
        return (
            known and not self.had_grown and self.loss_before <= self.loss_first + 0.5 * abs(self.loss_first)
        )


def facts_at(stats: StepStats, history: History, **known: Any) -> Facts:
    """The facts of a step: losses, norms and growth from its record and the history *before* it.

    Args:
        stats: the record of the incident, or the last one of the run.
        history: statistics of its optimizer that do not hold the step yet, or do: a step is recognised.
        known: further fields of :class:`Facts` that the session knows, e.g. ``optimizer``, ``module_types``.
    """
    loss = step_loss(stats)
    held = stats.finite and stats.applied and loss is not None and _newest(history.losses.values) == loss
    name, growth = _largest_growth(stats, history)
    found: dict[str, Any] = {
        "lr": stats.lr,
        "lr_jump": _largest_ratio([*history.rates, stats.lr]),
        "params": tuple(stats.params),
        "half": stats.loss_scale is not None or any(p.dtype == "float16" for p in stats.params),
        "healthy_steps": history.num_healthy,
        "loss_first": history.first_losses[0] if history.first_losses else NAN,
        "loss_best": _or_nan(history.best_loss),
        "loss_before": history.losses.median() if history.losses else NAN,
        "loss_at": _or_nan(loss),
        "loss_seen": loss is not None,
        "loss_last": _newest(history.losses.values, held),
        "norm_before": min(history.norms)
        if 0 < len(history.norms) < 10
        else _or_nan(history.median_grad_norm()),
        "norm_last": 10 ** _newest(history.log_norms.values, held),
        "norm_at": stats.grad_norm,
        "user_clipped": stats.clipped_grad_norm < stats.grad_norm * (1 - 1e-6),
        "largest_growth": name,
        "growth": growth,
    }
    if "module_types" not in known:
        known["module_types"] = tuple(dict.fromkeys(p.module_type for p in stats.params if p.module_type))
    return Facts(**(found | known))


def _newest(values: Sequence[float], but_one: bool = False) -> float:
    return values[-1 - but_one] if len(values) > but_one else NAN


def _largest_ratio(rates: list[float]) -> float:
    return max((b / a for a, b in pairwise(rates) if a > 0), default=1.0)


def _or_nan(x: float | None) -> float:
    return NAN if x is None else x


def _largest_growth(stats: StepStats, history: History) -> tuple[str, float]:
    usual, norms = history.param_log_norms, stats.grad_norms
    if len(usual) != len(norms) or len(norms) != len(stats.params) or not len(norms):
        return "", NAN
    with np.errstate(divide="ignore", invalid="ignore"):
        rise = np.log10(norms.astype(np.float64)) - usual
    rise[~np.isfinite(rise)] = -np.inf
    i = int(rise.argmax())
    return (stats.params[i].name, float(10 ** rise[i])) if math.isfinite(rise[i]) else ("", NAN)
