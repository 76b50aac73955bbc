"""``steadygrad run --with``: a prescription is in force on an untouched script, or nothing of it runs."""

import json
import sys
import textwrap

import pytest

from steadygrad.integrations.prescribed import answer
from steadygrad.repair.effects.clip import ClipNorm
from steadygrad.repair.effects.skip import SkipNonfinite
from tests.commands import PYTHON, STEADYGRAD, call

SCRIPT = """
import torch, torch.nn.functional as F
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.99)
for step in range(30):
    x = torch.randn(16, 4)
    y = x.sum(1, keepdim=True)
    optimizer.zero_grad()
    F.mse_loss(model(x), y).backward()
    optimizer.step()
    schedule.step()
model.eval()
with torch.no_grad():
    out = model(torch.ones(1, 4)).item()
print("LEFT", out.hex(), *(float(p.double().sum()).hex() for p in model.parameters()))
"""
PLAN = {"lr_factor": 0.1, "clip_norm": 1.0, "warmup_steps": 5, "layer_norm": {"modules": ["0"]}}


@pytest.fixture
def here(tmp_path):
    """A folder with a script and a prescription written by hand."""
    (tmp_path / "train.py").write_text(SCRIPT)
    write(tmp_path, PLAN)
    return tmp_path


def write(folder, plan, **about):
    (folder / "fix.json").write_text(json.dumps({"schema": 1, "plan": plan, **about}))


def left(text):
    return next(line for line in text.splitlines() if line.startswith("LEFT"))


def as_an_arm(folder, plan):
    """The same script in a trial of ``steadygrad repair``."""
    code = f"""
        from steadygrad.integrations.trial import Trial
        import sys
        def failed(error): raise error
        trial = Trial({plan!r}, failed=failed)
        trial.install()
        exec(open("train.py").read(), {{"__name__": "__main__"}})
        """
    out = call([*PYTHON, "-c", textwrap.dedent(code)], folder)
    assert out.returncode == 0, out.stderr
    return left(out.stdout)


def test_the_run_is_the_arm_bit_for_bit_and_the_evaluation_sees_the_change(here):
    out = call([*STEADYGRAD, "run", "--with", "fix.json", "--json", "out.json", "train.py"], here)
    assert out.returncode == 0, out.stderr
    plain = call([*PYTHON, "train.py"], here)
    assert left(out.stdout) == as_an_arm(here, PLAN) != left(plain.stdout)
    summary = json.loads((here / "out.json").read_text())
    (action,) = summary["actions"]
    assert action["action"] == "remedy" and action["code"] == ""
    assert "lr_factor 0.1" in action["reason"] and "fix.json" in action["reason"]


@pytest.mark.slow
def test_summary_and_report_say_which_one_was_in_force(here):
    write(here, {"lr_factor": 0.1}, remedies=[{"name": "lr / 10"}])
    out = call([*STEADYGRAD, "run", "--with", "fix.json", "train.py"], here)
    said = "the prescription lr / 10 is in force (fix.json)"
    assert out.stderr.splitlines()[-1] == said and "steady throughout" in out.stderr
    assert call([*STEADYGRAD, "report", "runs/train-1"], here).returncode == 0
    assert said in (here / "runs" / "train-1" / "report.html").read_text()


@pytest.mark.slow
def test_processes_of_a_launcher_have_it_too(here):
    arguments = ["--with", "fix.json", "--json", "out.json", "--", sys.executable, "train.py"]
    out = call([*STEADYGRAD, "run", *arguments], here)
    assert out.returncode == 0, out.stderr
    assert left(out.stdout) == as_an_arm(here, PLAN)
    assert [a["action"] for a in json.loads((here / "out.json").read_text())["actions"]] == ["remedy"]


BAD = {
    "no file": (None, "fix.json cannot be read"),
    "no JSON": ("{", "is no prescription"),
    "no plan": ('{"schema": 1}', "it has no plan"),
    "newer": ('{"schema": 99, "plan": {}}', "has schema 99"),
    "unknown effect": ('{"schema": 1, "plan": {"magic": 1}}', "asks for 'magic'"),
    "bad value": ('{"schema": 1, "plan": {"clip_norm": -1}}', "clip_norm must be a finite number above 0"),
    "bad shape": ('{"schema": 1, "plan": {"layer_norm": 3}}', "fix.json cannot be put in force"),
}


def bad(name, here):
    """Write it; what is to be said of it."""
    text, said = BAD[name]
    (here / "fix.json").unlink()
    if text is not None:
        (here / "fix.json").write_text(text)
    (here / "train.py").write_text("open('ran', 'w')")
    return said


@pytest.mark.parametrize(
    "name", [n if n == "bad value" else pytest.param(n, marks=pytest.mark.slow) for n in BAD]
)
def test_a_bad_prescription_ends_it_before_anything_runs(name, here):
    said = bad(name, here)
    out = call([*STEADYGRAD, "run", "--with", "fix.json", "train.py"], here)
    assert out.returncode == 2 and said in out.stderr
    assert len(out.stderr.splitlines()) == 1
    assert not (here / "ran").exists() and not (here / "runs").exists()


@pytest.mark.parametrize("name", BAD)
def test_what_is_bad_in_a_prescription_is_said_in_one_line(name, here, monkeypatch, capsys):
    """What the process that reads it answers; the command above prints it and ends."""
    said = bad(name, here)
    monkeypatch.chdir(here)
    answer("fix.json")
    (error,) = json.loads(capsys.readouterr().out).values()
    assert said in error and len(error.splitlines()) == 1


def test_a_prescription_is_read_without_torch_in_the_scripts_process(here):
    """The script decides what has to be decided before torch is imported."""
    (here / "train.py").write_text("import sys; print('torch' in sys.modules)\n")
    out = call([*STEADYGRAD, "run", "--with", "fix.json", "train.py"], here)
    assert out.stdout.splitlines()[0] == "False"


@pytest.mark.parametrize("how", [pytest.param("", marks=pytest.mark.slow), "bare except"])
@pytest.mark.parametrize("plan", [{"update_clip": 1.0}, {"layer_norm": {"modules": ["nowhere"]}}])
def test_what_cannot_be_put_in_force_stops_the_run_before_its_first_step(plan, how, here):
    write(here, plan)
    if how:
        script = SCRIPT.replace("    optimizer.step()\n", "    try: optimizer.step()\n    except: pass\n")
        before = "    F.mse_loss(model(x), y).backward()\n"
        script = script.replace(before, "    try: F.mse_loss(model(x), y).backward()\n    except: continue\n")
        (here / "train.py").write_text(script)
    out = call([*STEADYGRAD, "run", "--with", "fix.json", "train.py"], here)
    assert (
        "the prescription cannot be put in force, so the run was stopped before its first step" in out.stderr
    )
    assert out.stderr.count("cannot be put in force") == 1
    if not how:
        assert out.returncode == 2 and "LEFT" not in out.stdout


def test_compiled_code_is_switched_off_where_the_plan_does_not_reach_into_it(here):
    (here / "train.py").write_text("import os; print(os.environ.get('TORCH_COMPILE_DISABLE'))")
    for wanted, eager in (("None", False), ("1", True)):
        found = {"plan": {}, "name": "x", "file": "x", "eager": eager}
        code = (
            "from steadygrad.integrations.options import Options\n"
            "from steadygrad.integrations.script import Target, run_script\n"
            f"run_script(Target('train.py'), Options(prescription={found!r}), at_end=lambda s, e: None)"
        )
        assert call([*PYTHON, "-c", code], here).stdout == f"{wanted}\n"


@pytest.mark.slow
def test_live_repair_from_the_command_line(here):
    out = call([*STEADYGRAD, "run", "--repair", "live", "train.py"], here)
    assert out.returncode == 0 and left(out.stdout) == left(call([*PYTHON, "train.py"], here).stdout)
    out = call([*STEADYGRAD, "run", "--repair", "live", "--guard", "warn", "train.py"], here)
    assert out.returncode == 2 and "--repair live needs the guard" in out.stderr


# ---------------------------------------------------------------------- in this process
def run_here(tmp_path, monkeypatch, plan, batches):
    """A session as under ``steadygrad run``, on a loop of one parameter; gives its summary, and what it has trained."""
    import torch

    from steadygrad.integrations.options import Options
    from steadygrad.integrations.session import Session

    prescription = {"plan": plan, "name": "it", "file": "fix.json", "eager": False}
    options = Options(runs=str(tmp_path), prescription=prescription)
    session = Session(options, script="x.py", exit_on_stop=True)
    session.install()
    try:
        layer = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.ones_(layer.weight)
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        path = []
        for x in batches:
            optimizer.zero_grad()
            layer(torch.tensor([[float(x)]])).sum().backward()
            optimizer.step()
            path.append(layer.weight.item())
    finally:
        summary = session.close()
        session._in_force.clear()
    return summary, path


def test_an_effect_that_fails_later_is_taken_away_with_one_warning(tmp_path, monkeypatch):
    calls = []
    original = ClipNorm.before_step

    def broken(self, optimizer):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("a bug of ours")
        return original(self, optimizer)

    monkeypatch.setattr(ClipNorm, "before_step", broken)
    summary, path = run_here(tmp_path, monkeypatch, {"clip_norm": 0.5}, [1.0] * 6)
    steps = [a - b for a, b in zip([1.0, *path], path, strict=False)]
    assert steps == pytest.approx([0.05, 0.05, 0.1, 0.1, 0.1, 0.1])
    (note,) = summary.notes
    assert "can no longer be kept in force" in note and "a bug of ours" in note
    assert len(calls) == 3


def test_the_skip_of_the_guard_wins_and_the_next_step_is_taken(tmp_path, monkeypatch):
    asked = []
    original = SkipNonfinite.before_step

    def spy(self, optimizer):
        asked.append(original(self, optimizer))
        return asked[-1]

    monkeypatch.setattr(SkipNonfinite, "before_step", spy)
    summary, path = run_here(tmp_path, monkeypatch, {"skip_nonfinite": 1}, [1, float("nan"), 1, 1])
    assert asked == ["take"] * 3
    assert path == pytest.approx([0.9, 0.9, 0.8, 0.7])
    assert [a.action for a in summary.actions] == ["remedy", "skip"]


def test_what_a_remedy_leaves_out_is_no_incident_of_the_guard(tmp_path, monkeypatch):
    batches = [1.0 + 0.01 * (i % 3) for i in range(20)] + [1e3] * 3 + [1.0] * 3
    summary, path = run_here(tmp_path, monkeypatch, {"skip_above": 20}, batches)
    assert path[19:23] == [path[19]] * 4 and path[23] < path[22]
    assert [a.action for a in summary.actions] == ["remedy"]
    assert summary.skipped == 3
