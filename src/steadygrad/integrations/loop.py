"""``sg.watch``: for a plain loop, otherwise unchanged."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeVar

from torch import nn
from torch.optim import Optimizer

from steadygrad.integrations.in_step import InStep
from steadygrad.integrations.options import Observer, Options
from steadygrad.integrations.ranks.group import check_process_group
from steadygrad.integrations.session import Session
from steadygrad.integrations.watcher_state import put_state, take_state
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

    def state_dict(self, *, data: Any = None, snapshots: bool | None = None) -> dict[str, Any]:
        """Everything that the watching of this run rests on, to be saved with each checkpoint of the loop.

        The detectors' history, what the guard has decided and has in force, its snapshots, the counters, the random
        number generators. Of dicts, lists, numbers, strings and tensors alone: ``torch.save`` takes it, and
        ``torch.load`` with ``weights_only=True``. Models, optimizers and schedulers are the loop's own to save. Steps
        that wait are judged first, and trials of remedies are decided: to be called before the model is saved.

        Args:
            data: what gives the batches, if it has ``state_dict()`` (a stateful loader or sampler): its state is kept.
            snapshots: whether the states that the guard can go back to are in it, up to four times the size of model
                and optimizer. None: where they take 32 MB or less together, in a run of one process. Without them a
                resumed run can go back to this step, and not further.

        Raises:
            TypeError: ``data`` has no ``state_dict``.
            ValueError: the watcher is closed.

        Example:
            >>> import torch, tempfile, steadygrad as sg
            >>> model = torch.nn.Linear(4, 1)
            >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            >>> with sg.watch(model, optimizer, runs=tempfile.mkdtemp()) as run:
            ...     model(torch.ones(8, 4)).square().mean().backward()
            ...     optimizer.step()
            ...     checkpoint = {"model": model.state_dict(), "watcher": run.state_dict()}
            >>> with sg.watch(model, optimizer, runs=tempfile.mkdtemp()) as run:
            ...     short = run.load_state_dict(checkpoint["watcher"])
            >>> print(short[0].partition(":")[0])
            the position in the data was not restored
        """
        return take_state(self._session, data, snapshots)

    def load_state_dict(
        self, state: Mapping[str, Any], *, data: Any = None, rng: bool = True
    ) -> tuple[str, ...]:
        """Go on where :meth:`state_dict` was taken: before the first step, with the same optimizers in the same order.

        The run is then, bit for bit, the one that was not interrupted, if the loop puts back model, optimizers,
        schedulers and scaler, and goes on with the next batch. It has a run directory of its own; its trace begins
        with the next step and names the run that it comes from.

        Args:
            state: of a watcher of the same training.
            data: what gives the batches: its state is put back as well, if it was saved.
            rng: put the random number generators back (torch with its devices, numpy, random).

        Returns:
            What could not be put back, in sentences, which also go on record.

        Raises:
            ValueError: it is of another version or of other optimizers, or steps have been taken already. Nothing was
                changed.
        """
        return put_state(self._session, state, data, rng)

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
    return open_watcher(
        model,
        optimizers,
        door="sg.watch",
        guard=guard,
        runs=runs,
        name=name,
        observer=observer,
        repair=repair,
        tier=tier,
        sink=sink,
        process_group=process_group,
    )


def open_watcher(
    model: nn.Module | Iterable[nn.Module],
    optimizers: Sequence[Any],
    *,
    door: str,
    guard: Literal["off", "warn", "on"],
    runs: str | Path,
    name: str | None,
    observer: Observer | None,
    repair: Literal["off", "live"],
    tier: Literal["cheap", "standard", "deep"],
    sink: str | Sink | Iterable[str | Sink],
    process_group: Any = None,
) -> Watcher:
    """As :func:`watch`. ``door``: what the user has called, for an error that names it."""
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
        door=door,
        process_group=process_group,
    )
    try:
        session.attach(models, [_inner(optimizer) for optimizer in optimizers])
    except ValueError:
        session.close()
        raise
    return Watcher(session)


def _inner(optimizer: Optimizer) -> Optimizer:
    """The optimizer that Accelerate's wrapper holds: the wrapper is called at every micro-batch, and steps at some."""
    inner = getattr(optimizer, "optimizer", None)
    if type(optimizer).__module__.partition(".")[0] == "accelerate" and isinstance(inner, Optimizer):
        return inner
    return optimizer
