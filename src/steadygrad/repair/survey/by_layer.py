"""Surveys of what single layers have been seen to do, told under their paths."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any, Generic, Protocol, TypeVar

from torch import nn

from steadygrad.repair.effects.effect import Models
from steadygrad.repair.survey.surveyor import Surveyor


class Seen(Protocol):
    """What has been seen of one layer."""

    def facts(self) -> dict[str, Any] | None:
        """None if there is nothing to tell of it."""


S = TypeVar("S", bound=Seen)


class ByLayer(Surveyor, Generic[S]):
    """Tells ``{"modules": {path: facts}}`` of the layers that the models have and that something was seen of."""

    def __init__(self) -> None:
        self._seen: weakref.WeakKeyDictionary[nn.Module, S] = weakref.WeakKeyDictionary()
        self._names: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()

    def models(self, models: Models) -> None:
        for path, module in models.modules.items():
            self._names[module] = path

    def found(self) -> Mapping[str, Any]:
        modules = {}
        for module, seen in self._seen.items():
            path = self._names.get(module)
            facts = seen.facts() if path is not None else None
            if facts is not None:
                modules[path] = facts
        return {"modules": modules} if modules else {}
