"""A list of the writes that went past the scratch folder, as far as Python is asked about them."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

from steadygrad.integrations.overlay import Overlay

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Audit events that stand for a write, and which of their arguments are the paths.
EVENTS = {
    "os.mkdir": (0,),
    "os.remove": (0,),
    "os.rmdir": (0,),
    "os.rename": (0, 1),
    "os.link": (1,),
    "os.symlink": (1,),
    "os.truncate": (0,),
    "sqlite3.connect": (0,),
}


class Escapes:
    """An audit hook that notes writes to protected files in the file ``escaped`` of the scratch folder.

    Args:
        overlay: says which files are protected.
        inside: its attribute ``now`` is true while this thread does work of ours.
    """

    def __init__(self, overlay: Overlay, inside: threading.local) -> None:
        self._overlay, self._inside = overlay, inside
        self._known: set[str] = set()

    def heard(self, event: str, args: tuple[Any, ...]) -> None:
        """To be given to ``sys.addaudithook``. Never raises: the script must not fall over its safety net."""
        if event == "open":
            if not _writes(args[1], args[2]):
                return
            paths = args[:1]
        elif event in EVENTS:
            paths = tuple(args[i] for i in EVENTS[event] if i < len(args))
        else:
            return
        if getattr(self._inside, "now", False):
            return
        self._inside.now = True
        try:
            for path in paths:
                if isinstance(path, (str, bytes, os.PathLike)):
                    self._note(os.fsdecode(path))
        except Exception:  # noqa: BLE001
            return
        finally:
            self._inside.now = False

    def _note(self, path: str) -> None:
        if path in ("", ":memory:"):  # a database without a file
            return
        key = self._overlay.key(path, follow=True)
        if key in self._known or not self._overlay.protected(key) or os.path.isdir(key):
            return
        self._known.add(key)
        with Path(self._overlay.folder, "escaped").open(
            "a", encoding="utf-8", errors="surrogateescape"
        ) as file:
            file.write(f"{key}\n")


def _writes(mode: Any, flags: Any) -> bool:
    if isinstance(mode, str):
        return bool(set(mode) & set("wax+"))
    return isinstance(flags, int) and bool(flags & WRITES)
