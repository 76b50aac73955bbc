"""What the models have put out in a step, for losses whose graph keeps only the difference to the target."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from steadygrad.probe.compiled import Compiled

MAX_KEPT = 32  # outputs with a history: a rollout may make thousands before it is differentiated
MAX_PLAIN = 8  # outputs without a history that are kept: an evaluation makes many
DEPTH = 2  # modules so far below a root: a script may call `model.head(model.trunk(x))`


class RootOutputs:
    """Keeps the outputs of the upper modules from a sampled forward until its backward begins.

    Args:
        compiled: knows what is compiled, and left alone.
    """

    def __init__(self, compiled: Compiled) -> None:
        self._compiled = compiled
        self._seen: deque[Tensor] = deque(maxlen=MAX_KEPT)
        self._plain: deque[Tensor] = deque(maxlen=MAX_PLAIN)
        self._handles: list[RemovableHandle] = []

    def arm(self, roots: Sequence[nn.Module]) -> None:
        """Listen to the next forwards. Modules with a fast path for evaluation are left alone: a hook turns it off."""
        self.disarm()
        for root in roots:
            for module in self._upper(root, DEPTH):
                fast = issubclass(
                    type(module), (nn.TransformerEncoderLayer, nn.TransformerEncoder, nn.MultiheadAttention)
                )
                if not fast:
                    self._handles.append(module.register_forward_hook(_Keep(self)))

    def disarm(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._seen.clear()
        self._plain.clear()

    def take(self) -> tuple[list[Tensor], list[Tensor]]:
        """The outputs since the last time, with a history and without one; they are let go of."""
        seen, plain = list(self._seen), list(self._plain)
        self._seen.clear()
        self._plain.clear()
        return seen, plain

    def saw(self, output: Any) -> None:
        if isinstance(output, Tensor):
            if output.is_floating_point():
                (self._seen if output.requires_grad else self._plain).append(output)
        elif isinstance(output, (tuple, list)):
            for part in output:
                self.saw(part)
        elif isinstance(output, dict):
            self.saw(list(output.values()))

    def _upper(self, module: nn.Module, depth: int) -> Iterator[nn.Module]:
        if self._compiled.why(module):
            return
        yield module
        if depth > 0:
            for child in module.children():
                yield from self._upper(child, depth - 1)


class _Keep:
    """A forward hook that is inert in copies of its module, and in a file needs no steadygrad to load."""

    def __init__(self, outputs: RootOutputs) -> None:
        self.outputs = outputs

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        if not torch.compiler.is_compiling():
            self.outputs.saw(output)

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (nullcontext(), "__exit__")
