"""Warm-up: the factor of the learning rate at a step, as pure functions.

``step`` counts from 0 as in ``LambdaLR``; t = step + 1 is the papers' count, so that the first step is never
wasted on a factor of 0 and step N - 1, the N-th, is the first at full rate. `warmup` puts a shape in front of
any scheduler; ``LambdaLR(optimizer, partial(linear_warmup, warmup_steps=500))`` uses it alone.
"""

from __future__ import annotations

import math

from steadygrad import _check
from steadygrad.schedule._step import checked_step


def _progress(step: int, warmup_steps: int) -> float:
    """t / N, at most 1."""
    _check.count("warmup_steps", warmup_steps, 0)
    t = checked_step(step) + 1
    return 1.0 if t >= warmup_steps else t / warmup_steps


def linear_warmup(step: int, warmup_steps: int, start_factor: float = 0.0) -> float:
    """Raise the learning rate by the same amount at every step until it is whole.

        w(t) = s + (1 - s) min(1, t / N)        t = step + 1

    When to use it: the default, before any schedule, for Adam above all. torch's ``LinearLR`` has the same
    line from ``start_factor`` at step 0, but changes group["lr"], which other schedulers read.

    Values in use: N = 2000 (GPT-style pretraining, OPT-175B), 4000 (the Transformer), 5 epochs from 1/k
    of the rate for a batch k times the usual (Goyal et al.); s = 0.

    Cost: a few operations on single numbers.

    Args:
        step: steps taken before this one, at least 0.
        warmup_steps: N, at least 0; 0 and 1 mean no warm-up.
        start_factor: s, 0 to 1.

    Returns the factor, above 0 and at most 1, exactly 1.0 from step N - 1 on. A step that is no whole
    number, a negative one and a nan anywhere raise.

    Example:
        >>> [linear_warmup(step, warmup_steps=4) for step in range(5)]
        [0.25, 0.5, 0.75, 1.0, 1.0]

    Source: Goyal et al. (2017), section 2.2 "gradual warmup", https://arxiv.org/abs/1706.02677
    """
    _check.fraction("start_factor", start_factor)
    x = _progress(step, warmup_steps)
    return 1.0 if x == 1 else start_factor + (1 - start_factor) * x


def cosine_warmup(step: int, warmup_steps: int, start_factor: float = 0.0) -> float:
    """Raise the learning rate along half a cosine: slow at both ends.

        w(t) = s + (1 - s) (1 - cos(pi t / N)) / 2        t <= N, afterwards 1

    When to use it: a linear warm-up makes the first steps too large, or a kink at its end shows in the loss.

    Values in use: ``OneCycleLR`` rises this way over 30 % of the run from s = 1/25.

    Cost: a few operations on single numbers.

    Args:
        step: steps taken before this one, at least 0.
        warmup_steps: N, at least 0; 0 and 1 mean no warm-up.
        start_factor: s, 0 to 1.

    Returns the factor, above 0 and at most 1, exactly 1.0 from step N - 1 on. A step that is no whole
    number, a negative one and a nan anywhere raise.

    Example:
        >>> [round(cosine_warmup(step, warmup_steps=4), 3) for step in range(5)]
        [0.146, 0.5, 0.854, 1.0, 1.0]

    Source: the rise of torch's ``OneCycleLR``,
    https://docs.pytorch.org/docs/stable/generated/torch.optim.lr_scheduler.OneCycleLR.html
    """
    _check.fraction("start_factor", start_factor)
    x = _progress(step, warmup_steps)
    return 1.0 if x == 1 else start_factor + (1 - start_factor) * (1 - math.cos(math.pi * x)) / 2


def exponential_warmup(step: int, warmup_steps: int, start_factor: float = 0.01) -> float:
    """Raise the learning rate by the same ratio at every step until it is whole.

        w(t) = s^(1 - t / N)        t <= N, afterwards 1

    When to use it: the largest rate that is still stable is not known within a factor of ten: the rate spends
    as many steps in each decade. For the saturating exponential see `untuned_exponential_warmup`.

    Values in use: s = 0.01; fastai's learning-rate finder rises like this from 1e-7 to 10.

    Cost: a few operations on single numbers.

    Args:
        step: steps taken before this one, at least 0.
        warmup_steps: N, at least 0; 0 and 1 mean no warm-up.
        start_factor: s, above 0, at most 1.

    Returns the factor, above s and at most 1, exactly 1.0 from step N - 1 on. A step that is no whole
    number, a negative one and a nan anywhere raise.

    Example:
        >>> [round(exponential_warmup(step, warmup_steps=4), 3) for step in range(5)]
        [0.032, 0.1, 0.316, 1.0, 1.0]

    Source: Gugger (2018), the learning-rate finder,
    https://sgugger.github.io/how-do-you-find-a-good-learning-rate.html
    """
    _check.fraction("start_factor", start_factor, zero=False)
    x = _progress(step, warmup_steps)
    return 1.0 if x == 1 else start_factor ** (1 - x)


def constant_warmup(step: int, warmup_steps: int, start_factor: float = 0.1) -> float:
    """Hold the learning rate low for a while, then at once take the whole of it.

        w(t) = s        t < N, afterwards 1

    When to use it: fine-tuning, where a few steps shall settle new layers. The jump at its end often shows
    as a spike of the loss (Goyal et al. moved on to the gradual form for that reason). torch's ``ConstantLR``
    is the same line; this one can stand in front of another scheduler and for a re-warm-up.

    Values in use: s = 0.1 for the first 400 steps of ResNet-110 on CIFAR-10 (He et al.).

    Cost: a comparison.

    Args:
        step: steps taken before this one, at least 0.
        warmup_steps: N, at least 0; the N-th step is the first at full rate.
        start_factor: s, above 0, at most 1.

    Returns s or exactly 1.0. A step that is no whole number, a negative one and a nan anywhere raise.

    Example:
        >>> [constant_warmup(step, warmup_steps=3) for step in range(4)]
        [0.1, 0.1, 1.0, 1.0]

    Source: He et al. (2016), section 4.2, https://arxiv.org/abs/1512.03385; Goyal et al. (2017), section 2.2
    """
    _check.fraction("start_factor", start_factor, zero=False)
    return 1.0 if _progress(step, warmup_steps) == 1 else start_factor


def sqrt_warmup(step: int, warmup_steps: int, start_factor: float = 0.0) -> float:
    """Raise the learning rate with the root of the step: fast at first, then ever slower.

        w(t) = s + (1 - s) sqrt(min(1, t / N))        t = step + 1

    When to use it: the first steps are harmless and the last part of a rise is where the loss spikes; or as
    re-warm-up, where the run is past its fragile beginning.

    Values in use: s = 0. It is the rise that belongs to a decay by the root of the step (`inverse_sqrt`) and
    to the root pacing of a curriculum.

    Cost: a few operations on single numbers.

    Args:
        step: steps taken before this one, at least 0.
        warmup_steps: N, at least 0; 0 and 1 mean no warm-up.
        start_factor: s, 0 to 1.

    Returns the factor, above 0 and at most 1, exactly 1.0 from step N - 1 on. A step that is no whole
    number, a negative one and a nan anywhere raise.

    Example:
        >>> [round(sqrt_warmup(step, warmup_steps=4), 3) for step in range(5)]
        [0.5, 0.707, 0.866, 1.0, 1.0]

    Source: the competence of Platanios et al. (2019) at p = 2 and c_0 = 0, used as a rate,
    https://arxiv.org/abs/1903.09848
    """
    _check.fraction("start_factor", start_factor)
    x = _progress(step, warmup_steps)
    return 1.0 if x == 1 else start_factor + (1 - start_factor) * math.sqrt(x)


def untuned_linear_warmup(step: int, beta2: float) -> float:
    """Warm Adam up over 2 / (1 - beta2) steps: no length to choose.

        w(t) = min(1, (1 - beta2) / 2 * t)        t = step + 1

    When to use it: Adam, AdamW and their kin, when nothing is known about the right length. `untuned_warmup`
    takes beta2 from each group of the optimizer.

    Values in use: beta2 0.999 gives 2000 steps, 0.98 gives 100, 0.95 gives 40.

    Cost: a few operations on single numbers.

    Args:
        step: steps taken before this one, at least 0.
        beta2: weight of the past in the second moment, 0 <= beta2 < 1.

    Returns the factor, above 0 and at most 1, exactly 1.0 at its end. A step that is no whole number, a
    negative one and a nan anywhere raise.

    Example:
        >>> [round(untuned_linear_warmup(step, beta2=0.5), 3) for step in range(5)]
        [0.25, 0.5, 0.75, 1.0, 1.0]

    Source: Ma & Yarats (2021), the rule-of-thumb schedules, https://arxiv.org/abs/1910.04209
    """
    _check.fraction("beta2", beta2, one=False)
    return min(1.0, (1 - beta2) / 2 * (checked_step(step) + 1))


def untuned_exponential_warmup(step: int, beta2: float) -> float:
    """Warm Adam up along a saturating exponential of time constant 1 / (1 - beta2): no length to choose.

        w(t) = 1 - exp(-(1 - beta2) t)        t = step + 1

    When to use it: as `untuned_linear_warmup`; it starts twice as steep and has no kink. Its authors find the
    two alike and recommend the linear one.

    Values in use: beta2 0.999: half of the rate after 693 steps, 95 % after 3000.

    Cost: a few operations on single numbers.

    Args:
        step: steps taken before this one, at least 0.
        beta2: weight of the past in the second moment, 0 <= beta2 < 1.

    Returns the factor, above 0 and at most 1; exactly 1.0 in double precision after about 37 / (1 - beta2)
    steps. A step that is no whole number, a negative one and a nan anywhere raise.

    Example:
        >>> [round(untuned_exponential_warmup(step, beta2=0.5), 3) for step in range(4)]
        [0.393, 0.632, 0.777, 0.865]

    Source: Ma & Yarats (2021), the rule-of-thumb schedules, https://arxiv.org/abs/1910.04209
    """
    _check.fraction("beta2", beta2, one=False)
    return -math.expm1(-(1 - beta2) * (checked_step(step) + 1))
