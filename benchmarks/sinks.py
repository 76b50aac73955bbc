"""What a sink costs: on the training thread, and in CPU seconds of the process for each step that is written.

    OMP_NUM_THREADS=1 WANDB_MODE=offline python benchmarks/sinks.py

Records of steps as a watched training makes them (100 tensors) are handed to each sink, each in a process of its own,
50 at a time, and waited for. The pace is switched off, so that every step of the sink's cadence is written. CPU seconds
and not wall time: they hardly depend on what else the machine does. W&B's own second process is not counted.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

SINKS = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow-skinny", "trackio": "trackio"}
BATCHES, STEPS, SEED = 20, 50, 0


class Nothing:
    """A sink that does nothing: what our own machinery takes."""

    def write(self, scalars, step): ...
    def event(self, event): ...
    def artifact(self, path): ...
    def close(self): ...


def records():
    import numpy as np

    from steadygrad.records import ParamInfo, StepStats, TensorStats

    rng = np.random.default_rng(SEED)
    params = [ParamInfo(i, f"layer{i}.weight", (64, 64), "float32", 0, "", "Linear") for i in range(100)]
    for i in range((BATCHES + 1) * STEPS):
        norms = rng.random(100, dtype=np.float32)
        tensors = tuple(TensorStats(j, 1.0, 2.0, float(rng.random())) for j in range(6))
        yield StepStats(
            i, 0, 1.0, float(np.linalg.norm(norms)), 1.0, norms, 1e-3, params, tensors=tensors, seconds=0.1
        )


def measure(name: str) -> dict[str, float]:
    import torch  # noqa: F401 - as in a training

    import steadygrad.sinks.fan
    from steadygrad.sinks import pace

    pace.SHARE = 1e9
    notes: list[str] = []
    sinks = steadygrad.sinks.fan.Sinks([Nothing() if name == "nothing" else name], Path.cwd(), notes.append)
    began = time.perf_counter()
    sinks.begin()
    opened = time.perf_counter() - began
    (feeder,) = sinks._feeders
    every, steps, append, cpu = feeder._every, list(records()), [], 0.0
    for batch in range(BATCHES + 1):
        start = time.process_time()
        for stats in steps[batch * STEPS : (batch + 1) * STEPS]:
            clock = time.thread_time_ns()
            sinks.step(stats, 0, 0)
            append.append(time.thread_time_ns() - clock)
        assert feeder.drain()
        if batch == 0:
            append.clear()  # imports and first uses
        else:
            cpu += time.process_time() - start
    began = time.perf_counter()
    feeder.end(None)
    feeder.wait()
    assert notes == [] and feeder.trouble is None, (notes, feeder.trouble)
    return {
        "training_thread_us_per_step": round(statistics.median(append) / 1e3, 1),
        "cpu_us_per_step": round(cpu / (BATCHES * STEPS) * 1e6, 1),
        "cpu_us_per_step_written": round(cpu / (BATCHES * STEPS / every) * 1e6, 1),
        "every": every,
        "open_seconds_on_the_training_thread": round(opened, 2),
        "close_seconds": round(time.perf_counter() - began, 2),
    }


def main() -> None:
    found = {}
    for name in ("nothing", *SINKS):
        with tempfile.TemporaryDirectory() as folder:
            env = {
                **os.environ,
                "TRACKIO_DIR": folder,
                "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
            }
            command = [sys.executable, os.path.abspath(__file__), name]
            out = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
            assert out.returncode == 0, out.stderr
            found[name] = json.loads(out.stdout.splitlines()[-1])
            print(name, found[name], flush=True)
    machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    versions = {name: version(name) for name in ("torch", *SINKS.values())}
    result = {
        "made_by": "benchmarks/sinks.py",
        "machine": machine,
        "versions": versions,
        "seed": SEED,
        "sinks": found,
    }
    target = Path(__file__).parent / "results" / "sinks.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(sys.argv[1])))
    else:
        main()
