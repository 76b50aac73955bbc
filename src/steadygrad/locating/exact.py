"""Find the operation that makes the first NaN or infinity, by looking at every operation while it runs."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode

from steadygrad.graph.walk import LEAF
from steadygrad.locating.calls import Call, Part
from steadygrad.locating.frames import autograd_starts
from steadygrad.locating.growth import Growth
from steadygrad.locating.judge import Judge
from steadygrad.locating.modules import ModuleStack
from steadygrad.locating.ops import CARRIERS, plain_name
from steadygrad.locating.stacks import capture_stacks
from steadygrad.locating.taint import Candidate, Origins
from steadygrad.locating.values import is_bad
from steadygrad.probe.names import find_compiled
from steadygrad.records import FirstNonFinite


class _Mode(TorchDispatchMode):
    """Hands every operation to the locator, with the mode itself switched off meanwhile."""

    def __init__(self, run: Callable[..., Any]) -> None:
        super().__init__()
        self._run = run

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self._run(func, args, kwargs or {})


class Locator:
    """Watches every operation of the training steps inside it, and names the one where it went wrong.

    What is named is the producer: finite values went in, a NaN or an infinity came out, and it has reached the
    loss, a gradient or a parameter. An infinity that does no harm (a mask before a softmax, a branch that ``where``
    leaves out) is not named. Covers forward passes, losses, backward passes (also second ones), optimizers, and
    data that came in broken.

    No number changes, none is drawn. Costs about 10 times the time of the steps: it is for the step in question.

    Args:
        roots: module trees whose paths name the modules; found by themselves if empty.
        step, batch: numbers of the first step and of the first backward pass inside.

    Inside compiled code nothing is seen: run with ``TORCH_COMPILE_DISABLE=1``; :attr:`notes` says so.

    Example:
        >>> x = torch.tensor([1.0, 0.0], requires_grad=True)
        >>> with Locator() as locator:
        ...     loss = x.log().sum()
        ...     loss.backward()
        >>> locator.first.kind, locator.first.op, locator.first.detail
        ('forward', 'log', 'log of 0 in 1 of 2 values')
    """

    def __init__(self, roots: Sequence[nn.Module] = (), *, step: int = 0, batch: int = 0) -> None:
        self.first: FirstNonFinite | None = None
        self.notes: list[str] = []
        self._modules = ModuleStack(list(roots))
        self._growth = Growth()
        self._judge = Judge(self._modules, self._growth, step, batch)
        self._stack = ExitStack()
        self._entered = False
        self._counted: Any = None  # the optimizer whose steps are counted
        self._in_backward = self._backward_bad = self._backward_seen = False
        self._roots_seen = self._root_bad = False
        self._accumulated, self._models_then = False, 0
        self._last: tuple[bool, Candidate | None] = (False, None)  # last result of a forward pass
        self._leaves: dict[int, Tensor] = {}
        self._pending: Candidate | None = None  # an overflow in half precision that reached a gradient

    def __enter__(self) -> Locator:
        if self._entered:
            raise RuntimeError("this Locator has been entered already; make another one")
        self._entered = True
        self._stack.enter_context(capture_stacks())
        self._stack.enter_context(self._modules)
        self._stack.callback(register_optimizer_step_post_hook(self._stepped).remove)
        self._mode = _Mode(self._run)
        self._stack.enter_context(self._mode)
        if find_compiled() and os.environ.get("TORCH_COMPILE_DISABLE") != "1":
            self.notes.append(
                "a part of the model is compiled and cannot be seen inside; run with TORCH_COMPILE_DISABLE=1"
            )
        return self

    @property
    def on_top(self) -> bool:
        """Whether no mode was entered after ours that is still in force: only then may ours be left."""
        return _get_current_dispatch_mode() is self._mode

    def gradients_are_there(self) -> None:
        """A step is about to use the gradients: judge the backward pass now, before anybody takes them away."""
        if self._in_backward and self._watching:
            self._guarded(self._backward_over)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
        if self._watching:
            self._guarded(self._end)
        self._forget()

    # ------------------------------------------------------------------ every operation
    @property
    def _watching(self) -> bool:
        return self.first is None and self._judge is not None

    def _run(self, func: Any, args: Any, kwargs: Any) -> Any:
        if not self._watching:
            return func(*args, **kwargs)
        call = self._guarded(self._before, func, args, kwargs)
        out = func(*args, **kwargs)
        if call is not None and self._watching:
            self._guarded(self._after, call, out)
        return out

    def _guarded(self, work: Callable[..., Any], *args: Any) -> Any:
        """An error of ours ends the watching, not the training."""
        try:
            return work(*args)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is not the user's
            self.notes.append(f"locating was given up: {type(error).__name__}: {error}")
            self._forget()
            return None

    def _before(self, func: Any, args: Any, kwargs: Any) -> Call | None:
        if func.namespace == "profiler":
            return None
        node = torch._C._current_autograd_node()
        if node is None and self._in_backward:
            self._backward_over()
        elif node is not None and not self._in_backward:
            self._backward_begins()
        if node is not None and node.name() == LEAF:
            self._accumulated, self._models_then = True, self._modules.models_begun
        if func.overloadpacket is torch.ops.aten._amp_foreach_non_finite_check_and_unscale_:
            self._pending = None
        if node is None:
            self._maybe_next_batch(plain_name(func))
            self._judge.module_of_node.setdefault(
                torch.autograd._get_sequence_nr() - 1, self._modules.current
            )
        if func.is_view or not self._watching:  # a view has the memory, and the fate, of its base
            return None
        return Call(func, args, kwargs)

    def _after(self, call: Call, out: Any) -> None:
        node = torch._C._current_autograd_node()
        if call.op == "ones_like" and node is None and autograd_starts():
            self._root(call.args[0])
            return
        if call.op == "local_scalar_dense":
            return
        for part in call.parts(out):
            if part.bad:
                self._taint(part, node)
            else:
                self._judge.acquit(part)
                if node is not None or torch.is_grad_enabled():
                    self._growth.follow(part, self._modules.current)
            if part.outputs and node is None and torch.is_grad_enabled():
                tensor = part.outputs[0][0]
                self._last = (bool(part.bad), self._judge.origins.of(tensor) if part.bad else None)
            if not self._watching:
                return

    def _taint(self, part: Part, node: Any) -> None:
        judge = self._judge
        origin = judge.origin(part, node)
        for tensor in part.bad:
            judge.origins.set(tensor, origin)
        if node is not None:
            self._backward_bad = True
            for following, _ in node.next_functions:
                leaf = getattr(following, "variable", None)
                if leaf is not None:
                    self._leaves[id(leaf)] = leaf
        elif not torch.is_grad_enabled() and any(t.is_leaf and t.requires_grad for t in part.bad):
            self._confirm(origin)

    # ------------------------------------------------------------------ phases
    def _root(self, root: Tensor) -> None:
        self._roots_seen = True
        if is_bad(root):
            self._root_bad = True
            self._confirm(self._judge.origins.of(root) or self._judge.unseen(root))

    def _backward_begins(self) -> None:
        if not self._roots_seen and self._last[0]:
            self._root_bad = True
            self._confirm(self._last[1])
        self._in_backward = self._backward_seen = True
        self._growth.restart()

    def _backward_over(self) -> None:
        self._in_backward = self._roots_seen = False
        if self._backward_bad:
            tensors = {id(p): p for p in [*self._modules.parameters(), *self._leaves.values()]}
            grads = [p.grad for p in tensors.values() if is_bad(p.grad)]
            origins = [self._judge.origins.of(g) for g in grads if g is not None]
            made = [o for o in origins if o is not None and o is not Origins.MEANT]
            if made:
                origin = min(made, key=lambda c: c.order)
                if origin.kind in ("forward", "loss") and not self._root_bad:
                    origin.kind = "backward"
                    origin.detail += "; the loss is finite, its derivative is not"
                if origin.kind == "backward" and "overflows float16" in origin.detail:
                    self._pending = origin  # ordinary if a GradScaler looks and skips the step
                else:
                    self._confirm(origin)
        self._leaves.clear()
        self._backward_bad = self._root_bad = False
        self._growth.restart()

    def _maybe_next_batch(self, op: str) -> None:
        """After gradients were accumulated a new batch begins with the next call of a model.

        Where no modules are used, with the next operation that autograd is to record.
        """
        if not self._accumulated:
            return
        models = self._modules.models_begun
        if models > self._models_then or (models == 0 and torch.is_grad_enabled() and op not in CARRIERS):
            self._accumulated = False
            self._confirm(self._pending)
            self._judge.batch += 1
            self._modules.finished_model = False

    def _stepped(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        if self._counted is None:
            self._counted = optimizer
        if self._counted is optimizer and self._watching:
            self._judge.step += 1

    def _end(self) -> None:
        if self._in_backward:
            self._backward_over()
        if self._watching:
            self._confirm(self._pending)
        if self._watching and not self._backward_seen and self._last[0]:
            self._confirm(self._last[1])

    def _confirm(self, origin: Candidate | None) -> None:
        """Something of this origin has reached the loss, a gradient or a parameter."""
        if self.first is not None or origin is None or origin is Origins.MEANT:
            return
        self.first = self._judge.verdict(origin)

    def _forget(self) -> None:
        """Hold nothing of the training."""
        self._judge = None  # type: ignore[assignment]
        self._leaves.clear()
        self._growth.restart()
        self._last = (False, None)
        self._counted = self._pending = None
        self._modules.called.clear()
        self._modules.inputs.clear()
