"""Take a training step again from the same state: where the bits differ, the machine is to blame, not the training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from steadygrad.guard.snapshot import Snapshot
from steadygrad.guard.state import TrainingState, find_scalers, find_schedulers
from steadygrad.guard.tensors import plainly

T = TypeVar("T")
Verdict = Literal["unchecked", "equal", "fault", "nondeterministic"]


@dataclass(frozen=True)
class Recomputed(Generic[T]):
    """What became of a step that was taken again."""

    value: T  # what the step returned in the computation that was kept
    verdict: Verdict
    differing: tuple[str, ...] = ()  # names of what the second computation gave otherwise, gradients included

    def __str__(self) -> str:
        if self.verdict == "unchecked":
            return "the step was taken once"
        if self.verdict == "equal":
            return "the step was taken twice, and every bit is the same"
        shown = ", ".join(self.differing[:3])
        shown += f" and {len(self.differing) - 3} more" if len(self.differing) > 3 else ""
        if self.verdict == "fault":
            return (
                f"one of three computations of the step gave other bits in {shown}: a fault of the hardware if "
                "the operations are deterministic. It was outvoted"
            )
        return (
            f"three computations of the step gave three results, apart in {shown}: an operation that is not "
            "deterministic (torch.use_deterministic_algorithms(True) names it), a random generator of the script's "
            "own, or hardware that fails often. The first was kept"
        )


class Recompute:
    """Takes steps of a training, and takes them again to see whether the machine has computed right.

    A step is taken again from the state it began with: parameters, buffers, gradients, the optimizers' state,
    schedulers, gradient scalers and the random streams. If every bit is the same, nothing speaks against the
    hardware. If not, the step is taken a third time, and the result that two of the three share is kept: the run goes
    on bit for bit as one in which the fault never was. This finds what no rule can see, a flipped low bit; what it
    cannot find is a unit that makes the same mistake each time.

    When to use it: always, to look for silent data corruption on a suspect machine; with ``when`` at little cost in any
    run, to tell a loss spike that the data or the weights made from one that a fault made; and once, to see
    whether a training is deterministic at all.

    Values in use: none to set.

    Cost: a copy of the state before each step; for a step that is taken again, another step and two copies.

    Args:
        model: its parameters and buffers are compared.
        optimizers: that take the step. Schedulers of them, and gradient scalers, are found if they are there already.

    Calling it with a step, a function without arguments that goes from ``zero_grad`` to ``optimizer.step()``, gives a
    :class:`Recomputed`. The step is called up to three times, so it must not draw a batch, count or log by itself.
    ``when(value)``, of what the step returned, says whether to take it again; None: always.

    A step that comes out non-finite is compared as any other: a NaN with the same bits is the same. What a step raises
    goes on to the caller; if it was not the first time, the state is that of the first.

    Raises:
        TypeError: ``model`` is no module, or an optimizer is none.
        ValueError: no optimizer.

    Not to be used inside ``sg.watch``, which would record each computation as a step.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 1))
        >>> optimizer = torch.optim.AdamW(model.parameters())
        >>> recompute, x = Recompute(model, optimizer), torch.randn(8, 4)
        >>> def step():
        ...     optimizer.zero_grad()
        ...     loss = model(x).square().mean()
        ...     loss.backward()
        ...     optimizer.step()
        ...     return loss.item()
        >>> print(recompute(step))
        the step was taken twice, and every bit is the same

    Source: recomputing the step in which a fault shows, https://arxiv.org/abs/2604.00726
    """

    def __init__(self, model: nn.Module, *optimizers: Optimizer) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        if not optimizers:
            raise ValueError("Recompute needs at least one optimizer: Recompute(model, optimizer)")
        for optimizer in optimizers:
            if not isinstance(optimizer, Optimizer):
                raise TypeError(
                    f"each optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}"
                )
        self._state = TrainingState([model], optimizers, find_schedulers(optimizers), find_scalers())
        self._before, self._first, self._second = (_Moment(self._state) for _ in range(3))

    def __call__(self, step: Callable[[], T], when: Callable[[T], bool] | None = None) -> Recomputed[T]:
        self._before.take()
        value = step()
        if when is not None and not when(value):
            return Recomputed(value, "unchecked")
        self._first.take()
        second = self._again(step)
        self._second.take()
        differing = _differing(self._first.bits(), self._second.bits())
        if not differing:
            return Recomputed(second, "equal")
        third = self._again(step)
        now = _Moment(self._state)
        now.take()
        if any(not _differing(now.bits(), other.bits()) for other in (self._first, self._second)):
            return Recomputed(third, "fault", differing)
        self._first.put_back()
        return Recomputed(value, "nondeterministic", differing)

    def _again(self, step: Callable[[], T]) -> T:
        self._before.put_back()
        try:
            return step()
        except BaseException:
            self._first.put_back()
            raise


class _Moment:
    """A run's state with its gradients at one moment."""

    def __init__(self, state: TrainingState) -> None:
        self._state = state
        self._snapshot = Snapshot()
        self._grads: dict[
            str, tuple[Tensor, Tensor | None, Tensor | None]
        ] = {}  # parameter, .grad, its values

    def take(self) -> None:
        self._snapshot.take(self._state, 0, finite=True)
        self._grads = {
            t.name: (
                t.tensor,
                t.tensor.grad,
                None if t.tensor.grad is None else t.tensor.grad.detach().clone(),
            )
            for t in self._state.tensors()
            if t.kind == "param"
        }

    def put_back(self) -> None:
        self._snapshot.restore(self._state, rng=True)
        for param, grad, values in self._grads.values():
            param.grad = grad
            if grad is not None and values is not None:
                with torch.no_grad():
                    grad.copy_(values)

    def bits(self) -> Mapping[str, Tensor]:
        """Everything that can be compared, by name."""
        state = dict(zip(self._snapshot.names, self._snapshot.tensors(), strict=True))
        return state | {f"{name}.grad": v for name, (_, _, v) in self._grads.items() if v is not None}


def _differing(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Names of what is not the same, bit for bit, or is on one side only."""
    with plainly():
        return tuple(n for n in (*a, *(b.keys() - a.keys())) if not (n in a and n in b and _same(a[n], b[n])))


def _same(a: Tensor, b: Tensor) -> bool:
    if a.layout is not torch.strided or b.layout is not torch.strided:
        a, b = a.to_dense(), b.to_dense()
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(_bytes(a), _bytes(b))


def _bytes(tensor: Tensor) -> Tensor:
    """So that a NaN is equal to itself, and 0 not to -0."""
    return tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)
