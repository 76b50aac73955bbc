"""Schedules for a whole run, warm-up included: the factor at a step, for ``torch.optim.lr_scheduler.LambdaLR``.

    scheduler = LambdaLR(optimizer, partial(warmup_stable_decay, warmup_steps=500, total_steps=20_000))

torch chains its own (``SequentialLR`` of ``LinearLR`` and ``CosineAnnealingLR``); these are single formulas
instead, so that the factor of any step is known without running there.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from steadygrad import _check
from steadygrad.schedule._step import checked_step
from steadygrad.schedule.warmup_shapes import linear_warmup


def inverse_sqrt(step: int, warmup_steps: int) -> float:
    """Rise linearly, then fall with the root of the step: the Transformer's schedule, its peak at 1.

        f(t) = min(t / N, sqrt(N / t))        t = step + 1

    The paper's rate is d_model^-0.5 min(t^-0.5, t N^-1.5): this factor with lr = (d_model N)^-0.5.

    When to use it: the length of the run is open. Where it is known, a cosine or a cooldown ends lower.

    Values in use: N = 4000 at d_model 512, which is lr = 7e-4 (the Transformer).

    Cost: a few operations on single numbers.

    Args:
        step: steps taken before this one, at least 0.
        warmup_steps: N, at least 1.

    Returns the factor, above 0 and at most 1. A step that is no whole number and a negative one raise.

    Example:
        >>> [round(inverse_sqrt(step, warmup_steps=2), 3) for step in range(4)]
        [0.5, 1.0, 0.816, 0.707]

    Source: Vaswani et al. (2017), equation 3, https://arxiv.org/abs/1706.03762
    """
    _check.count("warmup_steps", warmup_steps, 1)
    t = checked_step(step) + 1
    return min(t / warmup_steps, math.sqrt(warmup_steps / t))


def _rest(step: int, start: int, total_steps: int, min_factor: float) -> float:
    """How much of the way from ``start`` to the last step is done, 0 to 1."""
    _check.fraction("min_factor", min_factor)
    _check.count("total_steps", total_steps, start + 1, ": the warm-up must leave at least one step")
    return min(1.0, max(0.0, (checked_step(step) + 1 - start) / (total_steps - start)))


def warmup_cosine(step: int, warmup_steps: int, total_steps: int, min_factor: float = 0.0) -> float:
    """Rise linearly, then fall along half a cosine to the end of the run.

        f(t) = t / N                                          t <= N
        f(t) = m + (1 - m) (1 + cos(pi (t - N) / (T - N))) / 2        N < t <= T, afterwards m

    When to use it: language models and vision transformers of known length. It must be stretched to that
    length from the start; a run that is cut short ends at a high rate (`warmup_stable_decay` can be cut).

    Values in use: m = 0.1 (GPT-3, Chinchilla), N about 2000; m = 0 for images.

    Cost: a few operations on single numbers.

    Args:
        step: steps taken before this one, at least 0.
        warmup_steps: N, at least 0.
        total_steps: T, the steps of the run, above N.
        min_factor: m, the factor at the end, 0 to 1.

    Returns the factor, between 0 and 1. A step that is no whole number, a negative one and a nan raise.

    Example:
        >>> [round(warmup_cosine(step, warmup_steps=2, total_steps=6), 3) for step in range(7)]
        [0.5, 1.0, 0.854, 0.5, 0.146, 0.0, 0.0]

    Source: Loshchilov & Hutter (2017), equation 5, without restarts, https://arxiv.org/abs/1608.03983
    """
    x = _rest(step, _check.count("warmup_steps", warmup_steps, 0), total_steps, min_factor)
    if x == 0:
        return linear_warmup(step, warmup_steps)
    return min_factor + (1 - min_factor) * (1 + math.cos(math.pi * x)) / 2


def warmup_linear(step: int, warmup_steps: int, total_steps: int, min_factor: float = 0.0) -> float:
    """Rise linearly, then fall linearly to the end of the run.

        f(t) = t / N                            t <= N
        f(t) = 1 - (1 - m) (t - N) / (T - N)        N < t <= T, afterwards m

    When to use it: fine-tuning, and pretraining of known length: a straight fall to 0 is hard to beat.

    Values in use: m = 0, N = 1 % of the run (BERT) or 10 % for fine-tuning; m = 0.1, N = 2000 (OPT).

    Cost: a few operations on single numbers.

    Args:
        step: steps taken before this one, at least 0.
        warmup_steps: N, at least 0.
        total_steps: T, the steps of the run, above N.
        min_factor: m, the factor at the end, 0 to 1.

    Returns the factor, between 0 and 1. A step that is no whole number, a negative one and a nan raise.

    Example:
        >>> [warmup_linear(step, warmup_steps=2, total_steps=6) for step in range(7)]
        [0.5, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0]

    Source: Devlin et al. (2019), appendix A.2, https://arxiv.org/abs/1810.04805
    """
    x = _rest(step, _check.count("warmup_steps", warmup_steps, 0), total_steps, min_factor)
    return linear_warmup(step, warmup_steps) if x == 0 else 1 - (1 - min_factor) * x


def linear_cooldown(x: float) -> float:
    """What is left after the share x of a cooldown: 1 - x."""
    return 1 - x


def sqrt_cooldown(x: float) -> float:
    """What is left after the share x of a cooldown: 1 - sqrt(x), steep at first."""
    return 1 - math.sqrt(x)


def cosine_cooldown(x: float) -> float:
    """What is left after the share x of a cooldown: half a cosine."""
    return (1 + math.cos(math.pi * x)) / 2


def warmup_stable_decay(
    step: int,
    warmup_steps: int,
    total_steps: int,
    decay_steps: int | None = None,
    min_factor: float = 0.0,
    cooldown: Callable[[float], float] = sqrt_cooldown,
) -> float:
    """Rise, stay, and fall only at the end (WSD, trapezoid): a run can be prolonged from its plateau.

        f(t) = t / N                                t <= N
        f(t) = 1                                    N < t <= T - D
        f(t) = m + (1 - m) c((t - T + D) / D)       T - D < t <= T, afterwards m

    When to use it: the length of the run is not settled, or several lengths are wanted from one run: keep
    the checkpoints of the plateau and cool down from any of them with another ``total_steps``.

    Values in use: D = 10 % (MiniCPM) to 20 % of T (Hägele et al.), c(x) = 1 - sqrt(x) (Hägele et al.) or
    1 - x, m = 0; N as for any warm-up.

    Cost: a few operations on single numbers.

    Args:
        step: steps taken before this one, at least 0.
        warmup_steps: N, at least 0.
        total_steps: T, at least N + D.
        decay_steps: D, at least 1; None is a fifth of T, rounded up.
        min_factor: m, the factor at the end, 0 to 1.
        cooldown: c, from 1 at 0 to 0 at 1: `sqrt_cooldown`, `linear_cooldown`, `cosine_cooldown`, your own.

    Returns the factor, between 0 and 1. A step that is no whole number, a negative one and a nan raise.

    Example:
        >>> f = [warmup_stable_decay(step, 2, 8, 4, cooldown=linear_cooldown) for step in range(9)]
        >>> f
        [0.5, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0]

    Source: Hu et al. (2024), MiniCPM, section 4, https://arxiv.org/abs/2404.06395; Hägele et al. (2024),
    section 3, for 1 - sqrt, https://arxiv.org/abs/2405.18392
    """
    _check.count("warmup_steps", warmup_steps, 0)
    decay = math.ceil(total_steps / 5) if decay_steps is None else _check.count("decay_steps", decay_steps, 1)
    if warmup_steps + decay > total_steps:
        raise ValueError(
            f"total_steps must be at least warmup_steps + decay_steps = {warmup_steps + decay}, got {total_steps}"
        )
    x = _rest(step, total_steps - decay, total_steps, min_factor)
    if x == 0:
        return linear_warmup(step, warmup_steps)
    return min_factor + (1 - min_factor) * cooldown(x)
