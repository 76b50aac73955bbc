"""What the layers and builders take to make modules from."""

from __future__ import annotations

from typing import Any

from torch import nn


def factory(name: str, value: Any) -> None:
    """A class or function that makes a module; a module itself would be shared by all places that ask for one."""
    if isinstance(value, nn.Module) or not callable(value):
        raise TypeError(
            f"{name} must be a module class or a factory, got {type(value).__name__}: pass the class itself, or "
            "functools.partial of it with its settings"
        )
