"""Brute force: run a training with every local variable looked at after every line of the case's own file."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.planted_cases.training import HERE, Training


@dataclass(frozen=True)
class Truth:
    """Where a variable was not finite for the first time."""

    file: str
    line: int
    module: str
    step: int


class Tracer:
    """Follows the lines of the cases, and the outputs of all leaf modules; no dispatch mode, no autograd.

    A line is to blame if a local variable of its frame is not finite after it and no floating variable was before.
    Forward passes only: a fault that shows in a gradient first is found at the next use of the weights, so that the
    cases it is asked about are those that overflow forwards.
    """

    def __init__(self, training: Training) -> None:
        self.training = training
        self.names = {id(m): name for name, m in training.model.named_modules()}
        self.last: dict[int, int] = {}
        self.step = 0
        self.truth: Truth | None = None
        self.leaf = ""

    def run(self) -> Truth | None:
        handles = [
            m.register_forward_hook(self._leaf)
            for m in self.training.model.modules()
            if not list(m.children())
        ]
        sys.settrace(self._call)
        try:
            for batch in self.training.batches:
                self.training.step(batch)
                if self.truth is not None:
                    break
                for name, p in self.training.model.named_parameters():
                    assert bool(torch.isfinite(p).all()), f"{name} broke without a line in a forward pass"
                self.step += 1
        finally:
            sys.settrace(None)
            for handle in handles:
                handle.remove()
        return self.truth

    def _leaf(self, module: nn.Module, args: Any, output: Tensor) -> None:
        if not self.leaf and not _finite(output) and all(_finite(a) for a in args):
            self.leaf = self.names[id(module)]

    def _call(self, frame: FrameType, event: str, arg: Any) -> Any:
        path = Path(frame.f_code.co_filename)
        if path.parent != HERE or path.name in ("oracle.py", "training.py"):
            return None
        self.last[id(frame)] = frame.f_lineno
        return self._line

    def _line(self, frame: FrameType, event: str, arg: Any) -> Any:
        if self.truth is None and event in ("line", "return"):
            values = [v for v in frame.f_locals.values() if isinstance(v, Tensor)]
            if event == "return" and isinstance(arg, Tensor):
                values.append(arg)
            if not all(map(_finite, values)):
                owner = frame.f_locals.get("self")
                module = self.leaf or self.names.get(id(owner), "")
                name = Path(frame.f_code.co_filename).name
                self.truth = Truth(name, self.last[id(frame)], module, self.step)
        self.last[id(frame)] = frame.f_lineno
        return self._line


def _finite(value: Any) -> bool:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return True
    return bool(torch.isfinite(value.detach()).all())
