"""The frameworks' own classes, of the major version that the callbacks are written for."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any


def framework_class(*modules: str, name: str) -> Any:
    """The framework's class, from the first of these modules that is installed; a plain object where none is."""
    for module in modules:
        try:
            return getattr(import_module(module), name)
        except ImportError:
            continue
    return object


def check_major(kind: type, wanted: int, what: str) -> None:
    """Refuse a framework of another major version: its trainer would not call us where we think.

    Args:
        kind: a class of the framework.
        wanted: the major version that we know.
        what: whose class it is, for people: ``this Trainer``.

    Raises:
        ImportError: naming both versions.
    """
    package = kind.__module__.partition(".")[0]
    version = str(getattr(sys.modules.get(package), "__version__", ""))
    major = version.partition(".")[0]
    if major.isdigit() and int(major) != wanted:
        raise ImportError(
            f"SteadyCallback is written for {package} {wanted}.x, and {what} is of {package} {version}: "
            f"pip install '{package}=={wanted}.*', or a steadygrad that knows {package} {major}"
        )
