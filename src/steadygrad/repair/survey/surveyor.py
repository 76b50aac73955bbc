"""A surveyor looks on while the twin trains, and tells what it has seen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from steadygrad.repair.effects.effect import Effect


class Surveyor(Effect):
    """An effect that changes nothing, and tells what it has seen; its ``key`` names it in the survey."""

    def found(self) -> Mapping[str, Any]:
        """What JSON can hold; empty if there is nothing to tell."""
        return {}
