"""What a rank remembers of its own part of a step, to be looked at if the step goes wrong: whose fault was it?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel
from torch.utils.hooks import RemovableHandle

from steadygrad.probe.norms import plain_values, shard_dims

WITNESSES = 8  # parameters that are looked at in every backward pass


class Origin:
    """Remembers a rank's own gradients and outputs from its passes to its step.

    A gradient is seen when autograd has just made it, before ``DistributedDataParallel`` reduces it. In healthy times
    that costs one small reduction for each of a few parameters; a NaN that comes through the backward pass reaches the
    first layers, which are among them. After a step whose bad gradient nobody could be found for, all are looked at.
    Sharded gradients are reduced before anybody sees them: of FSDP only the outputs are remembered.
    """

    def __init__(self) -> None:
        self._largest: dict[
            int, Tensor
        ] = {}  # position of a witness -> largest absolute value, on its device
        self._output: Tensor | None = None  # of the last forward pass that will be differentiated
        self._handles: list[RemovableHandle] = []

    def watch(
        self, roots: Sequence[nn.Module], params: Sequence[Tensor], *, everything: bool = False
    ) -> None:
        """From now on, in place of what was watched before.

        Args:
            roots: the models.
            params: what is trained.
            everything: look at the gradients of all parameters.
        """
        self.close()
        plain = [p for p in params if p.requires_grad and p.is_leaf and not shard_dims(p)]
        apart = 1 if everything else max(1, -(-len(plain) // WITNESSES))
        for position, p in enumerate(plain[::apart]):
            self._handles.append(p.register_post_accumulate_grad_hook(_Witness(self, position)))
        for root in roots:
            if isinstance(root, (DistributedDataParallel, FSDPModule)):
                self._handles.append(root.register_forward_hook(_Listener(self)))

    def own_gradient_is_bad(self) -> bool:
        """Whether a gradient was not finite when autograd had just made it."""
        return any(not bool(torch.isfinite(value)) for value in self._largest.values())  # host sync

    def bad_sample(self) -> int:
        """Place in the batch of the first sample whose output is not finite; -1: there is none, or it is not known."""
        output = self._output
        if output is None or output.dim() < 2:
            return -1
        bad = ~torch.isfinite(output).flatten(1).all(1)
        return int(bad.nonzero()[0]) if bool(bad.any()) and not bool(bad.all()) else -1  # host sync

    def forget(self) -> None:
        """The step is over."""
        self._largest.clear()
        self._output = None

    def close(self) -> None:
        """Take every hook away."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.forget()

    def saw_gradient(self, position: int, param: Tensor) -> None:
        if param.grad is not None:
            values = plain_values(param.grad)
            if values.numel():
                self._largest[position] = torch.linalg.vector_norm(values, torch.inf)

    def saw_output(self, output: Any) -> None:
        for value in output if isinstance(output, (list, tuple)) else [output]:
            if isinstance(value, Tensor) and value.requires_grad and value.layout is torch.strided:
                self._output = value.detach()
                return


class _Witness:
    """A hook in the user's backward pass: it must not raise there."""

    def __init__(self, origin: Origin, position: int) -> None:
        self._origin, self._position = origin, position

    @torch.no_grad()
    def __call__(self, param: Tensor) -> None:
        try:
            self._origin.saw_gradient(self._position, param)
        except Exception:  # noqa: BLE001 - a gradient that we cannot read is one that we cannot blame
            self._origin.forget()


class _Listener:
    """A hook in the user's forward pass: the same."""

    def __init__(self, origin: Origin) -> None:
        self._origin = origin

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        try:
            self._origin.saw_output(output)
        except Exception:  # noqa: BLE001 - of an output that we cannot read no sample is named
            self._origin.forget()
