"""steadygrad keeps PyTorch training steady.

The public names, one explicit list. Each is loaded when it is first used, so that the command line starts
at once and a watched script still decides what happens before torch is imported.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "watch": "steadygrad.integrations.loop",
    "Watcher": "steadygrad.integrations.loop",
    "forecast": "steadygrad.forecasting",
    "Forecast": "steadygrad.forecasting",
    "locate": "steadygrad.locating",
    "Recompute": "steadygrad.locating",
    "is_healthy": "steadygrad.guard.health",
    "repair_training": "steadygrad.integrations.mend_here",
    "FirstNonFinite": "steadygrad.records",
    "GuardStop": "steadygrad.guard.policy",
    "Run": "steadygrad.trace.reader",
    "Finding": "steadygrad.records",
    "Action": "steadygrad.records",
    "Cause": "steadygrad.records",
    "StepStats": "steadygrad.records",
    "ParamInfo": "steadygrad.records",
    "RunSummary": "steadygrad.records",
}

_ROOMS = (
    "clip",
    "init",
    "nn",
    "optim",
    "plasticity",
    "precision",
    "quantum",
    "recipes",
    "schedule",
    "selfsup",
    "testing",
)  # used as ``sg.clip.ZClip``

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f"steadygrad.{name}")
    if name not in _PUBLIC:
        raise AttributeError(f"module 'steadygrad' has no attribute {name!r}")
    value = getattr(import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, *_ROOMS])
