"""Repeat a script with one thing changed, beside the unchanged twin: every run in a process of its own.

The runs take place in the user's folder: whatever the script writes there, each run writes again. They get the same
hash seed, and where the script seeds no generator, the same seeds; what it takes from the clock stays different.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from steadygrad.integrations.arms import ArmRequest, ArmResult, ArmRunner
from steadygrad.integrations.script import Target

if TYPE_CHECKING:
    from steadygrad.diagnose.interventions import Intervention
    from steadygrad.diagnose.trial import TrialReport
    from steadygrad.integrations.investigation import Rerun

TAIL = 2000  # characters of a script's own errors that are told


class NoReport(Exception):
    """A run came to nothing that can be judged; the message says why."""


def rerun_script(
    words: Sequence[str],
    target: Target | None,
    *,
    steps: int | None = None,
    jobs: int = 2,
    most: int = 4,
    timeout: float | None = None,
    told: Callable[[str], None] = lambda line: None,
) -> Rerun:
    """Find out why a script's training fails by repeating it.

    Args:
        words: the command, or the script with its arguments.
        target: the script or module among them; None if the words are another command.
        steps: optimizer steps of each run at most; it is ended there. None: until the script ends.
        jobs: runs at once, at least 1.
        most: changes that are tried at most.
        timeout: seconds that a run may take; None: any for the twin, five times the twin's and a minute for the others.
        told: called with a line when a run begins.

    Raises:
        NoReport: the unchanged script took no optimizer step, or too long.
        OSError: the command cannot be started.
        Interrupted: by Ctrl-C and the like; every run has been ended.
    """
    from steadygrad.integrations.investigation import investigate

    with ArmRunner(words, target, jobs=jobs, timeout=timeout, scratch=False) as runner:
        told("the unchanged script")
        twin = runner.run(ArmRequest(steps=steps))
        if twin.report is None:
            raise NoReport(_why(twin))

        def run_arms(chosen: Sequence[Intervention]) -> list[tuple[TrialReport | None, str]]:
            requests = [
                ArmRequest(change.plan, steps=steps, eager="standardise_inputs" in change.plan)
                for change in chosen
            ]
            results = runner.run_all(requests, begun=lambda index: told(chosen[index].name))
            return [(result.report, "" if result.report else _why(result)) for result in results]

        return investigate(twin.report, run_arms, most=most)


def _why(result: ArmResult) -> str:
    said = result.stderr_tail.strip()[-TAIL:]
    return result.note + (f". It said:\n{said}" if said and not result.timed_out else "")
