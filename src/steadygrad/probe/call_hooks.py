"""Global hooks around the call of every module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils.hooks import RemovableHandle


class CallHooks:
    """In force from :meth:`install` to :meth:`remove`. Does not keep what it calls alive after that."""

    def __init__(self) -> None:
        self._handles: list[RemovableHandle] = []

    @property
    def installed(self) -> bool:
        return bool(self._handles)

    def install(self, enter: Callable[..., Any], leave: Callable[..., Any]) -> None:
        """Call ``enter(module, args)`` before each forward pass, ``leave(module, args, output)`` when it is over."""
        self._handles = [
            register_module_forward_pre_hook(enter),
            register_module_forward_hook(leave, always_call=True),
        ]

    def remove(self) -> None:
        """Can be called again."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
