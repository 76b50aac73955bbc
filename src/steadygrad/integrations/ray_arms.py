"""Arms on a Ray cluster: each is a task of one CPU, and of one GPU where the cluster has some.

The nodes must have the working directory under the same path (a shared file system), and the same packages. An arm
runs there as it would here: a process of its own, with a scratch folder on that node.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from steadygrad.integrations.arms import (
    ArmRequest,
    ArmResult,
    ArmRunner,
    Runner,
    Told,
    ended_by,
    tell_nobody,
)
from steadygrad.integrations.children import Children
from steadygrad.integrations.script import Target

POLL = 0.3  # seconds
FAREWELL = 10.0  # seconds that cancelled tasks have to end their processes


class Board:
    """Where tasks write how far they are; an actor of the cluster."""

    def __init__(self) -> None:
        self._said: list[tuple[int, int, float | None]] = []

    def tell(self, index: int, step: int, loss: float | None) -> None:
        self._said.append((index, step, loss))

    def take(self) -> list[tuple[int, int, float | None]]:
        """What was told since the last time."""
        said, self._said = self._said, []
        return said


def run_arm(
    words: Sequence[str],
    target: Target | None,
    folder: str,
    environ: Mapping[str, str],
    timeout: float | None,
    request: ArmRequest,
    board: Any,
    index: int,
) -> ArmResult:
    """One arm, as a task on a node."""
    if not os.path.isdir(folder):
        return ArmResult(None, note=f"the node {os.uname().nodename} has no folder {folder}")
    os.chdir(folder)
    devices = {name: os.environ[name] for name in ("CUDA_VISIBLE_DEVICES",) if name in os.environ}
    with ArmRunner(words, target, jobs=1, timeout=timeout, environ={**environ, **devices}) as runner:
        return runner.run(request, lambda step, loss: board.tell.remote(index, step, loss))


class RayArmRunner(Runner):
    """Runs arms on a cluster; otherwise as :class:`~steadygrad.integrations.arms.ArmRunner`.

    Args:
        words: the command, or the script with its arguments.
        target: the script or module among them; None if the words are another command.
        jobs: arms at once, at least 1.
        timeout: as of an ArmRunner.
        address: of the cluster; None: RAY_ADDRESS, or a cluster of this machine alone, which ends with the block.

    Raises:
        ImportError: ray is not installed.
    """

    def __init__(
        self,
        words: Sequence[str],
        target: Target | None,
        *,
        jobs: int = 2,
        timeout: float | None = None,
        address: str | None = None,
    ) -> None:
        super().__init__(jobs, timeout)
        try:
            self._ray: Any = importlib.import_module("ray")
        except ImportError as error:
            raise ImportError("arms on a cluster need Ray: pip install 'steadygrad[ray]'") from error
        self._words, self._target = list(words), target
        self._address = address
        self._task: Any = None
        self._board: Any = None

    def __enter__(self) -> RayArmRunner:
        ray = self._ray
        if not ray.is_initialized():
            ray.init(
                address=self._address,
                include_dashboard=False if self._address is None else None,
                log_to_driver=False,
                logging_level="ERROR",
            )
            self._open.callback(ray.shutdown)
        self._open.enter_context(Children())  # SIGTERM and SIGHUP come as exceptions
        gpus = 1 if ray.cluster_resources().get("GPU", 0) else 0
        self._task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=0)(run_arm)
        self._board = ray.remote(num_cpus=0)(Board).remote()
        return self

    def run_all(
        self,
        requests: Sequence[ArmRequest],
        told: Told = tell_nobody,
        begun: Callable[[int], None] = tell_nobody,
        finished: Callable[[int, ArmResult], None] = tell_nobody,
    ) -> list[ArmResult]:
        """As :meth:`Runner.run_all`. All calls come from this thread."""
        results: list[ArmResult | None] = [None] * len(requests)
        waiting = list(range(len(requests)))
        running: dict[Any, int] = {}
        with ended_by(lambda: self._end(list(running)), results):
            while waiting or running:
                while waiting and len(running) < self._jobs:
                    index = waiting.pop(0)
                    begun(index)
                    running[self._begin(index, requests[index])] = index
                done, _ = self._ray.wait(list(running), timeout=POLL)
                for said in self._ray.get(self._board.take.remote()):
                    told(*said)
                for reference in done:
                    index = running[reference]
                    result = results[index] = self._result(reference)
                    if result.report is not None:
                        self._took.setdefault(requests[index].steps, result.seconds)
                    del running[reference]
                    finished(index, result)
        return [result for result in results if result is not None]

    def _begin(self, index: int, request: ArmRequest) -> Any:
        return self._task.remote(
            self._words,
            self._target,
            os.getcwd(),
            dict(os.environ),
            self.limit(request),
            request,
            self._board,
            index,
        )

    def _result(self, reference: Any) -> ArmResult:
        try:
            result: ArmResult = self._ray.get(reference)
        except self._ray.exceptions.RaySystemError as error:
            return ArmResult(None, note=f"its node failed: {error}")
        except self._ray.exceptions.WorkerCrashedError as error:
            return ArmResult(None, note=f"its worker was killed: {error}")
        return result

    def _end(self, running: list[Any]) -> None:
        for reference in running:
            self._ray.cancel(reference)  # an interrupt: the task ends its processes
        if running:
            self._ray.wait(running, num_returns=len(running), timeout=FAREWELL)
