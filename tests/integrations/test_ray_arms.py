"""Arms on a Ray cluster are the arms of this machine."""

import importlib.util
import os
import signal
import subprocess
import sys

import pytest

from steadygrad.integrations.arms import ArmRequest, ArmRunner
from steadygrad.integrations.ray_arms import RayArmRunner
from steadygrad.integrations.script import Target
from tests.commands import environment
from tests.integrations.test_arms import TRAIN
from tests.integrations.test_children import STUBBORN, Alive

HAS_RAY = importlib.util.find_spec("ray") is not None
needs_ray = pytest.mark.skipif(not HAS_RAY, reason="ray is not installed")
# Ray itself leaves sockets and files open.
quiet = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def cluster():
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.mark.slow
@needs_ray
@quiet
def test_they_are_the_same(cluster, tmp_path, monkeypatch):
    (tmp_path / "s.py").write_text(TRAIN)
    monkeypatch.chdir(tmp_path)
    requests = [
        ArmRequest(),
        ArmRequest({"lr_factor": 0.5}),
        ArmRequest({"no_such_change": 1}),
        ArmRequest(patched={"s.py": TRAIN.replace("lr=0.05", "lr=0.025")}),
    ]
    told, begun, finished = [], [], {}
    with RayArmRunner(["s.py"], Target("s.py")) as runner:
        results = runner.run_all(
            requests, lambda *said: told.append(said), begun.append, finished.__setitem__
        )
        assert runner.limit(ArmRequest()) > 60
    with ArmRunner(["s.py"], Target("s.py")) as runner:
        here = runner.run_all(requests[:2])
    assert [r.fingerprint for r in results[:2]] == [r.fingerprint for r in here]
    assert results[3].fingerprint == results[1].fingerprint and results[2].not_applicable
    assert results[0].files_written == (str(tmp_path / "last.pt"),) and os.listdir() == ["s.py"]
    assert (
        {i for i, *_ in told} == {0, 1, 3} and begun == [0, 1, 2, 3] and finished == dict(enumerate(results))
    )


@pytest.mark.slow
@needs_ray
@quiet
def test_a_command_that_cannot_be_started(cluster, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with RayArmRunner([str(tmp_path / "absent")], None) as runner, pytest.raises(OSError):
        runner.run(ArmRequest())


INTERRUPTED = """
import sys
from steadygrad.integrations.arms import ArmRequest, Interrupted
from steadygrad.integrations.ray_arms import RayArmRunner
try:
    with RayArmRunner([sys.executable, "-c", open(sys.argv[1]).read(), sys.argv[2]], None) as runner:
        runner.run_all([ArmRequest()])
except Interrupted as error:
    print("interrupted by", error.signal, error.results)
"""


@pytest.mark.slow
@needs_ray
def test_an_interrupt_ends_all(tmp_path):
    alive = Alive(tmp_path / "alive")
    (tmp_path / "stubborn.py").write_text(STUBBORN)
    words = [sys.executable, "-c", INTERRUPTED, str(tmp_path / "stubborn.py"), str(tmp_path / "alive")]
    parent = subprocess.Popen(words, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, text=True)
    try:
        assert alive.begun()
        parent.send_signal(signal.SIGINT)
        said, _ = parent.communicate(timeout=120)
    finally:
        parent.kill()
        parent.wait()
    assert said == "interrupted by 2 (None,)\n"
    assert alive.gone()


@pytest.mark.skipif(HAS_RAY, reason="ray is installed")
def test_without_ray_it_says_what_to_install():
    with pytest.raises(ImportError, match=r"pip install 'steadygrad\[ray\]'"):
        RayArmRunner(["s.py"], Target("s.py"))
