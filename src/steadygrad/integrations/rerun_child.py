"""The other end of :mod:`steadygrad.integrations.rerun`: one trial, in a process of its own, told to a file."""

from __future__ import annotations

import atexit
import os
import random
import sys
from collections.abc import Mapping
from pathlib import Path

from steadygrad.integrations.check import OWN_ERROR, complain, leave

SEED = 0
FRESH = (0x80000000, 623)  # first word and position of a numpy generator that nobody has seeded or used


def seed_before_the_script() -> None:
    """At the interpreter's start: a script that seeds nothing draws the same numbers in every run."""
    random.seed(SEED)


def _seed_torch() -> None:
    """Right after torch is imported. What the script seeds itself, before or after, stays as it seeds it."""
    import numpy
    import torch

    torch.manual_seed(SEED)
    _, words, position, *_ = numpy.random.get_state()
    if (int(words[0]), position) == FRESH:
        numpy.random.seed(SEED)


def try_this_process(folder: str, plan: Mapping[str, float], steps: int | None) -> None:
    """In the child, when torch has been imported: put the plan in force. What fails of ours ends the child.

    The report is written when the script ends, or when the trial has ended before it: then the process ends as well,
    without the script's ``finally`` blocks and exit handlers, which would save what has not been trained.
    """

    def failed(error: Exception) -> None:
        complain(error)
        leave(OWN_ERROR)

    def write() -> None:
        from steadygrad.trace.jsontext import dumps  # loads numpy: not in a process that never trains

        report = trial.report()
        if report is not None:
            path = Path(folder) / f"trial-{os.environ.get('RANK', '0')}-{os.getpid()}.json"
            part = path.with_suffix(".part")
            part.write_text(dumps(report.to_json()))
            os.replace(part, path)

    def at_end() -> None:
        try:
            write()
        except Exception as error:  # noqa: BLE001 - without us the script would train to its end
            failed(error)
        leave(0)

    try:
        from steadygrad.integrations.trial import Trial

        _seed_torch()
        trial = Trial(plan, failed=failed, steps=steps, at_end=at_end)
        trial.install()
    except Exception as error:  # noqa: BLE001 - an unchanged run must not be taken for a changed one
        failed(error)

    def at_exit() -> None:
        """The script has ended by itself: registered before any handler of its own, so called after them."""
        if os.getpid() == process:
            try:
                trial.close()
                write()
            except Exception as error:  # noqa: BLE001
                complain(error)
                sys.stderr.flush()

    process = os.getpid()
    atexit.register(at_exit)
