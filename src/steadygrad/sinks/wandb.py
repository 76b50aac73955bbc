"""Into Weights & Biases: the script's own run if it has one, else one of ours. ``WANDB_MODE`` counts as ever."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from steadygrad.sinks.sink import Event, Sink

STEP = "steadygrad/step"
COLUMNS = ["step", "optimizer", "name", "severity", "where", "text"]

EVERY = 1  # steps


def prepare(run_dir: Path) -> Callable[[], Sink]:
    """Import the package and look for the script's run, in the training's thread; what is returned opens the sink.

    W&B's service is started here as well: its own tidying at exit is registered with that, before ours, and so runs
    after it.
    """
    import wandb

    run = wandb.run
    if run is None:
        wandb.setup()
    return lambda: WandB(run_dir, run)


class WandB:
    """Rows with a step of their own, ``steadygrad/step``; incidents as text, and as a table at the end.

    In the script's own run nothing is committed: the numbers join the script's next row, so that its rows and steps
    are what they would be. Between two of its rows only the newest of ours is kept.

    Args:
        run_dir: of the run; gives our own W&B run its name.
        run: the script's run, which is left open; None: make one of ours, which is not ``wandb.run``.
    """

    def __init__(self, run_dir: Path, run: Any) -> None:
        self._ours = run is None
        self._run = _new_run(run_dir) if self._ours else run
        self._events: list[list[Any]] = []
        self._run.define_metric(STEP, hidden=True)
        self._run.define_metric("steadygrad/*", step_metric=STEP)

    def write(self, scalars: dict[str, float], step: int) -> None:
        self._run.log({**scalars, STEP: step}, commit=self._ours)

    def event(self, event: Event) -> None:
        self._events.append(
            [event.step, event.optimizer, event.name, event.severity, event.where, event.text]
        )
        row = {"steadygrad/incident": event.line, STEP: event.step}
        self._run.log(row, commit=self._ours)
        self._run.summary["steadygrad/last_incident"] = event.line

    def artifact(self, path: Path) -> None:
        import wandb

        if self._events:
            table = wandb.Table(columns=COLUMNS, data=self._events)
            self._run.log({"steadygrad/incidents_table": table}, commit=self._ours)
        report = wandb.Artifact(f"steadygrad-report-{self._run.id}", type="report")
        report.add_file(str(path), name="report.html")
        self._run.log_artifact(report)

    def close(self) -> None:
        if self._ours:
            self._run.finish()


def _new_run(run_dir: Path) -> Any:
    """A run that captures no output and no code, and that the script's own ``wandb.init`` does not meet."""
    import wandb

    mode = wandb.setup().settings.mode
    if mode == "online" and not wandb.login(prompt=False):
        mode = "offline"  # nobody is asked for a key in the middle of a training; `wandb sync` uploads it
    settings = wandb.Settings(
        console="off", save_code=False, disable_git=True, x_disable_stats=True, silent=True
    )
    run = wandb.init(
        name=run_dir.name,
        dir=str(run_dir),
        mode=mode,
        reinit="create_new",
        job_type="steadygrad",
        settings=settings,
    )
    return run
