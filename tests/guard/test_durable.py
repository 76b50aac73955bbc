"""Snapshots on disk: whatever happens to the process or the file, the last good one loads or the damage is told."""

import errno
import hashlib
import json
import os
import random
import struct
import subprocess
import sys
import textwrap
import threading
import time
import tracemalloc
from collections import OrderedDict, deque
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from steadygrad.guard import container, durable
from steadygrad.guard.durable import (
    DamagedSnapshot,
    DurableWriter,
    latest_good,
    read_snapshot,
    remove_leftovers,
    write_snapshot,
)
from steadygrad.guard.ring import SnapshotRing
from steadygrad.guard.snapshot import RestoreError, Snapshot
from steadygrad.guard.state import TrainingState
from tests.guard.kit import OPTIMIZERS, equal, picture, training
from tests.guard.test_snapshot import ODD, odd, values

ROOT = Path(__file__).parents[2]


def snapshot_of(state, step=0):
    snapshot = Snapshot()
    snapshot.take(state, step)
    return snapshot


def filled(step, size=1000):
    """A snapshot whose tensor says which step it is of."""
    module = nn.Module()
    module.register_buffer("x", torch.full((size,), float(step)))
    return snapshot_of(TrainingState([module]), step)


def whole(found):
    """The step of a loaded snapshot whose every value is that of its step."""
    assert found.snapshot is not None, found.damaged
    x = found.snapshot.tensors["x"]
    assert torch.equal(x, torch.full_like(x, found.snapshot.step))
    return found.snapshot.step


# ---------------------------------------------------------------------- round trips
PAIRS = [(o, "none") for o in OPTIMIZERS]
PAIRS += [
    ("sgd_momentum", s)
    for s in ("onecycle", "lambda", "sequential", "warm_restarts", "multistep", "cyclic", "plateau")
]


@pytest.mark.parametrize(("optimizer", "scheduler"), PAIRS)
def test_another_process_goes_on_bit_for_bit(optimizer, scheduler, tmp_path):
    run = training(optimizer, scheduler)
    run.steps(3)
    path = write_snapshot(tmp_path, snapshot_of(run.state(), 3))
    kept, first = picture(run), run.steps(6)

    again = training(
        optimizer, scheduler, seed=1
    )  # a fresh one: as the script makes it when it is started anew
    saved = read_snapshot(path)
    restored = saved.restore_into(again.state())
    assert (restored.missing, restored.unknown, restored.problems, saved.step) == ((), (), (), 3)
    assert equal(picture(again), kept)
    assert again.steps(6) == first


def test_into_a_run_that_has_moved_on(tmp_path):
    run = training("adam", "onecycle")
    run.steps(3)
    path, kept = write_snapshot(tmp_path, snapshot_of(run.state(), 3)), picture(run)
    ids = {k: id(v) for k, v in run.model.state_dict(keep_vars=True).items()}
    run.steps(5)
    read_snapshot(path).restore_into(run.state(), rng=False)
    assert equal(picture(run), kept)
    assert {k: id(v) for k, v in run.model.state_dict(keep_vars=True).items()} == ids


def test_two_optimizers_are_found_by_their_parameters(tmp_path):
    def gan():
        torch.manual_seed(3)
        g, d = nn.Linear(3, 3), nn.Linear(3, 1)
        return g, d, torch.optim.Adam(g.parameters(), 0.1), torch.optim.Adam(d.parameters(), 0.2)

    def train(g, d, og, od):
        for o, loss in ((od, d(g(torch.ones(2, 3))).sum()), (og, g(torch.ones(2, 3)).square().sum())):
            o.zero_grad()
            loss.backward()
            o.step()

    g, d, og, od = gan()
    train(g, d, og, od)
    path = write_snapshot(tmp_path, snapshot_of(TrainingState([g, d], [og, od])))
    g2, d2, og2, od2 = gan()
    read_snapshot(path).restore_into(TrainingState([g2, d2], [od2, og2]))  # seen in the other order
    assert equal(og2.state_dict(), og.state_dict()) and equal(od2.state_dict(), od.state_dict())


def test_missing_counterparts_are_told(tmp_path):
    run = training("adam", "onecycle")
    run.steps(1)
    state = run.state()
    state.add_scaler(torch.amp.GradScaler("cpu"))
    path = write_snapshot(tmp_path, snapshot_of(state))
    other = training("sgd_momentum", "lambda")
    restored = read_snapshot(path).restore_into(other.state())
    assert restored.problems == (
        "optimizer0 (Adam) has no counterpart in this run",
        "OneCycleLR number 0 has no counterpart in this run",
        "GradScaler number 0 has no counterpart in this run",
    )
    assert equal(dict(other.model.state_dict()), dict(run.model.state_dict()))


@pytest.mark.parametrize("name", ODD)
def test_tensor_zoo(name, tmp_path):
    module = nn.Module()
    module.register_buffer("odd", odd(name))
    before = values(module.odd)
    path = write_snapshot(tmp_path, snapshot_of(TrainingState([module])))
    other = nn.Module()
    other.register_buffer("odd", odd(name))
    saved = read_snapshot(path)
    if name == "quantized":
        assert any("odd" in text for text in saved.left_out)
        return
    assert saved.restore_into(TrainingState([other])).problems == ()
    assert equal(values(other.odd), before) and saved.left_out == ()


class Odd(torch.optim.SGD):
    def __init__(self, params, filled):
        super().__init__(params, lr=0.1)
        p = self.param_groups[0]["params"][0]
        if filled:
            self.param_groups[0].update(rule=lambda x: x, betas=(0.5, float("inf")), none=None)
            self.state[p] = {
                "tuple": (1, (2.5, "x"), [float("-inf"), {"deep": torch.ones(2)}]),
                "set": {1, 2},
                "deque": deque([1, 2], maxlen=3),
                "ordered": OrderedDict(b=1, a=2),
                "array": np.arange(3, dtype=np.int16),
                "scalar": np.float32(1.5),
                "dtype": torch.bfloat16,
                "device": torch.device("cpu"),
                "size": torch.Size([2, 3]),
                "complex": 1 + 2j,
                "bytes": b"\x00\xff",
                "huge": 2**200,
                "text": "\ud800 \u2028 </script> \x00",
                "!": {"!": "tensor"},
                3: "a key that is no string",
                "by_param": {p: torch.ones(1)},
                "file": sys.stdout,
                ("tuple", "key"): 1,
                "huger": 2**9999,
            }


def test_plain_values_of_every_kind_and_what_no_file_can_hold(tmp_path):
    p, q = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    first, second = Odd([p], True), Odd([q], False)
    path = write_snapshot(tmp_path, snapshot_of(TrainingState([], [first])))
    saved = read_snapshot(path)
    saved.restore_into(TrainingState([], [second]))
    got, want = second.state[q], dict(first.state[p])
    assert got.pop("by_param")[q].tolist() == want.pop("by_param")[p].tolist()
    for key in ("file", ("tuple", "key"), "huger"):
        del want[key]
    assert list(got) == list(want)
    assert got.pop("array").tolist() == want.pop("array").tolist()
    assert {k: type(v) for k, v in got.items()} == {k: type(v) for k, v in want.items()}
    assert got["tuple"][2][1].pop("deep").tolist() == want["tuple"][2][1].pop("deep").tolist()
    assert got == want and got["deque"].maxlen == 3
    assert second.param_groups[0]["betas"] == (0.5, float("inf"))
    listed = "\n".join(saved.left_out)
    for word in ("rule", "file", "('tuple', 'key')", "huger"):
        assert word in listed
    assert second.param_groups[0].get("rule") is None


def test_misfit_is_refused_before_anything_changes(tmp_path):
    path = write_snapshot(tmp_path, snapshot_of(training("adam").state()))
    run = training("adam", seed=1)
    run.model.head = nn.Linear(6, 5)
    before = picture(run)
    with pytest.raises(RestoreError, match=r"head.weight was \[1, 6\] and is \[5, 6\]"):
        read_snapshot(path).restore_into(run.state())
    assert equal(picture(run), before)


def test_only_finite_snapshots_are_written(tmp_path):
    module = nn.Linear(1, 1)
    with torch.no_grad():
        module.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="only finite snapshots are written: weight"):
        write_snapshot(tmp_path / "new", snapshot_of(TrainingState([module])))
    with pytest.raises(ValueError, match="holds nothing"):
        write_snapshot(tmp_path / "new", Snapshot())
    assert list(tmp_path.iterdir()) == []


def test_no_pickle_no_paths_no_names_of_people_in_the_file(tmp_path):
    run = training("adam", "onecycle")
    run.steps(1)
    data = write_snapshot(tmp_path / "a", snapshot_of(run.state())).read_bytes()
    for word in (b"\x80\x02", b"\x80\x04\x95", str(tmp_path).encode(), b"/home", b"/root"):
        assert word not in data


# ---------------------------------------------------------------------- generations
def test_two_generations_are_kept_and_files_are_private(tmp_path):
    folder = tmp_path / "runs" / "snapshots"
    for step in range(5):
        write_snapshot(folder, filled(step))
    assert sorted(os.listdir(folder)) == ["snapshot-0000000004.sgs", "snapshot-0000000005.sgs"]
    assert {p.stat().st_mode & 0o777 for p in folder.iterdir()} == {0o600}
    assert folder.stat().st_mode & 0o777 == 0o700
    assert whole(latest_good(folder)) == 4 and latest_good(folder).damaged == ()


def test_falls_back_to_the_previous_generation_and_says_which_is_damaged(tmp_path):
    write_snapshot(tmp_path, filled(1))
    newest = write_snapshot(tmp_path, filled(2))
    data = bytearray(newest.read_bytes())
    data[100] ^= 1
    newest.write_bytes(data)
    found = latest_good(tmp_path)
    assert whole(found) == 1 and found.path.name == "snapshot-0000000001.sgs"
    assert found.damaged == ((newest.name, "x does not have the hash that it should have"),)


def test_both_damaged_is_told(tmp_path):
    for step in (1, 2):
        write_snapshot(tmp_path, filled(step)).write_bytes(b"")
    found = latest_good(tmp_path)
    assert found.snapshot is None and len(found.damaged) == 2 and "cut off" in found.damaged[0][1]


def test_what_killed_processes_left_is_removed_and_what_lives_is_not(tmp_path):
    dead = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True
    )
    for pid in (int(dead.stdout), os.getppid()):
        (tmp_path / f".snapshot-{pid}-0123456789abcdef.tmp").write_bytes(b"x")
    (tmp_path / "of the user.tmp").write_bytes(b"x")
    remove_leftovers(tmp_path)
    left = [p.name for p in tmp_path.iterdir()]
    assert sorted(left) == [f".snapshot-{os.getppid()}-0123456789abcdef.tmp", "of the user.tmp"]


# ---------------------------------------------------------------------- damage (A5)
@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A real snapshot as bytes, and what it holds."""
    run = training("adam", "onecycle")
    run.steps(2)
    path = write_snapshot(tmp_path_factory.mktemp("sound"), snapshot_of(run.state(), 2))
    saved = read_snapshot(path)
    return path.read_bytes(), saved


def everything(saved):
    return [saved.step, saved.places, saved.rng, saved.image, saved.left_out, saved.torch_version]


def flat(value):
    return [t for t in value if isinstance(t, torch.Tensor)]


def test_no_bit_flip_loads_silently_wrong(sound, tmp_path):
    data, _ = sound
    path, rng = tmp_path / "snapshot-0000000001.sgs", random.Random(0)
    manifest = len(data) - len(container.MAGIC) - 40  # half of the flips into the tensors, half behind them
    start = data.index(b'{"format"')
    places = [rng.randrange(start) for _ in range(150)] + [
        rng.randrange(start, len(data)) for _ in range(150)
    ]
    assert start < manifest
    raised = 0
    for place in places:
        flipped = bytearray(data)
        flipped[place] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        with pytest.raises(DamagedSnapshot):
            read_snapshot(path)
        raised += 1
    assert raised == 300


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.9, 0.999])
def test_truncation_is_seen(sound, share, tmp_path):
    path = tmp_path / "snapshot-0000000001.sgs"
    path.write_bytes(sound[0][: int(share * len(sound[0]))])
    with pytest.raises(DamagedSnapshot):
        read_snapshot(path)


def test_appended_bytes_are_seen(sound, tmp_path):
    path = tmp_path / "snapshot-0000000001.sgs"
    path.write_bytes(sound[0] + b"x")
    with pytest.raises(DamagedSnapshot):
        read_snapshot(path)


def test_random_bytes_never_do_anything_else_than_being_refused(sound, tmp_path):
    path, rng, data = tmp_path / "snapshot-0000000001.sgs", random.Random(1), sound[0]
    for _ in range(200):
        mutated = bytearray(data)
        for _ in range(rng.randrange(1, 4)):
            a, b = sorted(rng.randrange(len(mutated) + 1) for _ in range(2))
            mutated[a:b] = rng.choice([b"", rng.randbytes(min(b - a, 64)), bytes(b - a), mutated[a:b] * 2])
        path.write_bytes(mutated)
        if mutated != data:
            with pytest.raises(DamagedSnapshot):
                read_snapshot(path)


# ---------------------------------------------------------------------- forgery: right hashes, wrong contents (S1 - S4)
def forge(path, blobs=b"", manifest=None, raw=None):
    """A file with sound hashes around whatever its manifest says."""
    raw = json.dumps(manifest).encode() if raw is None else raw
    tail = hashlib.sha256(raw).digest() + struct.pack("<Q", len(raw)) + container.MAGIC
    path.write_bytes(container.MAGIC + blobs + raw + tail)
    return path


def parts(data):
    length = struct.unpack("<Q", data[-16:-8])[0]
    return data[8 : -48 - length], json.loads(data[-48 - length : -48])


def refused_cheaply(path):
    """Refused within a second and 200 MB."""
    tracemalloc.start()
    begun = time.process_time()
    try:
        with pytest.raises(DamagedSnapshot):
            read_snapshot(path)
        return time.process_time() - begun < 1 and tracemalloc.get_traced_memory()[1] < 200e6
    finally:
        tracemalloc.stop()


BOMBS = {
    "one terabyte": lambda m: m["blobs"].append(["x", "float32", [1 << 38], "0" * 64]),
    "terabyte of nothing": lambda m: m["blobs"].append(["x", "float32", [1 << 40, 0, 1 << 40], "0" * 64]),
    "overflowing shape": lambda m: m["blobs"].append(["x", "float32", [1 << 47] * 40, "0" * 64]),
    "too many dimensions": lambda m: m["blobs"].append(["x", "float32", [1] * 65, "0" * 64]),
    "negative": lambda m: m["blobs"].append(["x", "float32", [-4], "0" * 64]),
    "number of bytes": lambda m: m["blobs"].append(["x", "float32", 1 << 60, "0" * 64]),
    "not a dtype": lambda m: m["blobs"].append(["x", "_C", [1], "0" * 64]),
    "no such tensor": lambda m: m["places"].append(10**9),
    "negative place": lambda m: m["places"].append(-1),
    "places": lambda m: m.update(places={"a": 1}),
    "image": lambda m: m.update(image=[]),
    "rng": lambda m: m.update(rng=3),
    "step": lambda m: m.update(step="3"),
    "unknown key": lambda m: m.update(path="../../etc/passwd"),
    "missing key": lambda m: m.pop("rng"),
    "version": lambda m: m.update(version=2),
    "byteorder": lambda m: m.update(byteorder="big" if sys.byteorder == "little" else "little"),
    "pickle": lambda m: m["image"]["optimizers"][0].update(state={"!": "pickle", "v": "gASV"}),
    "code": lambda m: m["image"]["optimizers"][0].update(state={"!": "function", "v": "os.system"}),
    "object array": lambda m: m["image"]["attributes"].append(
        ["", [["a", {"!": "array", "d": "|O", "s": [1], "v": ""}]]]
    ),
    "huge array": lambda m: m["image"]["attributes"].append(
        ["", [["a", {"!": "array", "d": "|u1", "s": [1 << 40], "v": ""}]]]
    ),
    "huge dtype": lambda m: m["image"]["attributes"].append(
        ["", [["a", {"!": "array", "d": "<U999999999", "s": [1 << 9], "v": ""}]]]
    ),
    "key that cannot be one": lambda m: m["image"]["optimizers"][0].update(state={"!": "dict", "v": [[[1], 2]]}),
    "ref beyond the file": lambda m: m["image"]["tensors"][0][2].update(p=[10**6]),
    "ref of another shape": lambda m: m["image"]["tensors"][0][2].update(s=[1 << 40]),
    "ref of more dimensions": lambda m: m["image"]["tensors"][0][2].update(s=[1, 6, 6]),
    "device": lambda m: m["image"]["tensors"][0][2].update(d="cpu; import os"),
    "entry": lambda m: m["image"]["tensors"].append(["x"]),
    "sparse out of bounds": lambda m: m["places"].append([0, 0, [2, 2], True]),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_forged_manifest_is_refused_cheaply(name, sound, tmp_path):
    blobs, manifest = parts(sound[0])
    forge(tmp_path / "sound.sgs", blobs, manifest)
    assert read_snapshot(tmp_path / "sound.sgs").step == 2  # the forger works
    BOMBS[name](manifest)
    assert refused_cheaply(forge(tmp_path / "forged.sgs", blobs, manifest))


RAW_BOMBS = {
    "a million deep": b'{"blobs":' + b"[" * 10**6 + b"]" * 10**6 + b"}",
    "a million objects deep": b'{"a":' * 10**6 + b"1" + b"}" * 10**6,
    "ten million values": b'{"blobs":[' + b"[]," * 10**7 + b"1]}",
    "an integer of a million digits": b'{"step":' + b"9" * 10**6 + b"}",
    "NaN": b'{"step":NaN}',
    "not UTF-8": b"\xff\xfe",
    "not an object": b"[]",
    "a long string": b'{"' + b"a" * (40 << 20) + b'":1}',
    "empty": b"",
}


@pytest.mark.parametrize("name", RAW_BOMBS)
def test_json_bomb_is_refused_cheaply(name, tmp_path):
    assert refused_cheaply(forge(tmp_path / "bomb.sgs", raw=RAW_BOMBS[name]))


def test_sparse_file_of_a_terabyte_is_refused_cheaply(tmp_path):
    """The size is right, the hashes need not be: it must not even be allocated."""
    path = tmp_path / "bomb.sgs"
    manifest = {"blobs": [["x", "uint8", [1 << 40], "0" * 64]]}
    raw = json.dumps(manifest).encode()
    with open(path, "wb") as file:
        file.write(container.MAGIC)
        file.truncate(8 + (1 << 40))
        file.seek(0, 2)
        file.write(raw + hashlib.sha256(raw).digest() + struct.pack("<Q", len(raw)) + container.MAGIC)
    assert refused_cheaply(path)


def test_larger_than_allowed_is_refused(tmp_path):
    path = write_snapshot(tmp_path, filled(1, size=1000))
    with pytest.raises(DamagedSnapshot, match="it holds .* bytes of tensors, 3,999 are allowed"):
        read_snapshot(path, max_bytes=3999)


TRAVERSAL = """
../x ../../x ..\\x ..\\..\\x /etc/passwd //etc/passwd \\\\host\\share C:\\x C:x c:/x . .. ... ~/x ~root $HOME/x
%2e%2e/x %2e%2e%2fx %252e%252e%252fx ..%2fx ..%5cx ..%c0%afx ..;/x ./x ./../x a/../../x a/..\\..\\x x/. x/..
file:///etc/passwd http://x/ con CON.sgs nul aux.sgs prn com1 lpt1.sgs snapshot-1.sgs snapshot-0000000001.sgs/
snapshot-0000000001.sgs/../x snapshot-00000000001.sgs SNAPSHOT-0000000001.SGS snapshot-0000000001.sgs.tmp
snapshot-0000000001.sgs::$DATA snapshot-\u0660\u0660\u0660\u0660\u0660\u0660\u0660\u0660\u0660\u0661.sgs
snapshot--000000001.sgs snapshot-+000000001.sgs -rf --help |x `x` $(x) x;y x&y *.sgs ?.sgs [a].sgs \u202egs. \ufeffx
""".split() + ["", " ", "x\0y", "x\ny", "snapshot-0000000001.sgs\n", "\x1b]0;x\x07", "a" * 300]  # fmt: skip


def test_names_from_the_model_never_reach_the_file_system(tmp_path):
    assert len(TRAVERSAL) >= 60
    folder, path = tmp_path / "a" / "b", None
    for name in TRAVERSAL:
        module = nn.Module()
        module._buffers[name] = torch.ones(1)
        path = write_snapshot(folder, snapshot_of(TrainingState([module])))
        assert list(read_snapshot(path).tensors) == [name]
    tree = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*"))
    last = int(path.name[9:19])
    assert tree == ["a", "a/b", f"a/b/snapshot-{last - 1:010d}.sgs", f"a/b/snapshot-{last:010d}.sgs"]


def test_only_plain_files_under_our_names_are_looked_at(tmp_path):
    folder = tmp_path / "snapshots"
    sound = write_snapshot(folder, filled(1))
    secret = tmp_path / "snapshot-0000000009.sgs"
    secret.write_bytes(sound.read_bytes())
    (folder / "snapshot-0000000002.sgs").symlink_to(secret)
    os.mkfifo(folder / "snapshot-0000000003.sgs")
    (folder / "snapshot-0000000004.sgs").mkdir()
    for name in TRAVERSAL:
        if name and "/" not in name and "\0" not in name and len(name) < 200 and name not in (".", ".."):
            (folder / name).write_bytes(sound.read_bytes())
    found = latest_good(folder)
    assert whole(found) == 1 and found.path == sound
    assert [name for name, _ in found.damaged] == [f"snapshot-000000000{i}.sgs" for i in (4, 3, 2)]


def test_foreign_scheduler_state_cannot_add_attributes(tmp_path, sound):
    blobs, manifest = parts(sound[0])
    state = manifest["image"]["schedulers"][0][2]
    state["v"].append(["step", "not a method any more"])
    run = training("adam", "onecycle")
    read_snapshot(forge(tmp_path / "forged.sgs", blobs, manifest)).restore_into(run.state())
    run.steps(1)


def test_foreign_rng_state_is_a_problem_not_an_error(tmp_path, sound):
    blobs, manifest = parts(sound[0])
    manifest["rng"] = {"!": "dict", "v": []}
    run = training("adam", "onecycle")
    restored = read_snapshot(forge(tmp_path / "forged.sgs", blobs, manifest)).restore_into(run.state())
    assert len(restored.problems) == 1 and "random number generators" in restored.problems[0]


# ---------------------------------------------------------------------- every syscall fails once (A10)
CALLS = ("open", "write", "fsync", "replace", "unlink", "close", "mkdir", "listdir", "read", "lseek")


class Failing:
    """Lets the nth call among several functions of ``os`` fail."""

    def __init__(self, monkeypatch, nth, error):
        self.count, self.nth, self.error = 0, nth, error
        for name in CALLS:
            monkeypatch.setattr(os, name, self.wrap(getattr(os, name)))

    def wrap(self, call):
        def wrapped(*args, **kwargs):
            self.count += 1
            if self.count == self.nth:
                raise self.error
            return call(*args, **kwargs)

        return wrapped


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "no space"), KeyboardInterrupt()], ids=["OSError", "Ctrl-C"]
)
def test_last_survives_a_failure_at_every_syscall(error, tmp_path, monkeypatch):
    nth, failures = 0, 0
    while True:
        nth += 1
        folder = tmp_path / str(nth)
        for step in (1, 2):
            write_snapshot(folder, filled(step))
        with monkeypatch.context() as patch:
            failing = Failing(patch, nth, error)
            try:
                write_snapshot(folder, filled(3))
            except type(error) as caught:
                assert caught is error
                failures += 1
            done = failing.count < nth
        found = latest_good(folder)
        assert whole(found) in (2, 3) and found.damaged == ()
        assert done or failing.count >= nth
        leftovers = [n for n in os.listdir(folder) if n.endswith(".tmp")]
        assert leftovers == [] and len(os.listdir(folder)) in (2, 3)
        if done:
            break
    assert failures >= 10 and whole(found) == 3


def test_failing_unlink_of_the_temporary_file_does_not_hide_the_first_error(tmp_path, monkeypatch):
    first = OSError(errno.ENOSPC, "no space")

    def fail(*args):
        raise first

    def fail_too(*args):
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "fsync", fail)
    monkeypatch.setattr(os, "unlink", fail_too)
    with pytest.raises(OSError, match="no space"):
        write_snapshot(tmp_path, filled(1))


def test_short_writes_are_completed(tmp_path, monkeypatch):
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:1000]))
    assert whole(latest_good(write_snapshot(tmp_path, filled(3)).parent)) == 3


def test_file_that_reads_back_differently_is_not_put_in_place(tmp_path, monkeypatch):
    """A disk that lies: what was written is not what is there."""
    write_snapshot(tmp_path, filled(1))
    write = os.write
    monkeypatch.setattr(
        os, "write", lambda fd, data: write(fd, bytes(len(data)) if len(data) == 4000 else data)
    )
    with pytest.raises(DamagedSnapshot, match="x does not have the hash"):
        write_snapshot(tmp_path, filled(2))
    assert whole(latest_good(tmp_path)) == 1 and len(os.listdir(tmp_path)) == 1


# ---------------------------------------------------------------------- processes (A1, A3, A4, A8)
SERVER = """
import json, os, resource, signal, sys, threading
from tests.guard.test_durable import *

for line in sys.stdin:
    job = json.loads(line)
    read, write = os.pipe()
    if os.fork() == 0:
        os.dup2(write, 1)
        sys.argv = ["child", *job["args"]]
        exec(job["code"])
        sys.exit()
    os.close(write)
    out = os.fdopen(read).read()
    print(json.dumps([out, os.waitstatus_to_exitcode(os.wait()[1])]), flush=True)
"""


@pytest.fixture(scope="module")
def child():
    """Runs code in a process of its own: forked off one that has imported everything and has a single thread."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": env}
    with subprocess.Popen([sys.executable, "-c", SERVER], **pipes) as server:

        def run(code, *args):
            job = {"code": textwrap.dedent(code), "args": list(map(str, args))}
            server.stdin.write(json.dumps(job) + "\n")
            server.stdin.flush()
            return json.loads(server.stdout.readline())

        yield run


def test_disk_full_leaves_the_last_one_and_no_temporary_file(tmp_path, child):
    write_snapshot(tmp_path, filled(1))
    out, code = child(
        """
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        told = []
        writer = DurableWriter(sys.argv[1], on_failure=told.append)
        for step in range(2, 5):
            assert writer.submit(filled(step, size=100_000), now=True)
            writer.flush()
        print(len(told), writer.written, told[0])
        """,
        tmp_path,
    )
    assert code == 0 and out.startswith("1 None the snapshot of step 2 was not written to disk: OSError")
    assert whole(latest_good(tmp_path)) == 1 and len(os.listdir(tmp_path)) == 1


def test_folder_that_is_a_file_or_vanishes(tmp_path):
    (tmp_path / "file").write_text("")
    told = []
    writer = DurableWriter(tmp_path / "file", on_failure=told.append)
    assert writer.submit(filled(1)) and writer.flush() and len(told) == 1 and writer.written is None
    writer = DurableWriter(tmp_path / "folder", on_failure=told.append)
    assert writer.submit(filled(1), now=True) and writer.flush()
    (next((tmp_path / "folder").iterdir())).unlink()
    (tmp_path / "folder").rmdir()
    assert writer.submit(filled(2), now=True) and writer.flush() and len(told) == 1
    assert whole(latest_good(tmp_path / "folder")) == 2


@pytest.mark.parametrize("which", ["SIGTERM", "SIGINT"])
def test_signal_during_save(which, tmp_path, child):
    """A handler's exception reaches the script at once, and what is on disk is whole."""
    out, code = child(
        """
        def stop(*_):
            raise KeyboardInterrupt
        number = getattr(signal, sys.argv[2])
        signal.signal(number, stop)
        caught = 0
        for k in range(12):
            write_snapshot(sys.argv[1], filled(1, size=200_000))
            try:
                threading.Timer(0.002 * k, os.kill, (os.getpid(), number)).start()
                while True:
                    write_snapshot(sys.argv[1], filled(2, size=200_000))
            except KeyboardInterrupt:
                caught += 1
            assert whole(latest_good(sys.argv[1])) in (1, 2)
        print(caught, [n for n in os.listdir(sys.argv[1]) if n.endswith(".tmp")])
        """,
        tmp_path,
        which,
    )
    assert (out, code) == ("12 []\n", 0)


def kill_recovery(*args):
    script = ROOT / "benchmarks" / "kill_recovery.py"
    out = subprocess.run(
        [sys.executable, script, *args, "--print-only"], capture_output=True, text=True, check=True
    )
    return json.loads(out.stdout)


def test_kill_recovers_every_time():
    result = kill_recovery("--kills", "10")
    assert result["snapshots"] == {"kills": 10, "recovered": 10}


@pytest.mark.slow
def test_fifty_kills_recover_and_in_place_saving_does_not():
    result = kill_recovery("--kills", "50")
    assert result["snapshots"] == {"kills": 50, "recovered": 50}
    control = result["in_place_control"]
    assert control["recovered"] <= control["kills"] / 2  # else the kills would prove nothing


# ---------------------------------------------------------------------- the writer's thread
def test_writes_what_was_copied_not_what_the_training_has_made_of_it(tmp_path, monkeypatch):
    """A11: the training goes on while the file is written."""
    run = training("adam")
    run.steps(2)
    before, gate = picture(run), threading.Event()
    write = container.write

    def slow(*args):
        assert gate.wait(30)
        write(*args)

    monkeypatch.setattr(container, "write", slow)
    ring = SnapshotRing(run.state())
    ring.take(0)
    writer = DurableWriter(tmp_path)
    assert writer.offer(ring) and not writer.offer(ring)
    for step in range(1, 40):  # the ring goes round, the model is overwritten
        run.step()
        ring.healthy(step)
        if ring.due(step):
            ring.take(step)
    with torch.no_grad():
        for p in run.model.parameters():
            p.fill_(torch.nan)
    assert 0 in ring.ticks
    gate.set()
    assert writer.close() and writer.written == 0
    again = training("adam", seed=1)
    read_snapshot(latest_good(tmp_path).path).restore_into(again.state())
    assert equal(picture(again), before)


def test_snapshot_under_way_is_held_and_let_go(tmp_path):
    ring = SnapshotRing(training().state())
    ring.take(0)
    writer = DurableWriter(tmp_path)
    writer.offer(ring)
    held = ring.newest_good()
    assert writer in held.holders
    writer.flush()
    assert held.holders == set()


def test_offers_are_declined_when_too_soon_or_nothing_is_new(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(durable.time, "monotonic", lambda: clock[0])
    run = training("adam")
    ring = SnapshotRing(run.state())
    ring.take(0)
    writer = DurableWriter(tmp_path, max_share=0.1)
    gate, write = threading.Event(), container.write

    def slow(*args):
        assert gate.wait(30)
        clock[0] += 2.0
        write(*args)

    monkeypatch.setattr(container, "write", slow)
    assert writer.offer(ring)
    gate.set()
    writer.flush()
    assert writer.written == 0 and not writer.offer(ring)
    ring.healthy(0)
    ring.take(1)
    ring.healthy(1)
    clock[0] += 17.0
    assert not writer.offer(ring)  # 2 s of writing allow the next after 18 s
    clock[0] += 1.5
    assert writer.offer(ring)
    writer.flush()
    assert writer.written == 1
    ring.restore(ring.oldest_good())
    assert writer.offer(ring, now=True)  # the run went back: its state is the newest again
    writer.close()
    assert latest_good(tmp_path).snapshot.step == 0


def test_only_good_snapshots_are_offered(tmp_path):
    ring = SnapshotRing(training().state())
    writer = DurableWriter(tmp_path)
    assert not writer.offer(ring)
    ring.take(0)
    for step in range(16):
        ring.healthy(step)
    ring.take(16)
    assert writer.offer(ring) and writer.flush() and writer.written == 0  # 16 is not confirmed yet


def test_forked_child_does_nothing(tmp_path, child):
    out, code = child(
        """
        ring = SnapshotRing(training().state())
        ring.take(0)
        writer = DurableWriter(sys.argv[1])
        if os.fork() == 0:
            os._exit(writer.offer(ring, now=True) or writer.submit(filled(1)) or not writer.close())
        print(os.wait()[1], os.path.exists(sys.argv[1]))
        print(writer.offer(ring), writer.close(), len(os.listdir(sys.argv[1])))
        """,
        tmp_path / "new",
    )
    assert (out, code) == ("0 False\nTrue True 1\n", 0)


def test_process_ends_without_waiting_for_the_thread(tmp_path, child):
    out, code = child(
        """
        container.write = lambda *args: threading.Event().wait(600)
        writer = DurableWriter(sys.argv[1])
        writer.submit(filled(1))
        print(writer.close(timeout=0.05))
        """,
        tmp_path,
    )
    assert (out, code) == ("False\n", 0)


def test_beginning_of_a_run_is_left_alone(tmp_path, monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr(durable.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(durable, "SMALL", 0)
    ring = SnapshotRing(training().state())
    ring.take(0)
    writer = DurableWriter(tmp_path)
    assert not writer.offer(ring) and not writer.submit(ring.newest_good()) and not os.listdir(tmp_path)
    clock[0] += 29.9
    assert not writer.offer(ring)
    clock[0] += 0.2
    assert writer.offer(ring) and writer.close() and latest_good(tmp_path).snapshot.step == 0


def test_little_state_is_written_at_once(tmp_path):
    ring = SnapshotRing(training().state())
    ring.take(0)
    assert DurableWriter(tmp_path).offer(ring)


def test_incident_at_the_beginning_does_not_wait(tmp_path, monkeypatch):
    monkeypatch.setattr(durable, "SMALL", 0)
    ring = SnapshotRing(training().state())
    ring.take(0)
    writer = DurableWriter(tmp_path)
    assert not writer.offer(ring) and writer.offer(ring, now=True) and writer.flush()
    assert latest_good(tmp_path).snapshot.step == 0


def test_short_run_leaves_its_last_good_state_at_close(tmp_path, monkeypatch):
    monkeypatch.setattr(durable, "SMALL", 0)
    run = training("adam")
    ring = SnapshotRing(run.state())
    ring.take(0)
    writer = DurableWriter(tmp_path)
    for step in range(40):
        run.step()
        ring.healthy(step)
        if ring.due(step + 1) and ring.take(step + 1):
            assert not writer.offer(ring)
    assert writer.close() and latest_good(tmp_path).snapshot.step == 32
    assert writer.close() and len(os.listdir(tmp_path)) == 1  # once


def test_close_of_a_writer_that_was_offered_nothing_writes_nothing(tmp_path):
    assert DurableWriter(tmp_path / "new").close() and not (tmp_path / "new").exists()


@pytest.mark.parametrize("bad", [{"max_share": 0}, {"first_after": -1}, {"first_after": float("nan")}])
def test_bad_settings_are_refused(bad, tmp_path):
    with pytest.raises(ValueError, match=f"{next(iter(bad))} must be"):
        DurableWriter(tmp_path, **bad)
