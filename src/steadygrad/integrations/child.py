"""The launcher's other end: watch this process, if it ever imports torch and takes an optimizer step."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from steadygrad.integrations.check import check_this_process
from steadygrad.integrations.importhook import when_torch_is_imported
from steadygrad.integrations.options import Observer, Options
from steadygrad.integrations.script import Watch


def watch_this_process(
    settings: Mapping[str, Any], make_observer: Callable[[Callable[[], object]], Observer]
) -> None:
    """Open a session when torch is imported, and close it when the interpreter ends.

    Args:
        settings: what :func:`steadygrad.integrations.launcher.child_environment` packed.
        make_observer: called when torch is imported; most processes never do. It is given what the observer has
            to call at the first step.
    """

    def begin() -> None:
        if "check" in settings:
            check_this_process(**settings["check"])
            return
        if arm is not None:
            arm.train()
            return
        try:
            run_dir = Path(settings["run_dir"])
            options = Options(
                runs=str(run_dir.parent),
                **{key: settings[key] for key in ("guard", "tier", "locate", "repair", "prescription")},
                sinks=tuple(settings["sinks"]),
            )
            script = sys.argv[0] if sys.argv and sys.argv[0].endswith(".py") else "python"
            # Registered at the first step, when the trace is open: what is registered last runs first.
            observer = make_observer(lambda: _close_at_exit(watch))
            watch = Watch(options, script=script, argv=sys.argv[1:], observer=observer, run_dir=run_dir)
        except Exception as error:  # noqa: BLE001 - an error of ours never stops the script
            print(
                f"steadygrad does not watch this process ({type(error).__name__}: {error})", file=sys.stderr
            )

    arm = None
    if "arm" in settings:
        from steadygrad.integrations.arm_child import ArmProcess  # no other process needs it

        arm = ArmProcess(**settings["arm"])
        arm.begin()
    when_torch_is_imported(begin)


def _close_at_exit(watch: Watch) -> None:
    import multiprocessing  # torch has it by now; most processes under a launcher never need it
    import multiprocessing.util

    atexit.register(_end, watch, os.getpid())
    if multiprocessing.parent_process() is not None:  # a forked one ends without atexit
        multiprocessing.util.Finalize(None, _end, args=(watch, os.getpid()), exitpriority=100)


def _end(watch: Watch, pid: int) -> None:
    """At exit the interpreter has left the exception that nobody caught here."""
    if os.getpid() == pid:
        watch.close(getattr(sys, "last_exc", None) or getattr(sys, "last_value", None))
