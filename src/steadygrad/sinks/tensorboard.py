"""Into TensorBoard: event files in the run directory, written by torch's own SummaryWriter."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from steadygrad.sinks.sink import Event, Sink

EVERY = 1  # steps


def prepare(run_dir: Path) -> Callable[[], Sink]:
    """Import what is needed, in the training's thread; what is returned opens the sink."""
    import torch.utils.tensorboard  # noqa: F401 - needs the package tensorboard

    return lambda: TensorBoard(run_dir / "tensorboard")


class TensorBoard:
    """Scalars, texts of what happened, and where the report lies. nan and infinities are kept as they are.

    Args:
        folder: for the event files; ``tensorboard --logdir`` is given this, or a folder above it.
    """

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder))

    def write(self, scalars: dict[str, float], step: int) -> None:
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)

    def event(self, event: Event) -> None:
        self._writer.add_text("steadygrad/incident", event.line, event.step)

    def artifact(self, path: Path) -> None:
        self._writer.add_text("steadygrad/report", str(path))

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
