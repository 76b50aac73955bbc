"""What every optimizer of this room shares: which tensors a step is for, in which dtype, and where its state is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from steadygrad.clip._tensors import _local

Group = dict[str, Any]


@dataclass
class Batch:
    """Parameters of one group, device and dtype that have a gradient, as lists in one order.

    All tensors are real and at least float32: complex ones are seen as pairs of real numbers, half precision
    is worked on in a float32 copy that is written back at the end of the step.
    """

    params: list[Tensor]  # changed in place by the update
    grads: list[Tensor]  # never changed: they are the user's
    states: list[dict[str, Any]]
    members: list[Tensor]  # the parameters themselves

    def state(self, key: str) -> list[Tensor]:
        return [s[key] for s in self.states]

    def split(self, mask: list[bool]) -> tuple[Batch, Batch]:
        """Those where ``mask`` is true, and the others."""
        return self._pick(mask), self._pick([not m for m in mask])

    def _pick(self, mask: list[bool]) -> Batch:
        lists = (self.params, self.grads, self.states, self.members)
        return Batch(*([x for x, m in zip(of, mask, strict=True) if m] for of in lists))  # type: ignore[arg-type]

    def steps(self) -> list[float]:
        """The number of steps that each parameter has had, this one included."""
        return [float(s["step"]) for s in self.states]  # these tensors are on the CPU, as torch's are


class LayerwiseOptimizer(Optimizer):
    """Base of the room: a subclass says what its state is (`_fresh`) and what a step does (`_update`)."""

    def _check(self, group: Group) -> None:
        """Raise for a hyperparameter or a parameter that the update cannot work with."""

    def _fresh(self, param: Tensor, group: Group) -> dict[str, Tensor]:
        """The state of a parameter at its first gradient, without the count of steps."""
        raise NotImplementedError

    def _update(self, batch: Batch, group: Group) -> None:
        """Change ``batch.params`` and the state in place."""
        raise NotImplementedError

    def add_param_group(self, param_group: Group) -> None:
        """As in torch, with the hyperparameters of the group checked first."""
        if isinstance(param_group, dict) and not isinstance(param_group.get("params"), set):
            params = param_group["params"]
            params = [params] if isinstance(params, Tensor) else list(params)
            param_group = {**param_group, "params": params}
            merged = {**self.defaults, **param_group}
            check_lr(merged["lr"])
            merged["params"] = [p[1] if isinstance(p, tuple) else p for p in params]
            self._check(merged)
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Take one step; with a closure, call it first and return what it returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None and p.grad.layout is not torch.strided:
                    raise TypeError(
                        f"{type(self).__name__} needs dense gradients, got one of layout {p.grad.layout} for a "
                        f"parameter of shape {tuple(p.shape)}: build the embedding with sparse=False, or give "
                        "its weight to torch.optim.SparseAdam"
                    )
        for group in self.param_groups:
            for batch in self._batches(group):
                self._update(batch, group)
                written = [_local(_real(p)) for p in batch.members]
                if written[0].dtype != batch.params[0].dtype:
                    torch._foreach_copy_(written, [_local(p) for p in batch.params])
        return loss

    def _batches(self, group: Group) -> list[Batch]:
        lots: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
        for p in group["params"]:
            if p.grad is not None and p.numel():
                lots.setdefault((p.device, p.dtype), []).append(p)
        return [self._batch(members, group) for members in lots.values()]

    def _batch(self, members: list[Tensor], group: Group) -> Batch:
        dtype = working_dtype(members[0].dtype)
        params = [_real(p).to(dtype) for p in members]
        grads = [_real(p.grad).to(dtype) for p in members if p.grad is not None]
        if group["maximize"]:
            grads = list(torch._foreach_neg(grads))
        for p, work in zip(members, params, strict=True):
            state = self.state[p]
            if not state:
                state["step"] = torch.zeros(())
                state.update(self._fresh(work, group))
            state["step"] += 1
        return Batch(params, grads, [self.state[p] for p in members], members)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in torch, except that the state keeps float32 where the parameters are of half precision."""
        super().load_state_dict(state_dict)
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=True):
            for p, index in zip(group["params"], saved["params"], strict=True):
                for key, value in state_dict["state"].get(index, {}).items():
                    if isinstance(value, Tensor):
                        at = torch.device("cpu") if key == "step" else p.device
                        dtype = value.dtype if key == "step" else working_dtype(p.dtype)
                        self.state[p][key] = value.detach().to(at, dtype, copy=True)


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64 and complex128, float32 for all others."""
    return torch.float64 if dtype in (torch.float64, torch.complex128) else torch.float32


def _real(x: Tensor) -> Tensor:
    x = x.detach()
    return torch.view_as_real(x.resolve_conj()) if x.is_complex() else x


def check_lr(lr: Any) -> None:
    if isinstance(lr, Tensor) and lr.numel() != 1:
        raise ValueError(f"lr must be one number, got a tensor of shape {tuple(lr.shape)}")
    if not isinstance(lr, (int, float, Tensor)):
        raise TypeError(f"lr must be a number or a tensor of one, got {type(lr).__name__}")
    if not 0 <= lr < float("inf"):
        raise ValueError(f"lr must be at least 0 and finite, got {float(lr)}")


def at_least_zero(name: str, value: float) -> None:
    if isinstance(value, Tensor) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not 0 <= value < float("inf"):
        raise ValueError(f"{name} must be at least 0 and finite, got {value}")


def refuse_complex_and_sharded(optimizer: Optimizer, params: list[Tensor]) -> None:
    for p in params:
        if hasattr(p, "to_local"):
            raise TypeError(
                f"{type(optimizer).__name__} needs whole tensors, got one of shape {tuple(p.shape)} that is sharded "
                "(DTensor): LARS, LAMB, NovoGrad, Fromage and AdamAtan2 take it"
            )
        if isinstance(p, Tensor) and p.is_complex():
            raise TypeError(
                f"{type(optimizer).__name__} knows real parameters only, got one of dtype {p.dtype} and shape "
                f"{tuple(p.shape)}: keep its real and imaginary part as two parameters"
            )
