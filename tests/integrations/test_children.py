"""None of the children is left, whatever ends them."""

import os
import select
import signal
import subprocess
import sys
import threading

import pytest

from steadygrad.integrations.children import LOG_LIMIT, Children, Log, NotBegun
from tests.commands import environment

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes")

# Ignores what can be ignored, and starts a worker of its group and one of a group of its own, as torchrun does.
STUBBORN = """
import os, signal, subprocess, sys, time
for name in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(name, signal.SIG_IGN)
alive = open(sys.argv[1], "w")
for apart in (False, True):
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"], stdout=alive, start_new_session=apart)
alive.write("begun")
alive.flush()
time.sleep(1000)
"""

PARENT = """
import sys
from steadygrad.integrations.arms import ArmRequest, ArmRunner, Interrupted
words = [sys.executable, "-c", open(sys.argv[1]).read(), sys.argv[2]]
try:
    with ArmRunner(words, None, jobs=1) as runner:
        runner.run_all([ArmRequest(), ArmRequest()])
except Interrupted as error:
    print("interrupted by", error.signal, error.results)
"""


class Alive:
    """A pipe that is open for as long as one of those lives who were started with it."""

    def __init__(self, path):
        os.mkfifo(path)
        self._read = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        self._keeper = os.open(path, os.O_WRONLY)  # or it is at its end before anybody has come
        os.set_blocking(self._read, True)

    def begun(self) -> bool:
        assert select.select([self._read], [], [], 60)[0]
        return os.read(self._read, 5) == b"begun"

    def gone(self) -> bool:
        os.close(self._keeper)
        assert select.select([self._read], [], [], 60)[0], "somebody lives on"
        return os.read(self._read, 5) == b""


def run(children: Children, folder, *words: str, **more):
    out, err = Log(folder / "out"), Log(folder / "err")
    variables = {**environment(), "MARK": str(folder)}
    return children.run(words, variables, stdout=out, stderr=err, mark=str(folder), **more), out, err


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes are listed in /proc")
def test_time_is_over_for_those_in_other_sessions_too(tmp_path):
    alive = Alive(tmp_path / "alive")
    seen = []
    with Children() as children:
        code, *_ = run(
            children,
            tmp_path,
            sys.executable,
            "-c",
            STUBBORN,
            str(tmp_path / "alive"),
            timeout=4.0,
            pulse=lambda: seen.append(1),
        )
    assert code is None and seen
    assert alive.begun() and alive.gone()


def test_what_a_child_leaves_behind_ends_with_it(tmp_path):
    alive = Alive(tmp_path / "alive")
    with Children() as children:
        script = f"exec 3>{tmp_path}/alive; printf begun >&3; sleep 1000 & exit 7"
        code, *_ = run(children, tmp_path, "sh", "-c", script, timeout=None)
        assert code == 7
        assert alive.begun() and alive.gone()


def test_closing_ends_them_and_begins_no_more(tmp_path):
    alive = Alive(tmp_path / "alive")
    codes = []
    children = Children()
    with children:
        words = ("sh", "-c", f"exec 3>{tmp_path}/alive; printf begun >&3; sleep 1000")
        thread = threading.Thread(
            target=lambda: codes.append(run(children, tmp_path, *words, timeout=None)[0])
        )
        thread.start()
        assert alive.begun()
    thread.join()
    assert codes == [-signal.SIGKILL] and alive.gone()
    with pytest.raises(NotBegun):
        run(children, tmp_path, "true", timeout=None)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_a_signal_to_the_parent_ends_all(name, tmp_path):
    alive = Alive(tmp_path / "alive")
    (tmp_path / "stubborn.py").write_text(STUBBORN)
    number = getattr(signal, name)
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path / "stubborn.py"), str(tmp_path / "alive")],
        cwd=tmp_path,
        env=environment(TMPDIR=str(tmp_path)),
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        try:
            assert alive.begun()
            parent.send_signal(number)
            said, _ = parent.communicate(timeout=60)
        finally:
            parent.kill()
    assert said == f"interrupted by {int(number)} (None, None)\n"
    assert alive.gone()
    assert not list(tmp_path.glob("steadygrad-*"))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the system ends it")
def test_a_parent_that_is_killed_takes_its_arm_along(tmp_path):
    alive = Alive(tmp_path / "alive")
    (tmp_path / "s.py").write_text(
        "import sys, time\nalive = open(sys.argv[1], 'w')\nalive.write('begun')\nalive.flush()\ntime.sleep(1000)"
    )
    words = [sys.executable, "-c", PARENT, str(tmp_path / "s.py"), str(tmp_path / "alive")]
    parent = subprocess.Popen(words, cwd=tmp_path, env=environment(TMPDIR=str(tmp_path)))
    assert alive.begun()
    parent.kill()
    parent.wait()
    assert alive.gone()


def test_however_much_is_printed_little_stays(tmp_path):
    many = 3 * LOG_LIMIT // 1000
    code = f"import sys\nfor i in range({many}): print('x' * 992, f'{{i:06d}}')\nprint('the end')"
    with Children() as children:
        done, out, err = run(
            children,
            tmp_path,
            sys.executable,
            "-c",
            code,
            timeout=60,
        )
    assert done == 0 and err.tail() == ""
    assert out.tail().endswith(f"{many - 1:06d}\nthe end\n") and len(out.tail()) == 4000
    assert (tmp_path / "out").stat().st_size < LOG_LIMIT


def test_a_command_that_is_not_there(tmp_path):
    with Children() as children, pytest.raises(OSError):
        run(children, tmp_path, str(tmp_path / "absent"), timeout=None)
