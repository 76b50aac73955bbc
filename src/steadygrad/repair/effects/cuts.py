"""``pass_gradients``: gradients pass where the script cuts them off."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, ClassVar

from steadygrad.repair.effects._cuts import OPS, cut_of, place_of_cut
from steadygrad.repair.effects._modes import RunMode
from steadygrad.repair.effects.effect import Effect, NotApplicable

Place = tuple[str, int, str]


class PassGradients(Effect):
    """At named lines ``detach`` and ``.data`` give the tensor itself, and ``no_grad`` leaves gradients on.

    Args:
        value: ``{"sites": [{"file": "train.py", "line": 70, "op": "detach"}, ...]}``; ``op`` is "detach", "data" or
            "no_grad", the line of a decorated function is that of its first decorator.

    Where gradients are off already, as in an evaluation, nothing changes. What is then written into the tensor in
    place is written into the one that is differentiated, which torch may refuse. Not reached: compiled and scripted
    code, ``inference_mode``, other threads than the one that imported torch.
    """

    key: ClassVar[str] = "pass_gradients"
    eager: ClassVar[bool] = True

    def __init__(self, value: Any) -> None:
        sites = value.get("sites") if isinstance(value, Mapping) else None
        if not sites or any(site.get("op") not in OPS for site in sites):
            raise NotApplicable(
                f'pass_gradients is {{"sites": [...]}}, each with "file", "line" and an "op" of {", ".join(OPS)}; '
                f"got {value!r}"
            )
        self._mode = _Passing({_place(str(s["file"]), int(s["line"]), s["op"]) for s in sites})

    def install(self) -> None:
        self._mode.enter()

    def remove(self) -> None:
        self._mode.leave()


class _Passing(RunMode):
    def __init__(self, places: set[Place]) -> None:
        super().__init__()
        self._places = places

    def call(self, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        op = cut_of(name, func, args)
        site = place_of_cut(func) if op else None
        if site is None or _place(site.path, site.line, op) not in self._places:
            return func(*args, **kwargs)
        return None if op == "no_grad" else args[0]


def _place(path: str, line: int, op: str) -> Place:
    return os.path.basename(path), line, op  # the name alone: a script may change its directory
