"""What a sink is: somebody outside who is given the numbers of a run, what happened in it, and its report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from steadygrad.records import Action, Finding


class Event(NamedTuple):
    """Something that happened, for a dashboard."""

    step: int
    name: str  # of the rule, e.g. "loss_spike", or of what the guard did, e.g. "rollback"
    severity: str  # "warning", "alarm", or "action" for what the guard did
    where: str  # a parameter, a module, "loss", "model"; "" for an action
    text: str  # a sentence
    optimizer: int = 0

    @property
    def line(self) -> str:
        """All of it in one line.

        Example:
            >>> Event(7, "loss_spike", "warning", "loss", "the loss jumped to 9.1").line
            'step 7: loss_spike (warning, loss): the loss jumped to 9.1'
        """
        about = ", ".join(word for word in (self.severity, self.where) if word)
        return f"step {self.step:,}: {self.name} ({about}): {self.text}"


class Sink(Protocol):
    """Somebody who takes what a run gives. An object of your own with these methods will do.

    All methods are called from one thread that is not the training's, one at a time. What they raise ends the sink,
    with one note, and never the run. A method ``flush()``, where there is one, is called after each batch of calls, and
    an attribute ``every`` is the cadence: 10 is given each tenth step.

    Example:
        >>> class Printer:
        ...     def write(self, scalars, step):
        ...         print(step, scalars["steadygrad/grad_norm"])
        ...     def event(self, event):
        ...         print(event.line)
        ...     def artifact(self, path):
        ...         print("the report is", path.name)
        ...     def close(self):
        ...         print("over")
        >>> Printer().write({"steadygrad/grad_norm": 1.5}, 0)
        0 1.5
    """

    def write(self, scalars: dict[str, float], step: int) -> None:
        """The numbers of one optimizer step, at most 32 names in a run, see ``steadygrad.sinks.aggregates``. May hold
        nan and infinities: a loss that is NaN is given as NaN."""

    def event(self, event: Event) -> None:
        """A rule noticed something, or the guard acted."""

    def artifact(self, path: Path) -> None:
        """The run is over, and this is its report, an HTML file."""

    def close(self) -> None:
        """Nothing more will come."""


METHODS = ("write", "event", "artifact", "close")


def is_sink(thing: Any) -> bool:
    """Whether it has what a sink needs.

    Example:
        >>> is_sink(print)
        False
    """
    return all(callable(getattr(thing, name, None)) for name in METHODS)


def event_of_finding(finding: Finding) -> Event | None:
    """What a dashboard is told of a finding; nothing of one that is information only.

    Example:
        >>> from steadygrad.records import Finding
        >>> event_of_finding(Finding("G103", "loss_spike", 7, "loss", "the loss jumped")).line
        'step 7: loss_spike (warning, loss): the loss jumped'
    """
    if finding.severity == "info":
        return None
    return Event(
        finding.step, finding.rule, finding.severity, finding.where, finding.message, finding.optimizer
    )


def event_of_action(action: Action) -> Event:
    """What a dashboard is told of something that the guard did.

    Example:
        >>> from steadygrad.records import Action
        >>> event_of_action(Action(8, "skip", "the gradient is NaN", "G100")).line
        'step 8: skip (action): the gradient is NaN'
    """
    return Event(action.step, action.action, "action", "", action.reason, action.optimizer)
