"""May the state of a training be saved over its last good checkpoint?"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.optim import Optimizer

from steadygrad.guard.state import TrainingState
from steadygrad.integrations.loop import Watcher

SHOWN = 3  # names in a sentence


class Saving:
    """Looks at a training when it is about to be saved.

    Args:
        model: whose values are saved; infinities that it holds now, and goes on to hold, are its own (a mask).
        optimizers: whose state is saved.
    """

    def __init__(self, model: nn.Module, optimizers: Sequence[Optimizer]) -> None:
        self._state = TrainingState([model], optimizers)
        self._state.nonfinite_names()

    def refusal(self, run: Watcher | None) -> str | None:
        """Why the state is not to be saved, in words; None if it is good. All ranks get an answer of the same kind.

        One read of all values. Trials of remedies are decided first.
        """
        reason = self._own(run)
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return reason
        if self._any_rank(reason is not None) and reason is None:
            return "the state of another rank is not healthy"
        return reason

    def _own(self, run: Watcher | None) -> str | None:
        if run is not None:
            run._session.settle(trials=True)
        names = self._state.nonfinite_names()
        if not names:
            guard = run._session._guard if run is not None else None
            incident = guard.policy.incident if guard is not None else None
            return f"{incident.message}, and the run has not recovered yet" if incident is not None else None
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        return f"{', '.join(names[:SHOWN])}{more} not finite"

    def _any_rank(self, refused: bool) -> bool:
        params = [t.tensor for t in self._state.tensors()[:1]]
        device = params[0].device if params else torch.device("cpu")
        flag = torch.tensor([float(refused)], device=device)
        torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
        return bool(flag.item())  # host sync
