"""Two processes that train together, and what each of them saw."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import steadygrad as sg
from steadygrad.integrations.ranks import meeting

SAMPLES = 8


def spawn(worker: Callable[[int, str], Any], folder: Path, ranks: int = 2, name: str = "") -> list[Any]:
    """Run ``worker(rank, folder)`` in processes of one gloo world; what each returned."""
    where = folder / (name or worker.__name__)
    where.mkdir()
    mp.spawn(_enter, (worker, str(where), ranks), nprocs=ranks)
    return [torch.load(where / f"rank{rank}.pt", weights_only=False) for rank in range(ranks)]


def _enter(rank: int, worker: Callable[[int, str], Any], folder: str, ranks: int) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks))
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=ranks)
    torch.save(worker(rank, folder), Path(folder, f"rank{rank}.pt"))
    dist.barrier()
    dist.destroy_process_group()


def net() -> nn.Module:
    """The same on all ranks; 5 rows are 3 and 2 on two of them."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Dropout(0.1), nn.Linear(5, 1))


def ddp() -> nn.Module:
    return DistributedDataParallel(net())


def fsdp(shape: tuple[int, ...] = (2,)) -> nn.Module:
    """Sharded over the last dimension of a mesh of this shape, with copies along the first if there are two."""
    model, mesh = net(), init_device_mesh("cpu", shape, mesh_dim_names=("copies", "parts")[-len(shape) :])
    for layer in (model[0], model[4]):
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def batch(step: int, rank: int) -> torch.Tensor:
    return torch.randn(SAMPLES, 6, generator=torch.Generator().manual_seed(10 * step + rank))


class Seen:
    """An observer: the records of all steps, and what was said."""

    def __init__(self) -> None:
        self.steps: list[sg.StepStats] = []
        self.notes: list[str] = []

    def started(self, run_dir: str) -> None: ...
    def step(self, stats: sg.StepStats, skipped: int, incidents: int) -> None:
        self.steps.append(stats)

    def finding(self, finding: Any) -> None: ...
    def action(self, action: Any) -> None: ...
    def note(self, text: str) -> None:
        self.notes.append(text)


class Training:
    """A run of one rank: a model, its optimizer, and what the watching came to.

    Args:
        make: of the model.
        watched: with steadygrad.
        at: step -> called with the training at some place of that step (see `run`), to bring trouble.
        more: for ``sg.watch``.
    """

    def __init__(
        self, make: Callable[[], nn.Module], rank: int, folder: str, watched: bool, **more: Any
    ) -> None:
        self.model, self.rank = make(), rank
        torch.manual_seed(100 + rank)  # of the dropout
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        self.seen = Seen()
        self.states: list[list[torch.Tensor]] = []  # after each step
        self.actions: list[Any] = []
        self.sums = 0
        self.session: Any = None
        self._watch: contextlib.AbstractContextManager[Any] = (
            sg.watch(self.model, self.optimizer, runs=Path(folder, "runs"), observer=self.seen, **more)
            if watched
            else contextlib.nullcontext()
        )

    def run(self, steps: int, trouble: Callable[[Training, int, str], None] | None = None) -> Training:
        """Train. ``trouble`` is called with the step at "batch", "backward" and "step"; what it is to do is its own."""
        with self._watch as watcher:
            self.session = watcher._session if watcher is not None else None
            for step in range(steps):
                self.x = batch(step, self.rank)
                _ask(trouble, self, step, "batch")
                self.optimizer.zero_grad()
                loss = (self.model(self.x) - self.x.sum(1, keepdim=True)).square().mean()
                _ask(trouble, self, step, "backward")
                loss.backward()
                _ask(trouble, self, step, "step")
                self.optimizer.step()
                self.states.append(self.state())
            if self.session is not None:
                self.sums = self.session._together.sums if self.session._together is not None else 0
                self.actions = watcher.actions
        return self

    def state(self) -> list[torch.Tensor]:
        """Copies of all that a step changes on this rank: parameters, buffers, moments."""
        of_optimizer = [v for p in self.model.parameters() for v in self.optimizer.state[p].values()]
        tensors = [*self.model.parameters(), *self.model.buffers(), *of_optimizer]
        return [local(t).clone() for t in tensors]

    @property
    def log(self) -> list[tuple[Any, ...]]:
        """What was decided."""
        return [(a.step, a.action, a.reason, a.code) for a in self.actions]


def _ask(trouble: Any, training: Training, step: int, place: str) -> None:
    if trouble is not None:
        trouble(training, step, place)


def local(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.detach()
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def equal(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(map(torch.equal, a, b))


@contextlib.contextmanager
def patience(seconds: float) -> Iterator[None]:
    """A rank is waited for no longer than that."""
    before, meeting.TIMEOUT = meeting.TIMEOUT, seconds
    yield
    meeting.TIMEOUT = before


NAN = math.nan
