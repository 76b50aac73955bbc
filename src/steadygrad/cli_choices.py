"""The values that options of the command line take by name."""

from __future__ import annotations

from enum import Enum


class Closeness(str, Enum):
    """The values of ``--tier``."""

    cheap = "cheap"
    standard = "standard"
    deep = "deep"


class Guard(str, Enum):
    """The values of ``--guard``."""

    off = "off"
    warn = "warn"
    on = "on"


class Engine(str, Enum):
    """The values of ``--engine``."""

    local = "local"
    ray = "ray"


class LiveRepair(str, Enum):
    """The values of ``--repair``."""

    off = "off"
    live = "live"
