"""A decision on a step that is made where its gradients lie, and that the host learns a step later."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim import SGD, Optimizer
from torch.optim import optimizer as torch_optimizer
from torch.utils.weak import TensorWeakRef

from steadygrad.clip.folded import cannot_fold, has_no_momentum_yet, odd_gradients
from steadygrad.guard.buffers import BufferKeeper
from steadygrad.guard.tensors import plainly


def takes_a_verdict(optimizer: Optimizer) -> bool:
    """Whether a fused step of this optimizer leaves everything bit for bit as it is where its flag says skip.

    Not its first step, which makes the state; nor where hooks are run around it, which a step that is skipped by the
    host does not run.
    """
    params = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    return bool(
        params
        and not cannot_fold(optimizer)
        and not (optimizer._optimizer_step_post_hooks or torch_optimizer._global_optimizer_post_hooks)  # type: ignore[attr-defined]
        and not any(isinstance(group["lr"], Tensor) for group in optimizer.param_groups)
        and not odd_gradients(params, [p.grad for p in params if p.grad is not None])
        and (isinstance(optimizer, SGD) or all(optimizer.state.get(p) for p in params))
        and not has_no_momentum_yet(optimizer)
    )


class Verdict:
    """Whether a step is skipped, as a flag on the device, and all that follows from it there.

        skip = not (||g|| <= bound) or a buffer has become NaN

    Args:
        optimizer: about to step; one of which :func:`takes_a_verdict` is true.
        norms: of its gradients, 0-D float64 each, on their device.
        bound: largest joint norm at which the step is taken, >= 0.
        buffers: of the model.

    Example:
        >>> w = torch.nn.Parameter(torch.ones(2))
        >>> optimizer = torch.optim.SGD([w], lr=0.1, fused=True)
        >>> w.grad = torch.tensor([float("nan"), 1.0])
        >>> verdict = Verdict(optimizer, [w.grad.double().norm()], 1e19, BufferKeeper([]))
        >>> verdict.lend()
        >>> optimizer.step()
        >>> verdict.take_back()
        >>> verdict.skip.item(), w.tolist()
        (True, [1.0, 1.0])
    """

    def __init__(
        self, optimizer: Optimizer, norms: Sequence[Tensor], bound: float, buffers: BufferKeeper
    ) -> None:
        self.optimizer = optimizer
        self._gradients: list[tuple[TensorWeakRef, TensorWeakRef]] = []  # with their parameters
        self.became_nan = buffers.became_nan()
        with plainly():
            self.skip = ~(torch.linalg.vector_norm(torch.stack(list(norms))) <= bound)  # nan is not
            if self.became_nan:
                self.skip = self.skip | torch.stack(self.became_nan).any()

    def lend(self) -> None:
        """Have the optimizer's next step heed the flag."""
        self.optimizer.found_inf = self.skip.float()  # type: ignore[attr-defined]

    def take_back(self) -> None:
        """The step is over: the optimizer knows of no flag any more. Can be called again."""
        self.optimizer.__dict__.pop("found_inf", None)

    def step_over(self, buffers: BufferKeeper) -> None:
        """Leave no trace in the buffers of a step that was skipped; its gradients are :meth:`clear`'s."""
        buffers.keep_unless(self.skip)
        self._gradients = [
            (TensorWeakRef(p), TensorWeakRef(p.grad))
            for group in self.optimizer.param_groups
            for p in group["params"]
            if p.grad is not None
        ]

    @torch.no_grad()
    def clear(self) -> bool:
        """Set the gradients of a skipped step to zero, on the device. Whether any had been kept until now.

        A loop that sets them to None has let go of them by the next backward pass: then there is nothing to do, and
        a healthy step costs no pass over its gradients.
        """
        found = [(param(), grad()) for param, grad in self._gradients]
        kept = [
            grad for param, grad in found if param is not None and grad is not None and param.grad is grad
        ]
        self._gradients = []
        for grad in kept:
            grad.masked_fill_(self.skip, 0)
        return bool(kept)
