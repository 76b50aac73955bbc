"""Into MLflow: the script's active run if it has one, else one of ours. The tracking URI and experiment are its own."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from steadygrad.sinks.sink import Event, Sink

MAX_METRICS = 1000  # MLflow's own bound on a batch

EVERY = 10  # steps; a batch is dear


def prepare(run_dir: Path) -> Callable[[], Sink]:
    """Import the package and look for the script's run, kept per thread; what is returned opens the sink."""
    import mlflow

    active = mlflow.active_run()
    run_id = active.info.run_id if active is not None else os.environ.get("MLFLOW_RUN_ID")
    return lambda: MLflow(run_dir, run_id)


class MLflow:
    """Metrics in batches, the newest incident as a tag and all of them as a text, and the report as an artifact.

    Everything goes by the run's id, through the client: the run that is active in the script is not touched.

    Args:
        run_dir: of the run; gives our own MLflow run its name.
        run_id: the script's run, which is left open; None: make one of ours.
    """

    def __init__(self, run_dir: Path, run_id: str | None) -> None:
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient()
        self._ours = run_id is None
        self._run_id = run_id or self._new_run(run_dir.name)
        self._waiting: list[Any] = []
        self._lines: list[str] = []
        self._lines_sent = 0

    def _new_run(self, name: str) -> str:
        from mlflow.tracking.fluent import _get_experiment_id

        return self._client.create_run(_get_experiment_id(), run_name=name).info.run_id

    def write(self, scalars: dict[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._waiting += [Metric(name, value, now, step) for name, value in scalars.items()]

    def event(self, event: Event) -> None:
        self._lines.append(event.line)

    def flush(self) -> None:
        """Send what waits. Called after each batch."""
        while self._waiting:
            batch, self._waiting = self._waiting[:MAX_METRICS], self._waiting[MAX_METRICS:]
            self._client.log_batch(self._run_id, metrics=batch)
        if len(self._lines) > self._lines_sent:
            self._lines_sent = len(self._lines)
            self._client.set_tag(self._run_id, "steadygrad.incident", self._lines[-1][:5000])
            self._client.log_text(self._run_id, "\n".join(self._lines) + "\n", "steadygrad/incidents.txt")

    def artifact(self, path: Path) -> None:
        self.flush()
        self._client.log_artifact(self._run_id, str(path), "steadygrad")

    def close(self) -> None:
        self.flush()
        if self._ours:
            self._client.set_terminated(self._run_id)
