"""In an arm's process: run a changed text of the user's script or modules as if the files themselves were changed.

The new texts lie in the scratch folder under the names of the files, so whatever opens one of them reads the new
text: the tracebacks' source lines, ``inspect``, spawned loader workers. Two readers do not ask ``open``, and are
seen to here: the interpreter, which reads its main script in C, and the import system, which takes bytecode.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Collection
from importlib.machinery import SourceFileLoader
from types import CodeType
from typing import Any

from steadygrad.integrations.overlay import Overlay
from steadygrad.integrations.script import Target, _execute

MAIN = "from steadygrad.integrations.patched import run_main; run_main()"


def put_in_place(overlay: Overlay, texts: dict[str, str]) -> list[str]:
    """In the parent: write the new texts to the scratch folder, and return the true names of the files.

    Args:
        texts: path of an existing file -> its new text.
    """
    keys = []
    for path, text in texts.items():
        where = overlay.writing(path, copy=False)
        keys.append(overlay.key(path, follow=True))
        with open(where, "w", encoding="utf-8", newline="") as file:
            file.write(text)
    return keys


def import_patched(overlay: Overlay, files: Collection[str]) -> None:
    """From now on imports of these files compile the new text."""
    original = SourceFileLoader.get_code

    def get_code(self: Any, fullname: str) -> CodeType | None:
        path = self.get_filename(fullname)
        if overlay.key(path, follow=True) not in files:
            return original(self, fullname)
        code: CodeType = self.source_to_code(self.get_data(path), path)
        return code

    SourceFileLoader.get_code = get_code  # type: ignore[method-assign, assignment]


def take_over_main(overlay: Overlay, files: Collection[str]) -> None:
    """At the interpreter's start: if its main script is one of the files, begin again so that we can run it."""
    if not sys.argv or sys.argv[0] in ("", "-c", "-m") or overlay.key(sys.argv[0], follow=True) not in files:
        return
    flags = sys.orig_argv[1 : len(sys.orig_argv) - len(sys.argv)]
    os.execv(sys.executable, [sys.executable, *flags, "-c", MAIN, *sys.argv])


def run_main() -> None:
    """Run the script that the arguments name, as the interpreter would have run it."""
    ending = _execute(Target(sys.argv[1], tuple(sys.argv[2:])))
    if ending.interrupted:
        sys.excepthook = lambda *_: None  # its traceback has been printed; the interpreter dies by SIGINT
        raise KeyboardInterrupt
    raise SystemExit(ending.status)
