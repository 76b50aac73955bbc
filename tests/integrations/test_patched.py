"""A patched text runs in place of the user's file, and nothing but its lines tells the difference."""

import sys
from pathlib import Path

import pytest

from steadygrad.integrations.arms import ArmRequest, ArmResult, ArmRunner
from steadygrad.integrations.script import Target
from tests.commands import PYTHON, call

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="begins again by exec")

SCRIPT = '''"""A script."""
import inspect, linecache, os, pickle, sys

import helper


class Kept:
    pass


def value():
    return "old"


if __name__ == "__main__":
    print(value(), helper.value(), __name__, __file__, __doc__, sys.argv, os.getcwd(), sys.path[0])
    print(inspect.getsource(value), inspect.getsource(helper.value), linecache.getline(__file__, 12))
    print(pickle.loads(pickle.dumps(Kept())).__class__.__module__, open(__file__).read().count("return"))
    print(sys.modules["__main__"].value is value, sorted(k for k in globals() if k.startswith("__")))
    if "fail" in sys.argv:
        helper.fail()
'''

HELPER = """
def value():
    return "old help"


def fail():
    raise ValueError("as it fails")
"""

SPAWN = """
import multiprocessing

def work(x):
    return "old", x

if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(pool.map(work, [1]))
"""


def patched(folder: Path, monkeypatch: pytest.MonkeyPatch, texts: dict[str, str], *words: str) -> ArmResult:
    monkeypatch.chdir(folder)
    is_module = words[0] == "-m"
    target = Target(words[is_module], words[1 + is_module :], is_module)
    with ArmRunner(words, target) as runner:
        return runner.run(ArmRequest(patched=texts))


def edited(text: str) -> str:
    return text.replace('"old', '# one line more\n    return "new').replace("return # one", "# one")


@pytest.mark.parametrize(
    "words", [("my script.py", "--lr", "a b"), ("sub/../my script.py", "fail"), ("-m", "pkg.main")]
)
def test_it_is_the_edited_file(words, tmp_path, monkeypatch):
    """The oracle: the plain interpreter on a folder with the edited files, moved to the same place."""
    folder = tmp_path / "work"
    files = {"my script.py": SCRIPT, "pkg/main.py": SCRIPT, "pkg/__init__.py": "", "helper.py": HELPER}
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / "sub").mkdir()
    assert (
        call([*PYTHON, "-c", "import helper, pkg.main"], folder).returncode == 0
    )  # there is bytecode of the old text
    texts = {name: edited(text) for name, text in files.items() if text}
    result = patched(folder, monkeypatch, texts, *words)
    assert {name: (folder / name).read_text() for name in files} == files
    for name, text in texts.items():
        (folder / name).write_text(text)
    plain = call([*PYTHON, *words], folder)
    assert "new new help" in plain.stdout
    assert (result.stdout_tail, result.stderr_tail) == (plain.stdout, plain.stderr)
    assert result.exit_code == plain.returncode == ("fail" in words)
    assert result.files_written == result.escaped == ()


def test_spawned_workers_and_launchers_have_it_too(tmp_path, monkeypatch):
    (tmp_path / "s.py").write_text(SPAWN)
    monkeypatch.chdir(tmp_path)
    words = ["sh", "-c", f"{sys.executable} -u s.py"]
    with ArmRunner(words, None) as runner:
        result = runner.run(ArmRequest(patched={"s.py": edited(SPAWN)}))
    assert result.stdout_tail == "[('new', 1)]\n", result.stderr_tail
    assert (tmp_path / "s.py").read_text() == SPAWN


def test_line_ends_are_those_of_the_text(tmp_path, monkeypatch):
    (tmp_path / "s.py").write_text("print(1)\n")
    text = "# \u00fc\r\nprint(repr(open('s.py', newline='', encoding='utf-8').read()))\r\n"
    result = patched(tmp_path, monkeypatch, {str(tmp_path / "s.py"): text}, "s.py")
    assert result.stdout_tail == f"{text!r}\n"


def test_a_patch_needs_the_scratch_folder(tmp_path):
    (tmp_path / "s.py").write_text("")
    with (
        ArmRunner(["s.py"], Target("s.py"), scratch=False) as runner,
        pytest.raises(ValueError, match="scratch=True"),
    ):
        runner.run(ArmRequest(patched={str(tmp_path / "s.py"): "1"}))
