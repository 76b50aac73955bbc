"""A look at everything that is kept of a run: parameters, optimizer state and buffers. Asked for, not at every step."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.optim import Optimizer

from steadygrad._foreach import nonfinite
from steadygrad.records import ParamInfo


def names_of_nonfinite(
    optimizers: Sequence[tuple[Optimizer, Sequence[ParamInfo], Sequence[Tensor]]], roots: Sequence[nn.Module]
) -> list[str]:
    """Names of what holds a NaN or an infinity; of a sharded tensor the part that lies here is read.

    ``optimizers``: each with its parameters and their names. ``roots``: the models, for their buffers.
    """
    named: dict[int, tuple[str, Tensor]] = {}
    for optimizer, infos, params in optimizers:
        for info, p in zip(infos, params, strict=True):
            named.setdefault(id(p), (info.name, p))
            for key, value in optimizer.state.get(p, {}).items():
                if isinstance(value, Tensor):
                    named.setdefault(id(value), (f"{key} of {info.name}", value))
    for root in roots:
        for name, buffer in root.named_buffers():
            if not buffer.is_meta:
                named.setdefault(id(buffer), (name, buffer))
    names, tensors = zip(*named.values(), strict=True) if named else ((), ())
    return [names[i] for i in nonfinite([_local(t) for t in tensors])]


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor  # type: ignore[attr-defined]
