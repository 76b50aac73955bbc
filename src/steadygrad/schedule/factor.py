"""A factor on the learning rate that no other scheduler sees.

torch's schedulers read group["lr"] and write it: two of them on one optimizer undo each other unless one knows
of the other. A factor here is put on just before ``optimizer.step`` computes and taken off just after, bit for
bit, so that any scheduler goes on as if it were alone. Several factors on one optimizer multiply.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from steadygrad import _check
from steadygrad.schedule.warmup_shapes import linear_warmup, untuned_linear_warmup

FactorOfStep = Callable[[int], float]


class _Around:
    """The one pair of hooks on an optimizer: all its factors, put on and taken off together.

    One pair, because torch runs the post-hooks in the order of the pre-hooks: two pairs that each put back
    what they found would leave the first factor on.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.factors: list[LRFactor] = []
        self._held: list[tuple[dict[str, Any], float | Tensor, float | Tensor]] = []  # group, before, during
        optimizer.register_step_pre_hook(lambda opt, args, kwargs: self._put_on(opt))
        optimizer.register_step_post_hook(lambda opt, args, kwargs: self._taken(opt))

    def product(self, optimizer: Optimizer) -> list[float]:
        """The factor of each group."""
        each = [f._checked_factors(len(optimizer.param_groups)) for f in self.factors]
        return [math.prod(of_group) for of_group in zip(*each, strict=True)] if each else []

    def _put_on(self, optimizer: Optimizer) -> None:
        self.take_off()  # a step that raised has left them on
        scaled: set[int] = set()
        for group, factor in zip(optimizer.param_groups, self.product(optimizer), strict=False):
            lr = group["lr"]
            if isinstance(lr, Tensor):
                if id(lr) not in scaled and factor != 1:
                    # in place: a compiled or captured step has this very tensor
                    self._held.append((group, lr.clone(), lr))
                    lr.mul_(factor)
                scaled.add(id(lr))  # groups may share it
            elif factor != 1:
                group["lr"] = lr * factor
                self._held.append((group, lr, group["lr"]))

    def whole(self, lr: float | Tensor) -> float | Tensor:
        """``lr`` without the factor, should that be on it just now."""
        return next((before for _, before, during in self._held if during is lr), lr)

    def take_off(self) -> None:
        for group, before, during in self._held:
            if group["lr"] is not during:  # somebody has set another rate since: theirs
                continue
            if isinstance(during, Tensor):
                assert isinstance(before, Tensor)
                during.copy_(before)
            else:
                group["lr"] = before
        self._held.clear()

    def _taken(self, optimizer: Optimizer) -> None:
        self.take_off()
        for factor in self.factors:
            factor._advance()


def _around(optimizer: Optimizer) -> _Around | None:
    # kept on the optimizer: a table elsewhere would keep it alive, since the factors hold it
    return optimizer.__dict__.get("_steadygrad_lr_factors")


class LRFactor:
    """Multiply the learning rate by a function of the step, in front of any scheduler.

        lr used at step t = group["lr"] * f(t)        group["lr"] itself is what the scheduler made it

    When to use it: a warm-up, a back-off or another passing change beside a scheduler that must go on as
    it is: cosine, one-cycle, ``ReduceLROnPlateau``. For a schedule that stands alone use ``LambdaLR``.
    `warmup`, `untuned_warmup` and `BackOff` are made of it.

    Limits: group["lr"] and the scheduler's ``get_last_lr()`` show the rate without the factor;
    `effective_lr` shows what a step uses. It counts the steps that the optimizer really takes: one that a
    GradScaler or a guard skips is none (with ``fused=True`` a GradScaler's skip cannot be seen). A step
    replayed from a CUDA graph runs no hooks, so none of this. Groups that share one lr tensor take the
    factor of the first of them. If a step raises, the factor stays on group["lr"] until the next step or
    `remove`.

    Values in use: see the shapes: `linear_warmup` and its kin.

    Cost: a few operations on single numbers a step; for an lr that is a tensor one copy and one product on
    its device. Nothing once the factor is exactly 1.

    Args:
        optimizer: any torch optimizer; the factor joins it at once, by its step hooks.
        factor: step (from 0) -> factor, or one such function for each group.

    A factor that is negative, nan or inf raises ValueError at the step, before anything is changed. A
    parameter or gradient is never touched.

    Example:
        >>> import torch
        >>> param = torch.nn.Parameter(torch.zeros(1))
        >>> optimizer = torch.optim.SGD([param], lr=1.0)
        >>> ramp = LRFactor(optimizer, lambda step: 0.5 if step == 0 else 1.0)
        >>> for _ in range(2):
        ...     param.grad = torch.ones(1)
        ...     optimizer.step()
        >>> param.item(), optimizer.param_groups[0]["lr"]  # -0.5 - 1.0
        (-1.5, 1.0)

    Source: a factor on the rate beside its schedule: Ma & Yarats (2021),
    https://arxiv.org/abs/1910.04209
    """

    def __init__(self, optimizer: Optimizer, factor: FactorOfStep | Sequence[FactorOfStep]) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
        many = isinstance(factor, Sequence)
        given = list(factor) if isinstance(factor, Sequence) else [factor]
        if many and len(given) != len(optimizer.param_groups):
            raise ValueError(
                f"one factor for each of the {len(optimizer.param_groups)} groups is needed, got {len(given)}"
            )
        for f in given:
            if not callable(f):
                raise TypeError(f"a factor is a function of the step, got {type(f).__name__}: {f!r}")
        self.optimizer = optimizer
        self.num_steps = 0
        self._factor = given
        self._join()

    def _join(self) -> None:
        around = _around(self.optimizer)
        if around is None:
            around = self.optimizer.__dict__["_steadygrad_lr_factors"] = _Around(self.optimizer)
        around.factors.append(self)

    def factors(self) -> list[float]:
        """The factor of each group at the next step."""
        if len(self._factor) == 1:
            return [self._factor[0](self.num_steps)] * len(self.optimizer.param_groups)
        return [f(self.num_steps) for f in self._factor]

    def _checked_factors(self, num_groups: int) -> list[float]:
        factors = self.factors()
        if len(factors) != num_groups:
            raise ValueError(
                f"{type(self).__name__} has factors for {len(factors)} groups, the optimizer has {num_groups}: "
                "give one function for all, or build it after add_param_group"
            )
        for f in factors:
            if not 0 <= f < math.inf:
                raise ValueError(
                    f"the factor at step {self.num_steps} must be at least 0 and finite, got {f}"
                )
        return factors

    def _advance(self) -> None:
        self.num_steps += 1

    def remove(self) -> None:
        """Leave the optimizer: its rate is whole again. Doing it twice is no error."""
        around = _around(self.optimizer)
        if around is not None and self in around.factors:
            around.take_off()
            around.factors.remove(self)

    def state_dict(self) -> dict[str, Any]:
        """The number of steps taken. The function of the step is not in it: build it as before."""
        return {"num_steps": self.num_steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave; nothing is changed if it does not fit."""
        _check_names(type(self).__name__, state, self.state_dict())
        self.num_steps = _check.count("num_steps", state["num_steps"], 0)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(num_steps={self.num_steps}, factors={self.factors()})"


def _check_names(owner: str, state: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    if set(state) != set(wanted):
        raise ValueError(f"the state of {owner} has {sorted(wanted)}, got {sorted(state)}")


def effective_lr(optimizer: Optimizer) -> list[float | Tensor]:
    """The learning rate of each group with all factors on, as the next step will use it; for logs.

    A rate that is a tensor stays one, on its device. Without any factor it is group["lr"].
    """
    around = _around(optimizer)
    rates = [group["lr"] for group in optimizer.param_groups]
    if around is None or not around.factors:
        return rates
    return [around.whole(lr) * f for lr, f in zip(rates, around.product(optimizer), strict=True)]


def lr_factors(optimizer: Optimizer) -> tuple[LRFactor, ...]:
    """The factors on an optimizer, in the order in which they joined: to save or roll back their states with it."""
    around = _around(optimizer)
    return () if around is None else tuple(around.factors)


def warmup(
    optimizer: Optimizer, warmup_steps: int, shape: Callable[[int, int], float] = linear_warmup
) -> LRFactor:
    """Warm the learning rate up in front of whatever scheduler there is, which goes on unchanged.

        lr used at step t = group["lr"] * shape(t, N)

    When to use it: the loss explodes or spikes in the first steps, and the script has its own scheduler or
    none. One line after building the optimizer; the order of the two does not matter.

    Limits: the scheduler runs on during the warm-up: a cosine has fallen a little when the factor reaches 1.
    To start it only then, chain in torch: ``SequentialLR(optimizer, [LambdaLR(...), cosine], [N])``.
    More under `LRFactor`.

    Values in use: N = 2000 at beta2 0.999, which is what `untuned_warmup` takes; a few hundred for
    fine-tuning; 1 to 5 % of a short run.

    Cost: a few operations on single numbers a step; nothing after the warm-up.

    Args:
        optimizer: any torch optimizer.
        warmup_steps: N, at least 0; the N-th step is the first at full rate.
        shape: `linear_warmup`, `cosine_warmup`, `exponential_warmup`, `constant_warmup`, `sqrt_warmup` or
            your own: (step, warmup_steps) -> factor.

    Returns the `LRFactor`; save its ``state_dict()`` beside those of optimizer and scheduler. nan and bad
    values: as `LRFactor`.

    Example:
        >>> import torch
        >>> param = torch.nn.Parameter(torch.zeros(1))
        >>> optimizer = torch.optim.AdamW([param], lr=1e-3)
        >>> scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=100)
        >>> ramp = warmup(optimizer, warmup_steps=10)
        >>> effective_lr(optimizer), optimizer.param_groups[0]["lr"]
        ([0.0001], 0.001)

    Source: Goyal et al. (2017), section 2.2, https://arxiv.org/abs/1706.02677; Ma & Yarats (2021),
    https://arxiv.org/abs/1910.04209
    """
    _check.count("warmup_steps", warmup_steps, 0)
    return LRFactor(optimizer, partial(_at, shape, warmup_steps))


def _at(shape: Callable[[int, int], float], warmup_steps: int, step: int) -> float:
    return shape(step, warmup_steps)


def untuned_warmup(
    optimizer: Optimizer, shape: Callable[[int, float], float] = untuned_linear_warmup
) -> LRFactor:
    """Warm Adam up with no length to choose: each group over 2 / (1 - beta2) steps of its own.

        lr used at step t = group["lr"] * min(1, (1 - beta2) / 2 * t)

    When to use it: Adam, AdamW, NAdam and their kin without a warm-up, as a first choice.

    Limits: reads group["betas"][1]; an optimizer without it (SGD, RMSprop) needs `warmup`. More under
    `LRFactor`.

    Values in use: 2000 steps at beta2 0.999, 40 at 0.95.

    Cost: a few operations on single numbers for each group a step; nothing after the warm-up.

    Args:
        optimizer: one whose groups have ``betas``.
        shape: `untuned_linear_warmup`, `untuned_exponential_warmup` or your own: (step, beta2) -> factor.

    Returns the `LRFactor`. nan and bad values: as `LRFactor`; without ``betas`` a ValueError.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1.0, betas=(0.9, 0.95))
        >>> ramp = untuned_warmup(optimizer)
        >>> round(effective_lr(optimizer)[0], 6)
        0.025

    Source: Ma & Yarats (2021), the rule-of-thumb schedules, https://arxiv.org/abs/1910.04209
    """
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
    shapes: list[FactorOfStep] = []
    for i, group in enumerate(optimizer.param_groups):
        if "betas" not in group or len(group["betas"]) < 2:
            raise ValueError(
                f"group {i} of {type(optimizer).__name__} has no betas to take the length from: use warmup()"
            )
        shapes.append(partial(_at_beta2, shape, float(group["betas"][1])))  # host sync if betas are tensors
    return LRFactor(optimizer, shapes)


def _at_beta2(shape: Callable[[int, float], float], beta2: float, step: int) -> float:
    return shape(step, beta2)
