"""SPAM: clip single entries that spike against Adam's second moment, and forget the momentum now and then."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from steadygrad._check import count, positive
from steadygrad.clip._tensors import checked, joint_norm, match, norms_of, refuse_sparse
from steadygrad.clip.stats import ClipStats, clip_stats, nothing_to_clip


@torch.no_grad()
def clip_by_second_moment_(
    grads: Sequence[Tensor | None], second_moments: Sequence[Tensor | None], threshold: float = 5000.0
) -> ClipStats:
    """Shrink, in place, the entries of the gradients that are far above what Adam's second moment V has seen.

        g <- sign(g) sqrt(theta V)        where g^2 > theta V and V > 0

    When to use it: as part of `SPAM`, or with an optimizer of your own that has a second moment.

    Values in use: theta 5000 (the paper), that is about 70 root mean squares of the entry.

    Cost: the dearest rule here: about ten passes over tensors of the size of the gradients, with temporaries of
    the size of the largest. Nine times the global norm on one CPU core.

    Args:
        grads: one gradient for each parameter, None where there is none. Changed in place.
        second_moments: V of each parameter, as the optimizer has it *before* this step; None where there is
            none yet.
        threshold: theta, > 0.

    Returns:
        ``norm`` is the largest absolute value before clipping, ``scale`` the smallest factor of any entry,
        ``limit`` is sqrt(theta), ``clipped`` the share of tensors with a clipped entry.

    Empty, zero, nan: an empty list and a zero gradient are left alone. With a nan or inf in any gradient
    nothing is changed and ``finite`` is False. An entry whose V is 0 or not finite is left alone; the
    reference sets it to 0 for V = 0, and an embedding row that was not seen early in a period then learns
    nothing until the next reset.

    Raises:
        TypeError: a sparse gradient.

    Example:
        >>> grad, v = torch.tensor([100.0, 1.0, 7.0]), torch.tensor([0.01, 0.01, 0.0])
        >>> stats = clip_by_second_moment_([grad], [v], threshold=2500.0)
        >>> [round(x, 4) for x in grad.tolist()]
        [5.0, 1.0, 7.0]

    Source: Huang et al. (2025), section 3, https://arxiv.org/abs/2501.06842
    """
    threshold = positive("threshold", threshold, finite=True)
    match(grads, second_moments, "second_moments")
    refuse_sparse(grads, "clip_by_second_moment_", "needs a second moment for each entry")
    values = checked(grads)
    if not values:
        return nothing_to_clip(math.sqrt(threshold))
    return _clip_entries(values, second_moments, threshold, joint_norm(norms_of(values, math.inf), math.inf))


def _clip_entries(
    values: Mapping[int, Tensor], second_moments: Sequence[Tensor | None], threshold: float, norm: Tensor
) -> ClipStats:
    finite = norm.isfinite()
    smallest = []
    for i, g in values.items():
        v = second_moments[i]
        if v is None:
            smallest.append(torch.ones_like(norm))
            continue
        bound = (v.to(torch.promote_types(v.dtype, torch.float32)) * threshold).sqrt_()
        bound = torch.where((bound > 0) & finite.to(v.device), bound, math.inf)  # nan fails too
        most = (g.abs() / bound).amax()
        smallest.append(torch.where(most > 1, 1 / most, 1.0).to(norm))
        torch.maximum(torch.minimum(g, bound), bound.neg_(), out=g)
    scales = torch.where(finite, torch.stack(smallest), 1.0)
    return clip_stats(norm, scales, math.sqrt(threshold))


def reset_momentum_(optimizer: Optimizer) -> None:
    """Make an optimizer forget its moments and its step counts, as at its first step.

    The state is built anew by the next step, and with it the bias correction starts anew.

    Example:
        >>> w = torch.nn.Parameter(torch.ones(1))
        >>> opt = torch.optim.Adam([w])
        >>> w.grad = torch.ones(1)
        >>> opt.step(); reset_momentum_(opt); len(opt.state[w])
        0
    """
    for state in optimizer.state.values():
        if isinstance(state, dict):
            state.clear()


def warmup_factor(steps_since_reset: int, warmup_steps: int = 150) -> float:
    """The learning rate's factor after a momentum reset: a cosine from 0.01, and 1 from ``warmup_steps`` on.

        s(t) = 1 - 0.99 * (1 + cos(pi t / (N + 1))) / 2

    Example:
        >>> round(warmup_factor(0), 3), round(warmup_factor(75, 149), 3), warmup_factor(150)
        (0.01, 0.505, 1.0)

    Source: the authors' code of Huang et al. (2025), https://arxiv.org/abs/2501.06842
    """
    if steps_since_reset >= warmup_steps:
        return 1.0
    return 1.0 - 0.99 * (1.0 + math.cos(math.pi * steps_since_reset / (warmup_steps + 1))) / 2


@dataclass(eq=False)
class SPAM:
    """Clip entries that spike against Adam's second moment, and reset the momentum now and then.

        g <- sign(g) sqrt(theta V)        where g^2 > theta V
        m, V <- 0                         every Delta T steps; the learning rate then warms up for N steps

    When to use it: Adam or AdamW on a language model whose loss spikes: a spike stays in the second moment
    for about 1 / (1 - beta2) steps, and a reset ends that.

    Limits: every reset throws away what Adam knows. V is taken as the optimizer has it, without bias
    correction, so that soon after a reset the clip is tighter than theta says. One read by the host at each
    step.

    Values in use: theta 5000, Delta T 500, N 150 (the authors' runs of LLaMA 130M and 350M), ``listen_steps``
    20.

    Cost: that of `clip_by_second_moment_`, which is nine times that of a global norm.

    Usage::

        rule = SPAM(optimizer)
        ...
        stats = rule([p.grad for p in params], params)
        if stats.finite:
            with rule.warmed_up():  # the learning rate after a reset
                optimizer.step()

    Args:
        optimizer: Adam, AdamW or another that keeps ``exp_avg_sq``. Its state is cleared at a reset.
        threshold: theta, > 0.
        reset_every: Delta T, steps between two resets, at least 1.
        warmup_steps: N, at least 0.
        listen_steps: steps after a reset before anything is clipped, at least 1.

    Called with the gradients (changed in place) and their parameters (those of the optimizer by default) it
    returns `ClipStats`, as `clip_by_second_moment_` does.

    Empty, zero, nan: an empty list is no step. A step with a nan or inf changes neither a gradient nor the
    counter nor the optimizer, and ``finite`` is False. The optimizer's own moments are safe only if its
    step is skipped too.

    Raises:
        TypeError: an optimizer without a second moment, a sparse gradient.

    Example:
        >>> w = torch.nn.Parameter(torch.zeros(2))
        >>> rule = SPAM(torch.optim.Adam([w]), listen_steps=1)
        >>> for size in (1.0, 1.0, 1e6):
        ...     w.grad = torch.full((2,), size)
        ...     stats = rule([w.grad])
        ...     with rule.warmed_up():
        ...         rule.optimizer.step()
        >>> round(w.grad[0].item(), 2)  # sqrt(5000 * 0.002)
        3.16

    Source: Huang et al. (2025), Algorithm 1, https://arxiv.org/abs/2501.06842. Differs from the authors'
        code: the bias correction starts anew at a reset (theirs goes on, and the steps after one would be
        up to 4 times too long but for the warm-up), and entries with V = 0 are left alone instead of set to
        0. Its sparse momentum, a saving of memory, is not here.
    """

    optimizer: Optimizer
    threshold: float = 5000.0
    reset_every: int = 500
    warmup_steps: int = 150
    listen_steps: int = 20
    num_steps: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if "betas" not in self.optimizer.defaults:
            raise self._no_second_moment()
        positive("threshold", self.threshold, finite=True)
        count("reset_every", self.reset_every, least=1)
        count("warmup_steps", self.warmup_steps, least=0)
        count("listen_steps", self.listen_steps, least=1)

    @torch.no_grad()
    def __call__(
        self, grads: Sequence[Tensor | None], params: Sequence[Tensor | None] | None = None
    ) -> ClipStats:
        if params is None:
            params = [p for group in self.optimizer.param_groups for p in group["params"]]
        match(grads, params, "params")
        refuse_sparse(grads, "SPAM", "needs a second moment for each entry")
        values = checked(grads)
        moments = [self._second_moment(p) for p in params]
        if not values:
            return nothing_to_clip(math.sqrt(self.threshold))
        norm = joint_norm(norms_of(values, math.inf), math.inf)
        unclipped = clip_stats(norm, torch.ones_like(norm), math.sqrt(self.threshold))
        if not norm.isfinite():  # host sync: a reset is the host's to do, and a bad step must not count
            return unclipped
        self.num_steps += 1
        if self.steps_since_reset == 0:
            reset_momentum_(self.optimizer)
        if self.steps_since_reset < self.listen_steps:
            return unclipped
        return _clip_entries(values, moments, self.threshold, norm)

    def _second_moment(self, param: Tensor | None) -> Tensor | None:
        state = self.optimizer.state.get(param, {}) if param is not None else {}
        if state and "exp_avg_sq" not in state:
            raise self._no_second_moment()
        return state.get("exp_avg_sq")

    def _no_second_moment(self) -> TypeError:
        return TypeError(
            f"SPAM needs an optimizer that keeps exp_avg_sq, such as AdamW, got {type(self.optimizer).__name__}: "
            "use ZClip or clip_by_value_ with this one"
        )

    @property
    def steps_since_reset(self) -> int:
        return self.num_steps % self.reset_every

    @contextmanager
    def warmed_up(self) -> Iterator[float]:
        """Scale every learning rate for the steps taken inside, and put it back; yields the factor."""
        factor = 1.0
        if self.num_steps >= self.reset_every:  # before the first reset the user's own warm-up holds
            factor = warmup_factor(self.steps_since_reset, self.warmup_steps)
        groups = self.optimizer.param_groups
        rates = [group["lr"] for group in groups]
        try:
            for group, lr in zip(groups, rates, strict=True):
                group["lr"] = lr * factor
            yield factor
        finally:
            for group, lr in zip(groups, rates, strict=False):
                group["lr"] = lr

    def state_dict(self) -> dict[str, int]:
        """The step count; the moments are in the optimizer's own state."""
        return {"num_steps": self.num_steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        if set(state) != {"num_steps"}:
            raise ValueError(f"the state of SPAM has ['num_steps'], got {sorted(state)}")
        self.num_steps = count("num_steps", state["num_steps"], least=0)
