"""Clip by a bound that the run sets: z-score (ZClip), percentile (AutoClip), average of each tensor (AdaGC).

All three keep their memory in tensors on the device of the gradients and decide without the host. A step with
a non-finite gradient leaves the memory bit for bit as it was: the next step behaves as if it had not been.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from steadygrad._check import count, fraction, positive
from steadygrad.clip._memory import Memory, Remembers, updated
from steadygrad.clip._tensors import checked, joint_norm, norms_of, scale_, scale_each_
from steadygrad.clip.stats import ClipStats, Decision, clip_stats, nothing_to_clip


class _Joint(Remembers, ABC):
    """A rule that scales all gradients by one factor, which it decides on by their joint norm."""

    @torch.no_grad()
    def __call__(self, grads: Sequence[Tensor | None]) -> ClipStats:
        values = checked(grads)
        if not values:
            return nothing_to_clip()
        decision = self.decide(joint_norm(norms_of(values)))
        scale_(values, decision.scale)
        self.memory = decision.memory
        return clip_stats(decision.norm, decision.scale, decision.limit)

    @abstractmethod
    def decide(self, norm: Tensor) -> Decision:
        """The factor for gradients of this joint norm (0-D), and what the rule will remember of it."""


@dataclass(eq=False)
class ZClip(_Joint):
    """Clip the joint norm when it lies more than ``z_thres`` standard deviations above its moving average.

        z = (||g|| - mu) / (sigma + eps)
        ||g|| <- mu + z_thres^2 * sigma / z        if z > z_thres        (the wilder, the closer to mu)
        mu <- alpha mu + (1 - alpha) ||g||         sigma^2 <- alpha sigma^2 + (1 - alpha) (||g|| - mu)^2

    with the norm after clipping in the averages. The first ``warmup_steps`` steps only listen; they give mu
    and sigma as their mean and standard deviation.

    When to use it: the norm drifts during training so that no fixed bound fits, and single batches spike.
    Chain a fixed bound behind it (``chain(ZClip(), partial(clip_by_global_norm_, max_norm=1.0))``), as its
    authors' code does: the first steps are then covered too.

    Limits: the norm that a wild step is cut to lies *below* mu + z_thres sigma, so that a lasting rise of
    the norm (a new task, the end of a warm-up) is never learned: sigma shrinks, mu stays, and every later
    step is cut to mu, for ever. ``restart_after`` listens anew after that many cut steps in a row; leave it
    off where the rise may be a divergence.

    Values in use: alpha 0.97, z_thres 2.5 (the paper, LLaMA 1B), warmup_steps 25 (its authors' code).

    Cost: one read of the gradients, one read and write, a dozen operations on single numbers.

    Args:
        alpha: weight of the past in the averages, 0 <= alpha < 1.
        z_thres: standard deviations allowed, > 0.
        warmup_steps: steps that only listen, at least 2.
        eps: added to sigma, > 0.
        restart_after: cut steps in a row after which the averages start anew; None for never.

    Called with the gradients (one for each parameter, None where there is none; changed in place) it returns
    `ClipStats`: the joint L2 norm before, the factor, and as limit the norm that a step may have.

    Empty, zero, nan: an empty list is no step. A nan or inf anywhere, or a norm beyond float32, changes
    neither the gradients nor the memory, and ``finite`` is False.

    Example:
        >>> rule = ZClip(warmup_steps=4)
        >>> for size in (1.0, 1.1, 0.9, 1.0):
        ...     stats = rule([torch.tensor([size])])
        >>> grad = torch.tensor([1000.0])
        >>> stats = rule([grad])
        >>> 0.99 < grad.item() < 1.01
        True

    Source: Kumar, Owen, Roy Chowdhury & Güra (2025), section 3, https://arxiv.org/abs/2504.02507
    """

    alpha: float = 0.97
    z_thres: float = 2.5
    warmup_steps: int = 25
    eps: float = 1e-6
    restart_after: int | None = None
    memory: Memory = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        fraction("alpha", self.alpha, one=False)
        positive("z_thres", self.z_thres, finite=True)
        positive("eps", self.eps, finite=True)
        count("warmup_steps", self.warmup_steps, least=2)
        if self.restart_after is not None:
            count("restart_after", self.restart_after, least=1)

    def _fresh(self, like: Tensor, width: int) -> Memory:
        zero = torch.zeros((), device=like.device)
        return {"num": zero.long(), "mean": zero, "var": zero.clone(), "num_cut": zero.long()}

    @torch.no_grad()
    def decide(self, norm: Tensor) -> Decision:
        """The factor for gradients of this joint norm (0-D), and what the rule will remember of it."""
        norm = norm.float()
        finite = norm.isfinite()
        m = self._recall(norm, 0)
        mean, std = m["mean"], m["var"].sqrt()
        z = (norm - mean) / (std + self.eps)
        cut_to = mean + self.z_thres**2 * std / z
        listening = m["num"] < self.warmup_steps
        cut = finite & ~listening & (z > self.z_thres) & (mean > 0)  # a mean of 0 gives no scale to cut to
        scale = torch.where(cut, cut_to / norm, 1.0)
        limit = torch.where(listening, float("inf"), mean + self.z_thres * (std + self.eps))
        learned = self._learned(m, torch.where(cut, cut_to, norm), listening, cut)
        return Decision(norm, scale, limit, updated(m, learned, finite))

    def _learned(self, m: Memory, norm: Tensor, listening: Tensor, cut: Tensor) -> Memory:
        num = m["num"] + 1
        # while listening: the plain mean and variance of what was seen (Welford); afterwards moving averages
        weight = torch.where(listening, 1.0 / num, 1.0 - self.alpha)
        mean = m["mean"] + weight * (norm - m["mean"])
        plain = m["var"] + weight * ((norm - m["mean"]) * (norm - mean) - m["var"])
        moving = m["var"] + weight * ((norm - mean) ** 2 - m["var"])
        new = {"num": num, "mean": mean, "var": torch.where(listening, plain, moving)}
        new["num_cut"] = torch.where(cut, m["num_cut"] + 1, 0)
        if self.restart_after is None:
            return new
        anew = new["num_cut"] >= self.restart_after
        return {name: torch.where(anew, torch.zeros_like(t), t) for name, t in new.items()}


@dataclass(eq=False)
class AutoClip(_Joint):
    """Clip the joint norm to a percentile of the norms seen so far.

        G_h <- G_h + {||g||}        eta = percentile_p(G_h)        g <- g * min(1, eta / ||g||)

    When to use it: you would rather choose how often to clip than at which norm. At p = 10 nine steps of
    ten are clipped, which makes it close to a normalised gradient whose length adapts; at p = 95 it only
    cuts the tail.

    Limits: a share 1 - p of all steps is clipped in a healthy run too. The bound follows a lasting rise
    only as fast as it fills the window.

    Values in use: p = 10 over the whole history (the paper, source separation); its authors' later package
    takes p = 90 over the last 1000 norms, for each tensor.

    Cost: one read of the gradients, one read and write, a sort of ``history_length`` numbers.

    Args:
        percentile: p, 0 to 100.
        history_length: norms remembered, at least 1. The paper remembers all.

    Called with the gradients (one for each parameter, None where there is none; changed in place) it returns
    `ClipStats`: the joint L2 norm before, the factor, the percentile as limit.

    Empty, zero, nan: an empty list is no step. A nan or inf anywhere, or a norm beyond float32, changes
    neither the gradients nor the memory, and ``finite`` is False. A zero gradient is left alone and not
    remembered: it has no scale, and a tenth of zeros would clip everything to zero at p = 10.

    Example:
        >>> rule = AutoClip(percentile=50)
        >>> for size in (1.0, 2.0, 3.0):
        ...     stats = rule([torch.tensor([size])])
        >>> stats.limit.item(), round(stats.scale.item(), 4)
        (2.0, 0.6667)

    Source: Seetharaman, Wichern, Pardo & Le Roux (2020), Algorithm 1, https://arxiv.org/abs/2007.14469
    """

    percentile: float = 10.0
    history_length: int = 1000
    memory: Memory = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if not 0 <= self.percentile <= 100:
            raise ValueError(f"percentile must be between 0 and 100, got {self.percentile}")
        count("history_length", self.history_length, least=1)

    def _fresh(self, like: Tensor, width: int) -> Memory:
        history = torch.full((self.history_length,), float("inf"), device=like.device)
        return {"num": torch.zeros((), dtype=torch.long, device=like.device), "history": history}

    @torch.no_grad()
    def decide(self, norm: Tensor) -> Decision:
        """The factor for gradients of this joint norm (0-D), and what the rule will remember of it."""
        norm = norm.float()
        m = self._recall(norm, 0)
        place = torch.arange(self.history_length, device=norm.device) == m["num"] % self.history_length
        new = {"num": m["num"] + 1, "history": torch.where(place, norm, m["history"])}
        m = updated(m, new, norm.isfinite() & (norm > 0))
        limit = self._percentile(m)
        scale = torch.where(norm.isfinite(), (limit / norm).clamp(max=1.0), 1.0)
        return Decision(norm, scale, limit, m)

    def _percentile(self, m: Memory) -> Tensor:
        """Linear between the two nearest norms; inf before the first. Places not yet filled sort last."""
        seen = m["history"].sort().values
        place = (m["num"].clamp(1, self.history_length) - 1) * (self.percentile / 100)
        low, high = place.floor().long(), place.ceil().long()
        at = seen.gather(0, torch.stack([low, high]))
        return torch.where(low == high, at[0], torch.lerp(at[0], at[1], place - low))


@dataclass(eq=False)
class AdaGC(Remembers):
    """Clip each tensor's norm to a little more than the moving average of its own clipped norms.

        ||g_i|| <- min(||g_i||, lambda_rel gamma_i)        gamma_i <- beta gamma_i + (1 - beta) ||g_i||

    with the norm after clipping in the average. In the first ``warmup_steps`` steps the joint norm is
    clipped to ``lambda_abs``, and gamma_i becomes the smallest norm that tensor i had.

    When to use it: large models in which one tensor spikes long before the joint norm shows it; and where a
    joint norm is costly, as under model parallelism.

    Limits: gamma grows by at most (1 - beta)(lambda_rel - 1) a step, 0.1 % at the defaults: after a lasting
    rise of the norm to the tenfold every step is clipped for about 2,300 steps. A tensor whose gradient was
    exactly 0 in one step of the warm-up has gamma 0 in the paper's form and stays at 0 for ever; here a
    zero gradient says nothing and gamma waits for the first that is not.

    Values in use: lambda_rel 1.04 and beta 0.99 for GPT-2 345M (the authors' code), 1.05 and 0.98 in
    pytorch_optimizer; lambda_abs 1.0 and 100 steps in both.

    Cost: one read of the gradients, one read and write; one number for each tensor.

    Args:
        lambda_rel: norm allowed, as a multiple of the average, > 1.
        beta: weight of the past in the average, 0 <= beta < 1.
        lambda_abs: joint norm allowed in the warm-up, > 0.
        warmup_steps: steps with the joint bound, at least 1.

    Called with the gradients (one for each parameter, None where there is none; changed in place; always
    the same parameters in the same order) it returns `ClipStats`: the joint L2 norm before, the smallest
    factor, as limit the joint norm of a step at every bound, the share of tensors clipped.

    Empty, zero, nan: an empty list is no step. A nan or inf in any tensor changes neither a gradient nor
    the memory, and ``finite`` is False.

    Raises:
        ValueError: another number of gradients than before.

    Example:
        >>> rule = AdaGC(warmup_steps=1)
        >>> stats = rule([torch.tensor([0.6]), torch.tensor([0.3])])
        >>> grads = [torch.tensor([60.0]), torch.tensor([0.3])]
        >>> stats = rule(grads)
        >>> [round(g.item(), 4) for g in grads]  # 1.05 * 0.6, and untouched
        [0.63, 0.3]

    Source: Wang et al. (2025), Algorithm 1, https://arxiv.org/abs/2502.11034
    """

    lambda_rel: float = 1.05
    beta: float = 0.98
    lambda_abs: float = 1.0
    warmup_steps: int = 100
    memory: Memory = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if not 1 < self.lambda_rel < float("inf"):
            raise ValueError(f"lambda_rel must be above 1 and finite, got {self.lambda_rel}")
        fraction("beta", self.beta, one=False)
        positive("lambda_abs", self.lambda_abs)
        count("warmup_steps", self.warmup_steps, least=1)

    def _width(self, state: Mapping[str, Any]) -> int:
        return state["gamma"].numel() if "gamma" in state else 0

    def _fresh(self, like: Tensor, width: int) -> Memory:
        gamma = torch.full((width,), float("inf"), device=like.device)  # inf: no norm seen yet
        return {"num": torch.zeros((), dtype=torch.long, device=like.device), "gamma": gamma}

    @torch.no_grad()
    def __call__(self, grads: Sequence[Tensor | None]) -> ClipStats:
        values = checked(grads)
        if self.memory and len(grads) != self.memory["gamma"].numel():
            raise ValueError(
                f"AdaGC has a memory of {self.memory['gamma'].numel()} gradients, got {len(grads)}: "
                "pass the same parameters in the same order (None for one without a gradient), "
                "or build a new rule"
            )
        if not values:
            return nothing_to_clip()
        seen = norms_of(values).float()
        zero = torch.zeros_like(seen[0])
        by_place = dict(zip(values, seen.unbind(), strict=True))
        # 0 stands for no gradient: there is nothing to learn from either
        norms = torch.stack([by_place.get(i, zero) for i in range(len(grads))])
        norm = joint_norm(norms)
        m = self._recall(norm, len(grads))
        gamma, warm = m["gamma"], m["num"] < self.warmup_steps
        limits = self.lambda_rel * gamma
        scales = torch.where(warm, self.lambda_abs / norm, limits / norms).clamp(max=1.0)
        scales = torch.where(norm.isfinite() & (norms > 0), scales, 1.0)
        present = torch.stack([scales[i] for i in values])
        scale_each_(values, present)
        clipped = scales * norms
        least = torch.minimum(gamma, clipped)
        moving = self.beta * gamma + (1 - self.beta) * clipped
        first_or_warm = warm | gamma.isinf()
        new = {"num": m["num"] + 1, "gamma": torch.where(first_or_warm, least, moving)}
        new["gamma"] = torch.where(norms > 0, new["gamma"], gamma)
        self.memory = updated(m, new, norm.isfinite())
        bound = joint_norm(torch.where(norms > 0, limits, 0.0))
        return clip_stats(norm, present, torch.where(warm, self.lambda_abs, bound))
