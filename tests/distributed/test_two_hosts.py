"""Two machines, each with a disk and a network of its own: two network namespaces with a cable between them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HOST = Path(__file__).with_name("host.py")
ROOT = Path(__file__).parents[2]

# In a namespace of its own, so that nothing of this machine's network is touched; another one is the second machine.
CABLE = """
set -e
ip link set lo up
unshare --net sleep 600 & second=$!
trap "kill $second" EXIT
until [ "$(readlink /proc/$second/ns/net)" != "$(readlink /proc/self/ns/net)" ]; do :; done
ip link add here type veth peer name there netns $second
ip addr add 10.77.0.1/24 dev here
ip link set here up
on_second() { nsenter --target $second --net "$@"; }
on_second ip link set lo up
on_second ip addr add 10.77.0.2/24 dev there
on_second ip link set there up
"""
TRAIN = """
export MASTER_ADDR=10.77.0.1 MASTER_PORT=29577 WORLD_SIZE=2
GLOO_SOCKET_IFNAME=there RANK=1 on_second "$1" "$2" "$4" & other=$!
GLOO_SOCKET_IFNAME=here RANK=0 "$1" "$2" "$3"
wait $other
"""


def in_namespaces(script: str, *words: str, timeout: float) -> subprocess.CompletedProcess[str]:
    outer = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--net"]
    path = f"{ROOT / 'src'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    return subprocess.run(
        [*outer, "bash", "-c", script, "bash", *words],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "PYTHONPATH": path},
    )


@pytest.fixture
def cable() -> None:
    missing = [tool for tool in ("unshare", "nsenter", "ip", "bash") if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"no {missing[0]} here")
    tried = in_namespaces(CABLE, timeout=60)
    if tried.returncode:
        pytest.skip(f"this machine does not let us make a network: {tried.stderr.strip()[:200]}")


@pytest.mark.slow
def test_two_machines_skip_the_same_step(cable, tmp_path):
    roots = [str(tmp_path / name) for name in ("first", "second")]
    done = in_namespaces(CABLE + TRAIN, sys.executable, str(HOST), *roots, timeout=300)
    assert done.returncode == 0, done.stderr
    first, second = (json.loads(Path(f"{root}.json").read_text()) for root in roots)
    assert first == second
    assert first["run"] == "hosts-1" and first["notes"] == []
    assert first["actions"] == [
        [7, "skip", "the gradient is not finite (the loss of rank 1 is nan, sample 2 of its batch)"]
    ]
    assert [sorted(p.name for p in Path(root, "hosts-1").glob("*.sqlite")) for root in roots] == [
        ["trace-0.sqlite"],
        ["trace-1.sqlite"],
    ]
