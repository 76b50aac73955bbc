"""``sg.watch``: for a plain loop, otherwise unchanged."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeVar

from torch import nn
from torch.optim import Optimizer

from steadygrad.integrations.in_step import InStep
from steadygrad.integrations.options import Observer, Options
from steadygrad.integrations.ranks.group import check_process_group
from steadygrad.integrations.session import Session
from steadygrad.probe.tiers import TIERS
from steadygrad.records import Action, Finding, RunSummary
from steadygrad.sinks import Sink, checked_sinks

T = TypeVar("T")


class Watcher:
    """What :func:`watch` returns: a context manager, and the run as it goes.

    Attributes:
        run_dir: where the run is recorded; open it with :class:`steadygrad.Run` or ``steadygrad report``.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._in_step: InStep | None = None
        self.run_dir: Path = session.run_dir

    @property
    def findings(self) -> list[Finding]:
        """What the rules have noticed so far."""
        self._session.settle()
        return list(self._session._reasons.findings)

    @property
    def actions(self) -> list[Action]:
        """What the guard has done so far."""
        self._session.settle()
        return list(self._session.record.actions)

    def step(self, fn: Callable[..., T], *batch: Any, **more: Any) -> T:
        """Take one training step as ``fn(*batch, **more)``, and repair the run where that step blows it up.

        The last 64 batches are held. When the guard goes back to a good state, they are replayed from there: once
        with what the guard would do alone (the twin), and once with each remedy that acts at the step and can be
        undone. The remedy that is clearly better than the twin stays in force, with the state that its replay has
        trained; without one the guard acts as it does alone. Every replay goes past the step that failed.

        Args:
            fn: takes one step with a batch, from ``zero_grad`` to ``optimizer.step()``. It is called again for batches
                that it has had, so it must not draw batches, count or log by itself.
            batch: what it is given. Held, not copied: give it new tensors each time.

        Returns:
            What ``fn`` returns; after a repair, what it returned for this batch in the replay that was kept.

        Example:
            >>> import torch, tempfile, steadygrad as sg
            >>> model = torch.nn.Linear(4, 1)
            >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            >>> def train(x, y):
            ...     optimizer.zero_grad()
            ...     loss = torch.nn.functional.mse_loss(model(x), y)
            ...     loss.backward()
            ...     optimizer.step()
            ...     return loss.item()
            >>> with sg.watch(model, optimizer, runs=tempfile.mkdtemp()) as run:
            ...     for _ in range(20):
            ...         x = torch.randn(8, 4)
            ...         loss = run.step(train, x, x.sum(1, keepdim=True))
            >>> run.actions
            []
        """
        if self._in_step is None:
            self._in_step = InStep(self._session)
        return self._in_step(fn, batch, more)

    def close(self) -> RunSummary:
        """Stop watching: remove every hook, finish the record. Can be called again."""
        return self._session.close()

    def __enter__(self) -> Watcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._session.close(error)


def watch(
    model: nn.Module | Iterable[nn.Module],
    *optimizers: Optimizer,
    guard: Literal["off", "warn", "on"] = "on",
    runs: str | Path = "runs",
    name: str | None = None,
    observer: Observer | None = None,
    repair: Literal["off", "live"] = "off",
    tier: Literal["cheap", "standard", "deep"] = "cheap",
    sink: str | Sink | Iterable[str | Sink] = (),
    process_group: Any = None,
) -> Watcher:
    """Watch, guard and record a training loop.

    A healthy run is bit-identical with and without it. A step whose gradient is not finite is skipped whole; a
    run that blows up is taken back to its last good state and changed as little as helps; when nothing helps,
    :class:`steadygrad.GuardStop` is raised at the step.

    Args:
        model: the model, or several (a GAN). Only used for names, buffers and activations.
        optimizers: each optimizer whose steps are to be watched; at least one.
        guard: ``on`` acts; ``warn`` only says what it sees; ``off`` only records.
        runs: folder that holds the run directories.
        name: name of the run; the script's name if None.
        observer: is told of every step, finding and action.
        repair: ``live``: after a rollback the steps that follow are trials of remedies, and the one that helps stays in
            force. In a loop that steps by :meth:`Watcher.step` remedies are tried without it, on batches it has had.
        tier: how closely the probe looks, :class:`steadygrad.probe.tiers.Tier`; what it costs: docs/performance.md.
        sink: where else the numbers go: ``tensorboard``, ``wandb``, ``mlflow``, ``trackio``, an object of your own
            (:class:`steadygrad.sinks.Sink`), or several.
        process_group: the ranks of ``torch.distributed`` that skip, clip and go back together; all of them if None.
            It has to hold all ranks that one parameter is sharded over. See docs/distributed.md.

    Returns:
        A :class:`Watcher`. Use it as a context manager, or call ``close()`` at the end.

    Raises:
        TypeError: ``model`` or an optimizer is not one.
        ValueError: no optimizer, an unknown ``guard``, ``repair`` or ``tier``, a name that is no plain name, an
            optimizer that is already watched, a process group without this rank. In the first step, and on all ranks:
            they watch with different settings.

    Example:
        >>> import torch, tempfile, steadygrad as sg
        >>> model = torch.nn.Linear(4, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> with sg.watch(model, optimizer, runs=tempfile.mkdtemp()) as run:
        ...     for _ in range(20):
        ...         optimizer.zero_grad()
        ...         model(torch.ones(8, 4)).square().mean().backward()
        ...         optimizer.step()
        >>> run.actions
        []
    """
    models = list(model) if isinstance(model, Iterable) and not isinstance(model, nn.Module) else [model]
    for item in models:
        if not isinstance(item, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module or several, got {type(item).__name__}")
    if not optimizers:
        raise ValueError("watch needs at least one optimizer: watch(model, optimizer)")
    for optimizer in optimizers:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"each optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
    if guard not in ("off", "warn", "on"):
        raise ValueError(f"guard must be 'off', 'warn' or 'on', got {guard!r}")
    if tier not in TIERS:
        raise ValueError(f"tier must be one of {', '.join(TIERS)}, got {tier!r}")
    if repair not in ("off", "live"):
        raise ValueError(f"repair must be 'off' or 'live', got {repair!r}")
    if repair == "live" and guard != "on":
        raise ValueError(
            f"repair='live' begins where the guard has rolled back: it needs guard='on', got {guard!r}"
        )
    check_process_group(process_group)
    sinks = checked_sinks(sink)
    script = sys.argv[0] if sys.argv and sys.argv[0].endswith(".py") else "run"
    session = Session(
        Options(runs=str(runs), name=name, guard=guard, tier=tier, repair=repair, sinks=sinks),
        script=script,
        observer=observer,
        process_group=process_group,
    )
    try:
        session.attach(models, optimizers)
    except ValueError:
        session.close()
        raise
    return Watcher(session)
