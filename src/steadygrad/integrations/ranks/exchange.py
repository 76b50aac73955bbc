"""One sum over all ranks in each step, on a process group of our own."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from steadygrad.integrations.ranks.group import Group, RankLost, named
from steadygrad.integrations.ranks.meeting import Meeting


class Exchange:
    """Adds up a vector over the ranks of a group.

    By gloo, on the CPU, beside the process groups of the user: nothing of his is delayed, reordered or timed out by
    it, whatever his backend is. The numbers are on the host anyway: the guard decides there.

    Args:
        group: who takes part; every rank of it makes this at the same time.
        meeting: where they have met.

    Raises:
        RankLost: not all of them came in time.
    """

    def __init__(self, group: Group, meeting: Meeting) -> None:
        self._group, self._meeting = group, meeting
        self.count = 0  # sums so far
        if not dist.is_gloo_available():
            raise RankLost("this torch has no gloo, by which the ranks decide together")
        store = dist.PrefixStore("exchange", meeting.store)
        try:
            self._gloo: Any = dist.ProcessGroupGloo(store, group.me, len(group.ranks), meeting.timeout)
        except RuntimeError as error:
            raise RankLost(f"the ranks could not be connected: {_first_line(error)}") from error

    def add_up(self, vector: Tensor) -> Tensor:
        """The sum of what all ranks give, in place. Every rank waits here for the slowest.

        Args:
            vector: (n,) float64 on the CPU, n the same on all ranks.

        Raises:
            RankLost: not all of them came in time, or one has left; it is named.
        """
        if self._gloo is None:
            raise RankLost("this rank has left")
        self.count += 1
        try:
            self._gloo.allreduce([vector]).wait()  # torch's default is the sum
        except RuntimeError as error:
            self._gloo = None  # closes the connections: whoever waits for us is told at once
            left = self._meeting.left()
            if left:
                raise RankLost(" and ".join(left)) from error
            missing = self._meeting.missing(self.count)
            who = named(missing) if missing else "a rank"
            raise RankLost(f"{who} did not come to step {self.count} ({_first_line(error)})") from error
        return vector

    def leave(self, reason: str) -> None:
        """Take no part any more. Those who wait are told at once."""
        self._meeting.leave(reason)
        self._gloo = None


def zeros(n: int) -> Tensor:
    """A vector to give: (n,) float64 on the CPU, whatever the script has set as its default device."""
    return torch.zeros(n, dtype=torch.float64, device="cpu")


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0].rpartition("] ")[2]
