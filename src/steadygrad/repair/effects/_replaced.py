"""Functions of torch with one of ours in their place."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any


class Replaced:
    """Puts functions in the place of attributes, and takes them out again.

    What others have put around one of ours by then stays, and passes calls on to it.
    """

    def __init__(self) -> None:
        self._ours: list[tuple[Any, str, Any, Any]] = []

    def put(self, owner: Any, name: str, make: Callable[[Any], Any]) -> None:
        """``make`` is given the function that is there, and returns ours. Nothing, if there is none."""
        original = getattr(owner, name, None)
        if original is None:
            return
        ours = functools.wraps(original)(make(original))
        setattr(owner, name, ours)
        self._ours.append((owner, name, ours, original))

    def remove(self) -> None:
        """Can be called again."""
        for owner, name, ours, original in reversed(self._ours):
            if getattr(owner, name) is ours:
                setattr(owner, name, original)
        self._ours.clear()
