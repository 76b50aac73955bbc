"""Folded clipping: the clip's factor rides in the fused optimizer, which reads the gradients anyway."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer
from torch.optim import optimizer as torch_optimizer

from steadygrad._check import positive
from steadygrad.clip._memory import Memory
from steadygrad.clip._tensors import checked, joint_norm, norms_of, scale_
from steadygrad.clip._told import Fold, skipped, told
from steadygrad.clip.stats import ClipStats, Decision, clip_stats, nothing_to_clip

KINDS = (Adam, AdamW, SGD, Adagrad)
STEPS = frozenset(inspect.unwrap(kind.step) for kind in KINDS)
DTYPES = {torch.float32, torch.bfloat16, torch.float16}  # the factor is float32: too coarse for float64
DEVICES = ("cpu", "cuda")  # whose fused steps are known to take a factor and a flag
NEAR = ("cpu",)  # reading a number costs nothing; elsewhere the host would wait for the device


class JointRule(Protocol):
    """A rule whose factor is one for all gradients and follows from their joint norm: it can be folded."""

    memory: Memory

    def decide(self, norm: Tensor) -> Decision: ...


@dataclass(eq=False)
class _MaxNorm:
    """The factor of ``torch.nn.utils.clip_grad_norm_``, to the bit."""

    max_norm: float
    memory: Memory = field(default_factory=dict)

    def decide(self, norm: Tensor) -> Decision:
        scale = (self.max_norm / (norm + 1e-6)).clamp(max=1.0)
        scale = torch.where(norm < math.inf, scale, 1.0)  # nan is not below it either
        return Decision(norm, scale, torch.full_like(norm, self.max_norm), self.memory)


class FoldedClip:
    """Clip the joint norm of an optimizer's gradients inside its step; the clip costs little more than the norm.

        g <- g * c inside the step        c = min(1, max_norm / ||g||), or what the rule decides

    A clip of its own reads the gradients for the norm, then reads and writes them for the factor. A fused step
    of torch divides by a factor while it reads them anyway (made for the GradScaler), so that only the norm is
    left to take; a step that needs no clipping is the optimizer's own, bit for bit.

    When to use it: Adam, AdamW, SGD or Adagrad of torch built with ``fused=True``, which on a CPU also makes AdamW
    itself about three times as fast as its default. Anything else (another optimizer, one that is not fused, sparse
    or float64 gradients, step hooks, ...) is clipped the plain way, as by ``clip_grad_norm_``, and a warning says
    once why, and what would change it.

    Values in use: as for `clip_by_global_norm_`: 1.0 for most language models, 0.25 to 10 for recurrent nets.

    Cost: one read of the gradients. On a CPU the host reads the norm; on a GPU it reads nothing, but for the
    first step of SGD with momentum. A net of a few small tensors is bound by the calls instead: about 0.1 ms a
    step more than ``clip_grad_norm_`` on a CPU.

    Args:
        optimizer: takes the steps. All its parameters are clipped together, those of all groups.
        rule: the largest joint norm allowed, > 0, inf to measure only; or a rule with one joint factor (`ZClip`,
            `AutoClip`, or anything with their ``decide`` and ``memory``). Save the rule's own ``state_dict``.

    `step` clips and steps, and returns `ClipStats`: the joint L2 norm before, the factor, the bound. Call it in
    the place of ``optimizer.step()``; schedulers, ``zero_grad`` and checkpoints stay with the optimizer. With a
    GradScaler: ``scaler.unscale_(optimizer)``, `step`, ``scaler.update()``, and no ``scaler.step``.

    After a step that was clipped ``p.grad`` is the clipped gradient, equal to that of ``clip_grad_norm_`` up to a
    rounding of each entry (division by 1 / c against multiplication by c). The norm is taken in float32 for bf16
    and fp16 too, where torch takes it in their own 8 or 11 bits.

    Empty, zero, nan: without gradients, or with zero ones, the optimizer steps as ever. With a nan or inf
    anywhere, or a norm beyond float32, the step is skipped: parameters, moments, step counters, gradients and the
    rule's memory stay bit for bit as they are, and ``finite`` is False.

    Raises:
        TypeError: no torch optimizer, one that needs a closure (LBFGS), a rule without one joint factor.
        ValueError: a norm that is not above 0.

    Example:
        >>> w = torch.nn.Parameter(torch.zeros(2))
        >>> optimizer = torch.optim.SGD([w], lr=1.0, fused=True)
        >>> clip = FoldedClip(optimizer, 1.0)
        >>> w.grad = torch.tensor([30.0, 40.0])
        >>> stats = clip.step()
        >>> stats.norm.item(), round(stats.scale.item(), 4), [round(x, 4) for x in w.tolist()]
        (50.0, 0.02, [-0.6, -0.8])
        >>> w.grad = torch.tensor([float("nan"), 1.0])
        >>> clip.step().finite.item(), [round(x, 4) for x in w.tolist()]
        (False, [-0.6, -0.8])

    Source: Pascanu, Mikolov & Bengio (2013), Algorithm 1, https://arxiv.org/abs/1211.5063; the factor as
        torch's fused steps take it from a GradScaler, https://docs.pytorch.org/docs/stable/amp.html
    """

    def __init__(self, optimizer: Optimizer, rule: float | JointRule) -> None:
        _check_optimizer(optimizer)
        self.optimizer = optimizer
        self.rule = _rule(rule)
        self._said: set[str] = set()
        self._outside = torch.compiler.disable(self._step)

    def step(self) -> ClipStats:
        """Clip the gradients and take the optimizer's step, or skip it; see the class."""
        # of a compiled training step this part stays uncompiled
        return self._outside() if torch.compiler.is_dynamo_compiling() else self._step()

    def _step(self) -> ClipStats:
        optimizer = self.optimizer
        params = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        grads = [p.grad for p in params]
        odd = odd_gradients(params, grads)
        values, norms = _norms(grads, plain=not odd)
        if not values:
            optimizer.step()
            return nothing_to_clip()
        why = cannot_fold(optimizer) or odd
        if why and why not in self._said:
            self._said.add(why)
            warnings.warn(f"FoldedClip clips the plain way: {why}", stacklevel=3)
        norms = _without_loss_scale(optimizer, norms)
        decision = self._decide(norms)
        near = bool(why) or norms.device.type in NEAR or has_no_momentum_yet(optimizer)
        finite, scale = _read(decision) if near else (True, None)
        if why and finite and scale != 1:
            _apply(values, decision.scale)
        fold = Fold([params[i] for i in values], [grads[i] for i in values], norms, decision.scale, not why)
        with told(optimizer, fold):
            if not finite:
                optimizer._opt_called = True  # type: ignore[attr-defined]  # or LRScheduler warns of a missing step
                skipped(optimizer)
            elif why or scale == 1:
                optimizer.step()
            else:
                with _lent(optimizer, decision, flag=not near):
                    optimizer.step()
        return clip_stats(decision.norm, decision.scale, decision.limit)

    @torch.no_grad()
    def _decide(self, norms: Tensor) -> Decision:
        decision = self.rule.decide(joint_norm(norms))
        self.rule.memory = decision.memory
        return decision


def _check_optimizer(optimizer: Any) -> None:
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise TypeError(
            f"{type(optimizer).__name__} takes its gradients inside the closure of its step: "
            "call clip_by_global_norm_ there, behind backward()"
        )


def _rule(rule: Any) -> JointRule:
    if isinstance(rule, Real):
        return _MaxNorm(positive("max_norm", rule))
    if isinstance(rule, type) or not (hasattr(rule, "decide") and hasattr(rule, "memory")):
        raise TypeError(
            "FoldedClip takes a max_norm or a rule with one joint factor (ZClip(), AutoClip()), "
            f"got {rule if isinstance(rule, type) else type(rule).__name__}: call any other rule with the "
            "gradients, and step if its stats are finite"
        )
    return rule


# ---------------------------------------------------------------------- measure
@torch.no_grad()
def _norms(grads: list[Tensor], *, plain: bool) -> tuple[dict[int, Tensor], Tensor]:
    """The gradients that hold numbers, by position, and the norm of each."""
    if plain and grads:
        # from the last to the first: the step then begins with what the cache still holds
        norms = torch._foreach_norm(grads[::-1], 2, dtype=torch.float32)
        return dict(enumerate(grads)), torch.stack(norms[::-1])
    values = checked([torch.view_as_real(g) if g.is_complex() else g for g in grads])
    return values, norms_of(values) if values else torch.zeros(0)


@torch.no_grad()
def _without_loss_scale(optimizer: Optimizer, norms: Tensor) -> Tensor:
    """The norms without the factor of a GradScaler that has left the division to the optimizer."""
    factor = getattr(optimizer, "grad_scale", None)
    return norms if factor is None else norms / factor.to(norms.device)


def _read(decision: Decision) -> tuple[bool, float]:
    """Whether the norm is finite, and the factor."""
    norm, scale = torch.stack([decision.norm, decision.scale]).tolist()  # host sync
    return math.isfinite(norm), scale


# ---------------------------------------------------------------------- decide
def cannot_fold(optimizer: Optimizer) -> str:
    """Why the factor cannot ride in this optimizer's step, and what would change it; empty if it can."""
    name = type(optimizer).__name__
    if type(optimizer) not in KINDS:
        return (
            f"{name} takes no factor; use Adam, AdamW, SGD or Adagrad of torch.optim, built with fused=True"
        )
    if not all(group.get("fused") for group in optimizer.param_groups):
        return f"this {name} is not fused; build {name} with fused=True, for all its groups"
    if inspect.unwrap(optimizer.step) not in STEPS or hasattr(optimizer.step, "_torchdynamo_orig_callable"):
        return f"the step of this {name} was replaced or compiled; leave it as torch made it"
    if optimizer._optimizer_step_pre_hooks or torch_optimizer._global_optimizer_pre_hooks:  # type: ignore[attr-defined]
        return "a step pre-hook would see gradients that are not clipped yet; do what it does before the step"
    if (
        getattr(optimizer, "grad_scale", None) is not None
        or getattr(optimizer, "found_inf", None) is not None
    ):
        return "a GradScaler has set grad_scale or found_inf; call scaler.unscale_(optimizer), and no scaler.step"
    return ""


def odd_gradients(params: Sequence[Tensor], grads: Sequence[Tensor]) -> str:
    """Why these gradients cannot be folded, and what would change it; empty if they can."""
    if not grads:
        return ""
    if not set(map(type, grads)) <= {Tensor} or not set(map(type, params)) <= {Parameter, Tensor}:
        return "a gradient or parameter is of a class of its own, such as DTensor; nothing need be done"
    if {g.layout for g in grads} != {torch.strided}:
        return "a gradient is sparse; build the embedding with sparse=False"
    dtypes = [g.dtype for g in grads]
    if not set(dtypes) <= DTYPES:
        return "a gradient is float64 or complex, and the factor is float32; nothing need be done"
    if dtypes != [p.dtype for p in params]:
        return "a gradient has another dtype than its parameter; give both the same"
    contiguous = all(map(Tensor.is_contiguous, grads)) and all(map(Tensor.is_contiguous, params))
    if not contiguous and [g.stride() for g in grads] != [p.stride() for p in params]:
        return (
            "a gradient lies in memory in another order than its parameter, and a fused step of torch mixes up "
            "its entries on a CPU, with or without a clip; assign gradients in the parameter's memory_format"
        )
    if len({g.device for g in grads}) > 1:
        return "the gradients lie on several devices; nothing need be done"
    if grads[0].device.type not in DEVICES:
        return f"on {grads[0].device.type} a fused step is not known to take a factor; nothing need be done"
    return ""


def has_no_momentum_yet(optimizer: Optimizer) -> bool:
    """Whether this step is the first of an SGD with momentum.

    torch 2.13 makes the momentum in that step out of memory as it lies, and keeps it if the flag says skip.
    """
    return isinstance(optimizer, SGD) and any(
        p.grad is not None and optimizer.state.get(p, {}).get("momentum_buffer") is None
        for group in optimizer.param_groups
        if group["momentum"]
        for p in group["params"]
    )


# ---------------------------------------------------------------------- act
@torch.no_grad()
def _apply(values: dict[int, Tensor], scale: Tensor) -> None:
    scale_(values, scale)


@contextmanager
def _lent(optimizer: Optimizer, decision: Decision, *, flag: bool) -> Iterator[None]:
    """Inside the block the fused step divides by the factor, and with a ``flag`` skips a norm that is not finite."""
    optimizer.grad_scale = decision.scale.reciprocal()  # type: ignore[attr-defined]
    if flag:  # exactly 0 or 1: torch subtracts it from the step counters
        optimizer.found_inf = (~decision.norm.isfinite()).float()  # type: ignore[attr-defined]
    try:
        yield
    finally:
        optimizer.__dict__.pop("grad_scale", None)
        optimizer.__dict__.pop("found_inf", None)
