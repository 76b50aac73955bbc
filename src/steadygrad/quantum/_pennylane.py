"""PennyLane, imported where a circuit is made."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def pennylane() -> Any:
    """The package.

    Raises:
        ImportError: it is not installed, with the extra that brings it.
    """
    try:
        return import_module("pennylane")
    except ModuleNotFoundError as error:
        if error.name != "pennylane":
            raise
        raise ImportError("quantum layers need PennyLane: pip install 'steadygrad[quantum]'") from None
