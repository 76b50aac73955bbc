"""Which modules run compiled: a hook on one would be traced into its graph, or never be called."""

from __future__ import annotations

import torch
from torch import nn

from steadygrad.probe.names import find_compiled, is_compiled_wrapper

LOOKS = 3  # a model may be compiled after it was given to us, but hardly later than in step 1


class Compiled:
    """Tells the modules that hooks must leave alone, with everything below them.

    Example:
        >>> compiled = Compiled()
        >>> compiled.look()
        >>> compiled.why(nn.Linear(2, 2)), compiled.why(torch.compile(nn.Linear(2, 2), backend="eager"))
        ('', 'compiled')
    """

    def __init__(self) -> None:
        self._inner: set[int] = set()  # ids of modules that a torch.compile(module) runs
        self._looks = 0

    def look(self) -> None:
        """Find those that are compiled from outside: the first times that this is called."""
        if self._looks < LOOKS:
            self._looks += 1
            self._inner = {id(module) for module in find_compiled()}

    def forget(self) -> None:
        """Other models are to be watched: find what is compiled anew."""
        self._inner, self._looks = set(), 0

    def why(self, module: nn.Module) -> str:
        """Why a module and all below it must be left alone: "compiled", "scripted"; "" if they need not."""
        kind, forward = type(module), getattr(module, "forward", None)
        if (
            id(module) in self._inner
            or is_compiled_wrapper(kind)
            or getattr(module, "_compiled_call_impl", None) is not None  # module.compile()
            or hasattr(forward, "_torchdynamo_orig_callable")
            and not getattr(forward, "_torchdynamo_disable", False)
        ):
            return "compiled"
        return "scripted" if issubclass(kind, torch.jit.ScriptModule) else ""
