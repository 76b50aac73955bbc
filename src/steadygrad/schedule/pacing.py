"""Pacing: how much of a curriculum is open at a step, from a small share to all of it. Pure functions.

They serve the samplers of `curriculum`, the length warm-up and any other ramp between 0 and 1.
"""

from __future__ import annotations

from steadygrad import _check
from steadygrad.schedule._step import checked_step


def _done(step: int, total_steps: int, start: float) -> float:
    """Share of the way that lies behind."""
    _check.fraction("start", start)
    _check.count("total_steps", total_steps, 1)
    return min(1.0, checked_step(step) / total_steps)


def linear_pacing(step: int, total_steps: int, start: float = 0.1) -> float:
    """Open the curriculum by the same amount at every step.

        c(t) = min(1, c_0 + (1 - c_0) t / T)

    When to use it: the plain choice, for difficulties and for lengths. With difficulties every new sample is
    seen less and less often before the next arrives; `root_pacing` and `competence_pacing` slow down for that.

    Values in use: c_0 = 0.01 (Platanios et al.); for lengths 8 tokens of 1024 (Li et al.); T about the steps
    at which the plain run has 90 % of its final quality.

    Cost: a few operations on single numbers.

    Args:
        step: t, steps taken before this one, at least 0.
        total_steps: T, at least 1.
        start: c_0, 0 to 1.

    Returns the open share, c_0 to 1, exactly 1.0 from step T on. A step that is no whole number, a negative
    one and a nan raise.

    Example:
        >>> [linear_pacing(step, total_steps=4, start=0.25) for step in (0, 2, 4, 5)]
        [0.25, 0.625, 1.0, 1.0]

    Source: Platanios et al. (2019), the linear competence function, https://arxiv.org/abs/1903.09848
    """
    x = _done(step, total_steps, start)
    return 1.0 if x == 1 else start + (1 - start) * x


def root_pacing(step: int, total_steps: int, start: float = 0.1, degree: float = 2.0) -> float:
    """Open the curriculum fast at first, then ever slower: the root of the share of steps.

        c(t) = min(1, c_0 + (1 - c_0) (t / T)^(1/p))

    When to use it: as `competence_pacing`, where the share at the start is not small: the root is taken of
    the time alone, so that the first steps rise steeply from any c_0.

    Values in use: p = 2 (DeepSpeed's "fixed_root" with root_degree 2).

    Cost: a few operations on single numbers.

    Args:
        step: t, steps taken before this one, at least 0.
        total_steps: T, at least 1.
        start: c_0, 0 to 1.
        degree: p, above 0; 1 is `linear_pacing`.

    Returns the open share, c_0 to 1, exactly 1.0 from step T on. A step that is no whole number, a negative
    one and a nan raise.

    Example:
        >>> [round(root_pacing(step, total_steps=4, start=0.2), 3) for step in (0, 1, 2, 4)]
        [0.2, 0.6, 0.766, 1.0]

    Source: DeepSpeed's curriculum scheduler, "fixed_root",
    https://www.deepspeed.ai/tutorials/curriculum-learning/
    """
    _check.positive("degree", degree, finite=True)
    x = _done(step, total_steps, start)
    return 1.0 if x == 1 else start + (1 - start) * x ** (1 / degree)


def competence_pacing(step: int, total_steps: int, start: float = 0.01, degree: float = 2.0) -> float:
    """Open the curriculum so that each new sample is seen about as often as the ones before it.

        c(t) = min(1, (t (1 - c_0^p) / T + c_0^p)^(1/p))

    When to use it: curricula by difficulty; its authors' best form, at p = 2. The rate at which new samples
    come is inversely proportional to the share that is open already.

    Values in use: c_0 = 0.01, p = 2 (square root); p = 3, 5, 10 are close to it (the paper).

    Cost: a few operations on single numbers.

    Args:
        step: t, steps taken before this one, at least 0.
        total_steps: T, at least 1: the step at which the model is competent.
        start: c_0, the competence at the start, 0 to 1.
        degree: p, above 0; 1 is `linear_pacing`.

    Returns the open share, c_0 to 1, exactly 1.0 from step T on. A step that is no whole number, a negative
    one and a nan raise.

    Example:
        >>> [round(competence_pacing(step, total_steps=4, start=0.2), 3) for step in (0, 1, 2, 4)]
        [0.2, 0.529, 0.721, 1.0]

    Source: Platanios et al. (2019), the root competence functions, https://arxiv.org/abs/1903.09848
    """
    _check.positive("degree", degree, finite=True)
    x = _done(step, total_steps, start)
    at_start = start**degree
    return 1.0 if x == 1 else max(start, min(1.0, (x * (1 - at_start) + at_start) ** (1 / degree)))


def exponential_pacing(step: int, step_length: int, start: float = 0.04, increase: float = 1.9) -> float:
    """Open the curriculum in stairs, each as many times as large as the one before.

        c(t) = min(1, c_0 a^floor(t / L))

    When to use it: difficulties that fall into levels; a model that needs many steps on the first of them.

    Values in use: c_0 = 0.04, a = 1.9, L = 100 steps (the authors' code, five classes of CIFAR-100); L must
    be searched for.

    Cost: a few operations on single numbers.

    Args:
        step: t, steps taken before this one, at least 0.
        step_length: L, steps on each stair, at least 1.
        start: c_0, above 0, at most 1.
        increase: a, above 1, finite.

    Returns the open share, c_0 to 1, exactly 1.0 at the end. A step that is no whole number, a negative one
    and a nan raise.

    Example:
        >>> [exponential_pacing(step, step_length=2, start=0.25, increase=2.0) for step in range(6)]
        [0.25, 0.25, 0.5, 0.5, 1.0, 1.0]

    Source: Hacohen & Weinshall (2019), section 2, "fixed exponential pacing", https://arxiv.org/abs/1904.03626
    """
    _check.fraction("start", start, zero=False)
    _check.positive("increase", increase, finite=True)
    if increase <= 1:
        raise ValueError(f"increase must be above 1, got {increase}: the curriculum would never open")
    stair = checked_step(step) // _check.count("step_length", step_length, 1)
    try:
        return min(1.0, start * float(increase) ** stair)
    except OverflowError:
        return 1.0


def single_step_pacing(step: int, step_length: int, start: float = 0.1) -> float:
    """Keep to the easy samples for a while, then open everything at once.

        c(t) = c_0        t < L, afterwards 1

    When to use it: one number to choose; its authors find it about as good as the finer stairs.

    Values in use: c_0 = 0.1, L in the hundreds of steps; L must be searched for.

    Cost: a comparison.

    Args:
        step: t, steps taken before this one, at least 0.
        step_length: L, at least 1.
        start: c_0, 0 to 1.

    Returns c_0 or 1.0. A step that is no whole number, a negative one and a nan raise.

    Example:
        >>> [single_step_pacing(step, step_length=2, start=0.25) for step in range(4)]
        [0.25, 0.25, 1.0, 1.0]

    Source: Hacohen & Weinshall (2019), section 2, "single step pacing", https://arxiv.org/abs/1904.03626
    """
    _check.fraction("start", start)
    return start if checked_step(step) < _check.count("step_length", step_length, 1) else 1.0
