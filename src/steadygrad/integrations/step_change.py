"""One thing changed at the optimizer's step and at backward, and given back right after: a plan in force."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from steadygrad.clip import clip_by_global_norm_
from steadygrad.guard.buffers import BufferKeeper
from steadygrad.records import StepStats
from steadygrad.rules.history import History

MIN_NORMS = 10  # below this no norm is called large


class StepChange:
    """Carries out what a plan says of steps; with an empty plan it does nothing.

    The plan's keys are those of :class:`steadygrad.diagnose.interventions.Intervention`. Values of the parameter
    groups are changed for one step and put back behind it, so that schedulers go on from the user's own.
    """

    def __init__(self, plan: Mapping[str, float]) -> None:
        self._plan = plan
        self._undo: list[tuple[dict[str, Any], str, Any]] = []
        self._factors: list[RemovableHandle] = []
        self._taken: dict[int, int] = {}  # optimizer index -> steps
        self._buffers: BufferKeeper | None = None
        self._skips = "skip_nonfinite" in plan or "skip_above" in plan

    def met(self, roots: Sequence[nn.Module]) -> None:
        """These models are trained from now on: their buffers are put back when a step is skipped."""
        if self._skips:
            self._buffers = BufferKeeper(list(roots))

    def backward(self, roots: Sequence[Tensor]) -> None:
        """A backward pass is about to begin on these roots: exactly as if they were multiplied by the factor."""
        factor = self._plan.get("gradient_factor")
        self._forget_factors()
        if factor is not None:
            self._factors = [
                root.register_hook(lambda grad: grad * factor) for root in roots if root.requires_grad
            ]

    def _forget_factors(self) -> None:
        for handle in self._factors:  # a root that is differentiated again must not get it twice
            handle.remove()
        self._factors = []

    def before_step(self, optimizer: Optimizer, stats: StepStats, history: History) -> bool:
        """Put the plan in force. False: the step is not to be taken.

        Args:
            optimizer: about to step.
            stats: its gradients, as the user's code has left them.
            history: of the steps before.
        """
        self._forget_factors()
        if self._odd(stats, history):
            return False
        if "clip_norm" in self._plan and stats.clipped_grad_norm > self._plan["clip_norm"]:
            scale = getattr(optimizer, "grad_scale", None)
            bound = self._plan["clip_norm"] * (float(scale) if scale is not None else 1.0)
            clip_by_global_norm_([p.grad for g in optimizer.param_groups for p in g["params"]], bound)
        taken = self._taken.get(stats.optimizer, 0)
        self._taken[stats.optimizer] = taken + 1
        for group in optimizer.param_groups:
            self._change(group, taken)
        return True

    def _odd(self, stats: StepStats, history: History) -> bool:
        if not self._skips:
            return False
        if not stats.finite or stats.loss is not None and not math.isfinite(stats.loss):
            return True
        usual = history.median_grad_norm() if history.num_healthy >= MIN_NORMS else None
        return usual is not None and stats.grad_norm > self._plan.get("skip_above", math.inf) * usual > 0

    def _change(self, group: dict[str, Any], taken: int) -> None:
        plan, warmup = self._plan, self._plan.get("warmup_steps", 0.0)
        factor = plan.get("lr_factor", 1.0) * min(1.0, (taken + 1) / warmup if warmup else 1.0)
        if factor != 1.0 and "lr" in group:
            self._set(group, "lr", group["lr"] * factor)
        if "momentum" in plan and group.get("momentum"):
            self._set(group, "momentum", min(float(group["momentum"]), plan["momentum"]))
        betas = group.get("betas")
        if isinstance(betas, (tuple, list)) and len(betas) >= 2 and ("momentum" in plan or "beta2" in plan):
            first = min(float(betas[0]), plan.get("momentum", math.inf))
            self._set(group, "betas", type(betas)((first, plan.get("beta2", betas[1]), *betas[2:])))

    def _set(self, group: dict[str, Any], key: str, value: Any) -> None:
        self._undo.append((group, key, group[key]))
        group[key] = value

    def undo(self) -> None:
        """Give the groups back to the user: after every step, also one that raised."""
        for group, key, value in reversed(self._undo):
            group[key] = value
        self._undo.clear()

    def after_step(self, optimizer: Optimizer, applied: bool) -> None:
        self.undo()
        if not applied and self._buffers is not None:
            self._buffers.restore()
        elif self._buffers is not None:
            self._buffers.keep()
        if not applied or "zero_gradients" in self._plan:
            _zero_gradients_(optimizer)


@torch.no_grad()
def _zero_gradients_(optimizer: Optimizer) -> None:
    for group in optimizer.param_groups:
        for p in group["params"]:
            if p.grad is not None:
                p.grad.zero_()
