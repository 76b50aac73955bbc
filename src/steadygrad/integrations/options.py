"""What a watched run can be told, and whom it talks to. Plain data: this loads neither torch nor numpy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from steadygrad.records import Action, Finding, StepStats

GuardMode = Literal["off", "warn", "on"]
GUARD_MODES: tuple[GuardMode, ...] = ("off", "warn", "on")
RepairMode = Literal["off", "live"]
TierName = Literal["cheap", "standard", "deep"]


@dataclass(frozen=True)
class Options:
    """How a run is watched: what ``[tool.steadygrad]``, ``STEADYGRAD_*`` and the flags can set.

    Example:
        >>> Options(guard="warn").runs
        'runs'
    """

    runs: str = "runs"  # folder of the run directories; absolute where the script may change its directory
    name: str | None = None  # name of the run directory; None: the script's name and a number
    guard: GuardMode = "on"  # off: record only; warn: findings, no action; on: acts
    tier: TierName = "cheap"  # how closely the probe looks: steadygrad.probe.tiers
    locate: int | None = None  # look at every operation from this step on, until the first NaN is found; slow
    repair: RepairMode = "off"  # live: after a rollback remedies are tried on the steps that follow
    sinks: tuple[Any, ...] = ()  # where else the numbers go: names, or objects like steadygrad.sinks.Sink
    prescription: Mapping[str, Any] | None = None  # in force from the first step: plan, name, file, eager


class Observer(Protocol):
    """Somebody who is told how the run goes, as the terminal is. Called in the training loop: must be cheap."""

    def started(self, run_dir: str) -> None:
        """The run has a directory: said once."""

    def step(self, stats: StepStats, skipped: int, incidents: int) -> None:
        """An optimizer step is over; ``skipped`` and ``incidents`` count from the start of the run."""

    def finding(self, finding: Finding) -> None:
        """A rule noticed something."""

    def action(self, action: Action) -> None:
        """The guard did something."""

    def note(self, text: str) -> None:
        """What the user should know about the watching itself."""
