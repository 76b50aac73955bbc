"""The command line: what is refused, what belongs to whom, and what machines read."""

import json
import sys
from pathlib import Path

import pytest

from steadygrad.trace.rundir import trace_path
from steadygrad.trace.writer import TraceWriter
from tests.commands import PYTHON, STEADYGRAD, call


@pytest.fixture
def here(tmp_path) -> Path:
    """A folder with a script that only says what it was given."""
    (tmp_path / "say.py").write_text("import sys; print('said', sys.argv[1:])")
    return tmp_path


def test_help_and_version_load_neither_torch_nor_numpy(here):
    code = (
        "import sys; from steadygrad.cli import main; status = main(sys.argv[1:]);"
        "print(status, sorted({'torch', 'numpy'} & set(sys.modules)))"
    )
    for words in (
        [],
        ["--help"],
        ["run", "--help"],
        ["--version"],
        ["report", "--help"],
        ["demo", "--help"],
        ["repair", "--help"],
    ):
        out = call([*PYTHON, "-c", code, *words], here)
        assert out.stdout.splitlines()[-1] == "0 []", out.stderr


def test_help_names_no_command_that_does_not_exist(here):
    text = call([*STEADYGRAD, "--help"], here).stdout
    assert [
        w for w in ("run", "check", "diagnose", "repair", "explain", "report", "demo") if w not in text
    ] == []
    assert [w for w in ("dashboard",) if w in text] == []


def test_nothing_typed_shows_the_help(here):
    out = call(STEADYGRAD, here)
    assert out.stdout.count("Usage: steadygrad") == 1 and out.stderr == "" and out.returncode == 0


def test_version(here):
    import steadygrad

    assert call([*STEADYGRAD, "--version"], here).stdout == f"steadygrad {steadygrad.__version__}\n"


BAD = {
    "missing script": (["run", "gone.py"], "no such script: gone.py"),
    "missing command": (["run", "--", "no-such-command", "x"], "no such script or command: no-such-command"),
    "missing module": (["run", "-m", "no_such_module"], "no module named 'no_such_module'"),
    "-m alone": (["run", "-m"], "-m needs the name of a module"),
    "directory": (["run", "folder"], "folder is a directory"),
    "nothing": (["run"], "Missing argument 'SCRIPT'"),
    "unknown option": (["run", "--gard", "on", "say.py"], "No such option: --gard"),
    "unknown short option": (["run", "-x", "say.py"], "No such option: -x"),
    "unknown command": (["rum", "say.py"], "No such command 'rum'"),
    "bad tier": (["run", "--tier", "deeper", "say.py"], "'deeper'"),
    "bad guard": (["run", "--guard", "maybe", "say.py"], "'maybe'"),
    "option without value": (["run", "--name"], "'--name' requires an argument"),
    "name with a path": (["run", "--name", "../up", "say.py"], "'../up' is not allowed"),
    "absolute name": (["run", "--name", "/tmp/up", "say.py"], "'/tmp/up' is not allowed"),
    "name with an escape": (["run", "--name", "\x1b[2J", "say.py"], "is not allowed"),
    "runs is a file": (["run", "--runs", "say.py", "say.py"], "is a file"),
    "json in no folder": (["run", "--json", "no/where.json", "say.py"], "cannot be written"),
    "json is a folder": (["run", "--json", "folder", "say.py"], "is a directory"),
    "no run": (["report", "folder"], "is no run directory"),
    "no run of that name": (["report", "train-1"], "is no run directory"),
    "report of nothing": (["report"], "Missing argument 'RUN'"),
    "seed": (["demo", "--seed", "x"], "'--seed'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_exit_2_and_nothing_written(case, here):
    (here / "folder").mkdir()
    words, message = BAD[case]
    before = sorted(here.rglob("*"))
    out = call([*STEADYGRAD, *words], here)
    assert out.returncode == 2 and out.stdout == ""
    assert message in out.stderr and len(out.stderr.splitlines()) == 1
    assert out.stderr.startswith("steadygrad: ") and "\x1b" not in out.stderr
    assert sorted(here.rglob("*")) == before


def test_bad_config_is_bad_input(here):
    (here / "pyproject.toml").write_text('[tool.steadygrad]\nguard = "maybe"\n')
    out = call([*STEADYGRAD, "run", "say.py"], here)
    assert out.returncode == 2 and out.stdout == ""
    assert "pyproject.toml" in out.stderr and "'maybe'" in out.stderr and "off, warn, on" in out.stderr
    (here / "pyproject.toml").unlink()
    out = call([*STEADYGRAD, "run", "say.py"], here, env={"STEADYGRAD_RUN": "x"})
    assert out.returncode == 2 and "STEADYGRAD_RUN" in out.stderr


@pytest.mark.parametrize(
    "given",
    [["--quiet", "--name", "x"], ["-m", "pkg"], ["--", "--lr", "3"], ["--help"], ["-x", "--json", "-"], [""]],
)
def test_what_follows_the_script_belongs_to_it(given, here):
    out = call([*STEADYGRAD, "run", "--guard", "warn", "say.py", *given], here)
    assert out.stdout == f"said {given}\n" and out.returncode == 0


def test_what_follows_the_module_belongs_to_it(here):
    for words in (
        ["-m", "say", "--guard", "x"],
        ["-msay", "--guard", "x"],
        ["--", "-m", "say", "--guard", "x"],
    ):
        assert call([*STEADYGRAD, "run", *words], here).stdout == "said ['--guard', 'x']\n"
    assert call([*STEADYGRAD, "run", "--name", "-m", "say.py"], here).returncode == 2  # -m is no run name


def test_json_for_machines(here):
    out = call([*STEADYGRAD, "run", "--json", "out.json", "say.py", "a"], here)
    value = json.loads((here / "out.json").read_text())
    assert out.stdout == "said ['a']\n"
    assert value["script"] == "say.py" and value["argv"] == ["a"] and value["exit_code"] == 0
    assert value["steps"] == 0 and value["run_dir"] is None


@pytest.mark.parametrize("end", ["\n", "", "\r 10%"])
def test_json_on_stdout_is_its_last_line_and_our_only_one(end, here):
    (here / "s.py").write_text(f"import sys; sys.stdout.write({'text' + end!r}); sys.exit(3)")
    out = call([*STEADYGRAD, "run", "--json", "-", "s.py"], here)
    own, last, nothing = out.stdout.rsplit("\n", 2)
    assert json.loads(last)["exit_code"] == 3 == out.returncode and nothing == ""
    assert own == "text" + end.rstrip("\n")


def test_nothing_seen_is_said_and_leaves_no_folder(here):
    out = call([*STEADYGRAD, "run", "say.py"], here)
    assert "say.py ended, and no optimizer step was seen. Likely reasons:" in out.stderr
    assert not (here / "runs").exists()


def test_report_is_written_and_says_where(here):
    run = here / "runs" / "train-1"
    run.mkdir(parents=True)
    with TraceWriter(trace_path(run), {"script": "train.py"}) as writer:
        for step in range(5):
            writer.scalars(0, step, {"loss": 1.0, "grad_norm": 1.0, "applied": 1.0})
    assert call([*STEADYGRAD, "report", "train-1"], here).stdout == "runs/train-1/report.html\n"
    assert "train.py" in (run / "report.html").read_text()
    out = call([*STEADYGRAD, "report", "runs/train-1", "--out", "page.html", "--json", "-"], here)
    value = json.loads(out.stdout)
    assert value["schema"] == 1 and value["html"] == "page.html" and value["run_dir"] == "runs/train-1"
    assert (here / "page.html").exists()
    out = call([*STEADYGRAD, "report", "train-1", "--out", "runs"], here)
    assert out.returncode == 2 and len(out.stderr.splitlines()) == 1


def test_in_one_file_the_last_words_come_last(here):
    command = " ".join(STEADYGRAD)
    call(["sh", "-c", f"{command} run say.py > log 2>&1"], here)
    lines = (here / "log").read_text().splitlines()
    assert lines[0] == "said []" and lines[1].startswith("say.py ended")


def test_installed_command_is_the_same(here):
    command = Path(sys.executable).with_name("steadygrad")
    assert call([command, "run", "say.py", "-x"], here).stdout == "said ['-x']\n"
