"""Arms write to a scratch folder: a script cannot tell, and the user's files stay as they are.

The oracle is the plain script: the same operations, run by the plain interpreter in a copy of the folder, must print
the same.
"""

import sys
from pathlib import Path

import pytest

from steadygrad.integrations.arms import ArmRequest, ArmResult, ArmRunner
from steadygrad.integrations.script import Target
from tests.commands import PYTHON, call

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX paths")

TRY = """
import contextlib, glob, io, json, logging, os, pathlib, pickle, shutil, sys, tempfile

def tried(call, *args, **kwargs):
    try:
        value = call(*args, **kwargs)
    except OSError as error:
        value = type(error).__name__, error.errno, error.filename, error.filename2
    else:
        value = value.__name__ if callable(value) else value
        if hasattr(value, "close"):
            value.close()
            value = "opened"
    print(getattr(call, "__name__", call), value)

def tree(folder="."):
    for root, folders, files in sorted(os.walk(folder)):
        texts = [(name, pathlib.Path(root, name).read_text()) for name in sorted(files) if name != "s.py"]
        print(root, sorted(folders), texts)
"""

OPERATIONS = {
    "open": """
open("log.txt", "a").write("more\\n")
print(open("log.txt").read(), open("log.txt").name, os.path.getsize("log.txt"))
with open("log.txt", "r+") as file:
    file.write("LINE")
with open(b"new.txt", "w+") as file:
    print(file.name, file.write("a"), file.seek(0), file.read())
open(pathlib.Path("sub", "in sub \u00e9.txt"), "w", encoding="utf-8").write("\u00e9")
tried(open, "log.txt", "x")
tried(open, "new.txt", "x")
tried(open, "absent.txt")
tried(open, "absent.txt", "r+")
tried(open, "absent/file.txt", "w")
tried(open, "sub", "w")
tried(io.open, "sub/kept.txt")
print(open("/dev/null", "w").write("x"))
fd = os.open("raw.bin", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
os.write(fd, b"raw"); os.close(fd)
tried(os.open, "raw.bin", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
tried(os.open, "absent.bin", os.O_RDWR)
print(oct(os.stat("raw.bin").st_mode), os.access("raw.bin", os.R_OK), os.access("absent", os.R_OK))
tree()
""",
    "folders": """
os.makedirs("runs/1/ckpt", exist_ok=True)
os.makedirs("runs/1/ckpt", exist_ok=True)
os.makedirs("sub", exist_ok=True)
pathlib.Path("runs/1/ckpt/a.json").write_text(json.dumps([1]))
tried(os.mkdir, "sub")
tried(os.mkdir, "runs")
tried(os.mkdir, "absent/below")
tried(os.rmdir, "runs")
tried(os.rmdir, "sub")
tried(os.rmdir, "absent")
tried(os.rmdir, "log.txt")
tried(os.listdir, "absent")
print(sorted(os.listdir()), sorted(os.listdir(b"sub")), sorted(glob.glob("**/*", recursive=True)))
print(sorted(map(str, pathlib.Path().rglob("*.json"))))
with os.scandir("runs") as entries:
    print([(e.name, e.path, e.is_dir(), e.is_file(), e.is_symlink(), os.fspath(e)) for e in entries])
print(os.path.exists("runs/1"), os.path.isdir("runs/1"), os.path.isfile("runs/1"), os.path.isdir("sub"))
shutil.rmtree("sub")
print(os.path.exists("sub"), os.path.exists("sub/kept.txt"))
tried(os.stat, "sub/kept.txt")
os.mkdir("sub")
print(os.listdir("sub"))
os.rmdir("sub")
shutil.rmtree("runs")
tried(shutil.rmtree, "runs")
os.chdir(tempfile.mkdtemp())
print(os.listdir())
""",
    "moves": """
tried(os.remove, "absent.txt")
tried(os.remove, "sub") if sys.platform == "linux" else None
pathlib.Path("ckpt.tmp").write_text("new")
os.replace("ckpt.tmp", "ckpt.pt")
pathlib.Path("ckpt.tmp").write_text("newer")
os.replace("ckpt.tmp", "ckpt.pt")
os.replace("ckpt.pt", "log.txt")
tried(os.rename, "absent", "there")
tried(os.rename, "log.txt", "absent/there")
os.rename("old.txt", "sub/moved.txt")
tried(os.remove, "old.txt")
os.rename("sub", "elsewhere")
tree()
shutil.move("elsewhere", "sub")
shutil.copy2("sub/kept.txt", "copy.txt")
shutil.copytree("sub", "whole")
os.remove("sub/kept.txt"); os.unlink("copy.txt")
pathlib.Path("sub/moved.txt").rename("sub/again.txt")
pathlib.Path("sub/again.txt").touch()
os.truncate("sub/again.txt", 2)
os.chmod("log.txt", 0o600); print(oct(os.stat("log.txt").st_mode))
os.utime("log.txt", (1, 2)); print(os.path.getmtime("log.txt"))
os.symlink("log.txt", "last"); print(os.path.islink("last"), open("last").read(), os.readlink("last"))
print(os.path.realpath("last") == os.path.realpath("log.txt"), os.path.samefile("last", "log.txt"))
tried(os.symlink, "log.txt", "last")
os.remove("last")
os.link("log.txt", "second"); print(open("second").read())
moved = tempfile.mkdtemp()
shutil.move("second", moved); print(os.listdir(moved))
shutil.move(os.path.join(moved, "second"), "third"); print(open("third").read())
open("linked", "w").write("through a link"); print(os.path.islink("linked"))
tree()
""",
    "libraries": """
import bz2, csv, gzip, subprocess, zipfile
with gzip.open("x.gz", "wt") as file: file.write("zipped")
with bz2.open("x.bz2", "wt") as file: file.write("zipped")
print(gzip.open("x.gz", "rt").read(), bz2.open("x.bz2", "rt").read())
with zipfile.ZipFile("x.zip", "w") as file: file.writestr("a", "b")
print(zipfile.ZipFile("x.zip").namelist(), zipfile.is_zipfile("x.zip"))
with open("x.pkl", "wb") as file: pickle.dump({"open": open, "stat": os.stat}, file)
print(pickle.load(open("x.pkl", "rb"))["open"] is open)
logging.basicConfig(filename="log.txt", force=True); logging.warning("logged"); print(open("log.txt").read())
with open("x.csv", "w", newline="") as file: csv.writer(file).writerow([1, 2])
with tempfile.NamedTemporaryFile(dir=".", suffix=".part", delete=False) as file: file.write(b"part")
os.replace(file.name, "whole.txt"); print(open("whole.txt").read())
code = "open('log.txt', 'a').write('by a child'); print(open('log.txt').read())"
print(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout)
os.makedirs("work"); os.chdir("work"); open("here.txt", "w").write("h")
print(os.path.basename(os.getcwd()), os.path.abspath("here.txt") == os.path.join(os.getcwd(), "here.txt"))
print(open("../log.txt").read(), os.listdir("."), os.path.exists("../sub/kept.txt"), sorted(os.listdir("..")))
os.chdir("../sub"); print(open("kept.txt").read()); open("kept.txt", "a").write("!"); print(open("kept.txt").read())
""",
}


def make(folder: Path) -> Path:
    (folder / "sub").mkdir(parents=True)
    (folder / "log.txt").write_text("line\n")
    (folder / "old.txt").write_text("old\n")
    (folder / "target.txt").write_text("target\n")
    (folder / "linked").symlink_to("target.txt")
    (folder / "sub" / "kept.txt").write_text("kept\n")
    return folder


def contents(folder: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


def arm(folder: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> ArmResult:
    monkeypatch.chdir(folder)
    with ArmRunner(words, Target(words[0], words[1:])) as runner:
        return runner.run(ArmRequest())


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_script_cannot_tell(name, tmp_path, monkeypatch):
    text = TRY + OPERATIONS[name]
    plain, kept = make(tmp_path / "plain" / "a \u00fc"), make(tmp_path / "kept" / "a \u00fc")
    for folder in (plain, kept):
        (folder / "s.py").write_text(text, encoding="utf-8")
    before = contents(kept)
    wanted = call([*PYTHON, "s.py"], plain)
    assert wanted.returncode == 0, wanted.stderr
    result = arm(kept, monkeypatch, "s.py")
    assert (result.exit_code, result.stderr_tail) == (0, "")
    assert result.stdout_tail == wanted.stdout
    assert contents(kept) == before
    assert result.escaped == ()
    left = {str(path) for path in map(Path, result.files_written)}
    new = {str(kept / name) for name, data in contents(plain).items() if data is not None}
    assert {path for path in new if not (kept / Path(path).name).exists() and "sub" not in path} <= left


def test_the_temp_folder_is_short_and_goes(tmp_path, monkeypatch):
    folder = make(tmp_path / ("long" * 20))
    (folder / "s.py").write_text(
        "import tempfile, os; f = tempfile.mkdtemp(prefix='pymp-'); open(os.path.join(f, 'x'), 'w'); print(f)"
    )
    monkeypatch.setenv("TMPDIR", str(folder))
    result = arm(folder, monkeypatch, "s.py")
    made = result.stdout_tail.strip()
    assert len(f"{made}/listener-xxxxxxxx") <= 107 and not Path(made).exists()
    assert not list(folder.glob("pymp*")) and not list(folder.glob("steadygrad*"))
    assert result.files_written == ()


def test_what_goes_past_is_listed(tmp_path, monkeypatch):
    folder = make(tmp_path / "work")
    (folder / "s.py").write_text(
        "import os, posix, sqlite3\n"
        "sqlite3.connect('facts.db').execute('create table t (x)')\n"
        "posix.close(posix.open('raw.txt', os.O_WRONLY | os.O_CREAT))\n"
    )
    result = arm(folder, monkeypatch, "s.py")
    assert result.escaped == (str(folder / "facts.db"), str(folder / "raw.txt"))
    assert (folder / "raw.txt").exists()


def test_a_traceback_is_the_scripts(tmp_path, monkeypatch):
    folder = make(tmp_path / "work")
    (folder / "s.py").write_text("def load():\n    return open('absent.pt')\n\nload()\n")
    result = arm(folder, monkeypatch, "s.py")
    plain = call([*PYTHON, "s.py"], folder)
    assert result.stderr_tail == plain.stderr and result.user_error and result.exit_code == 1


def test_caches_are_shared(tmp_path, monkeypatch):
    folder, home = make(tmp_path / "work"), tmp_path / "home"
    (home / ".cache").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    (folder / "s.py").write_text("import os; open(os.path.expanduser('~/.cache/x'), 'w').write('x')")
    result = arm(folder, monkeypatch, "s.py")
    assert result.files_written == () and (home / ".cache" / "x").read_text() == "x"


TORCH = """
import os, pathlib, torch
model = torch.nn.Linear(2, 2)
state = model.state_dict()
def same(loaded):
    assert all(torch.equal(loaded[name], value) for name, value in state.items())
torch.save(state, "plain.pt"); same(torch.load("plain.pt"))
torch.save(obj=state, f=pathlib.Path("\u00e9 m.pt")); same(torch.load("\u00e9 m.pt", mmap=True))
torch.save(state, "old.pt", _use_new_zipfile_serialization=False); same(torch.load(f="old.pt"))
with open("file.pt", "wb") as file:
    torch.save(state, file)
same(torch.load(open("file.pt", "rb")))
scripted = torch.jit.script(model)
torch.jit.save(scripted, "jit.pt"); same(torch.jit.load("jit.pt").state_dict())
scripted.save("own.pt"); same(torch.jit.load("own.pt").state_dict())
for bad in ("absent/x.pt", "sub"):
    try:
        torch.save(state, bad)
    except (RuntimeError, OSError) as error:
        print(type(error).__name__)
if __import__("importlib.util").util.find_spec("safetensors"):
    from safetensors.torch import load_file, save_file
    save_file(state, "x.safetensors"); same(load_file("x.safetensors"))
    os.remove("x.safetensors")
print(sorted(os.listdir()))
"""


@pytest.mark.slow
def test_archives_that_are_written_in_c(tmp_path, monkeypatch):
    plain, kept = make(tmp_path / "plain" / "\u00fc"), make(tmp_path / "kept" / "\u00fc")
    for folder in (plain, kept):
        (folder / "s.py").write_text(TORCH, encoding="utf-8")
    before = contents(kept)
    wanted = call([*PYTHON, "s.py"], plain)
    result = arm(kept, monkeypatch, "s.py")
    assert wanted.returncode == result.exit_code == 0, result.stderr_tail
    assert result.stdout_tail == wanted.stdout and contents(kept) == before
    assert len(result.files_written) == 6 and result.escaped == ()
