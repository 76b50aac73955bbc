"""Which steps are left to the device to decide on: the host goes on, and is told a step later."""

from __future__ import annotations

from torch.optim import Optimizer

from steadygrad.guard.guard import Guard
from steadygrad.integrations.docket import YOUNG
from steadygrad.probe.ended import Unread
from steadygrad.probe.probe import Probe
from steadygrad.rules.engine import RuleSet


def leave_to_device(optimizer: Optimizer, probe: Probe, guard: Guard, rules: RuleSet) -> Unread | None:
    """Have the device decide on the coming step, if that comes to the same as deciding on it here.

    Args:
        optimizer: about to step, in the user's own call.
        probe: reads its gradients.
        guard: says what is skipped, and clears up behind it. Nobody else may have a say in the step.
        rules: of the run; every step before this one has been shown to them, or waits for them as an ordinary one.

    Returns:
        What is on its way; None, with nothing done, where the host has to decide.
    """
    index = probe.optimizer_index(optimizer)
    history = rules.history(index)
    if history.num_healthy < YOUNG or not guard.leaves_to_device(optimizer, index):
        return None
    unread = probe.before_unread(optimizer)
    if unread is not None:
        verdict = guard.before_unread(optimizer, index, unread.norms, history)
        unread.send(verdict.skip, verdict.became_nan)
    return unread
