"""A resumed run is bit for bit the one that was not interrupted: its parameters, and what the guard decided."""

import io

import pytest
import torch
from torch import nn

import steadygrad as sg
from steadygrad.schedule import ResumableLoader, ResumableSampler

STEPS, CRASH = 105, 57
NAN = float("nan")
X = torch.randn(STEPS, 16, 8, generator=torch.Generator().manual_seed(1))


def training(seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Dropout(0.1), nn.Linear(16, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    return model, optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 1 / (1 + t / 50))


def take_steps(run, parts, steps, fault, save_at=None, **how):
    """The loop of a user; the checkpoint as bytes, if one is saved."""
    model, optimizer, scheduler = parts
    file = io.BytesIO()
    for i in steps:
        x, y = X[i], X[i].mean(1, keepdim=True)
        if i in fault:
            x, y = fault[i](x, y)
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()
        scheduler.step()
        if i + 1 == save_at:
            watcher = run.state_dict(**how)
            torch.save({"watcher": watcher, "parts": [part.state_dict() for part in parts]}, file)
    return file.getvalue()


def load_parts(parts, checkpoint):
    for part, state in zip(parts, checkpoint["parts"], strict=True):
        part.load_state_dict(state)


def read(file):
    return torch.load(io.BytesIO(file), weights_only=True)


def told(run):
    return [(f.code, f.step, f.where, f.message) for f in run.findings]


def same(a, b):
    return all(map(torch.equal, a.state_dict().values(), b.state_dict().values()))


def poison(x, y):
    return torch.where(torch.arange(16)[:, None] == 3, NAN, x), y


FAULTS = {
    "a skip just before and later, then a rollback": (56, 60, 80, 81, 82),
    "across the checkpoint": (55, 56, 57),
    "rollbacks before and after": (20, 21, 22, 58, 59, 60, 90, 91, 92),
}


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(bad, id=name, marks=[pytest.mark.slow] if name == "across the checkpoint" else [])
        for name, bad in FAULTS.items()
    ],
)
def test_resumed_is_bit_equal_to_uninterrupted(bad, tmp_path):
    whole, resumed, fault = training(0), training(5), dict.fromkeys(bad, poison)
    with sg.watch(whole[0], whole[1], runs=tmp_path) as run:
        file = take_steps(run, whole, range(STEPS), fault, save_at=CRASH)
        actions, findings = run.actions, told(run)
    assert actions and findings
    torch.manual_seed(99)
    with sg.watch(resumed[0], resumed[1], runs=tmp_path) as run:
        checkpoint = read(file)
        load_parts(resumed, checkpoint)
        run.load_state_dict(checkpoint["watcher"])
        take_steps(run, resumed, range(CRASH, STEPS), fault)
        assert (run.actions, told(run)) == (actions, findings)
    assert same(whole[0], resumed[0]) and whole[2].state_dict() == resumed[2].state_dict()


def test_an_open_incident_is_acted_on_as_without_the_crash(tmp_path):
    """The patience of the guard goes on where it stood."""
    fault = dict.fromkeys(range(52, STEPS), lambda x, y: (x, y * 0 + 5000 * torch.sign(x[:, :1])))
    runs = []
    for crash in (None, CRASH):
        parts = training(0)
        with sg.watch(parts[0], parts[1], runs=tmp_path) as run:
            if crash is None:
                file = take_steps(run, parts, range(STEPS), fault, save_at=CRASH)
                assert read(file)["watcher"]["guard"]["policy"]["incident"] is not None
            else:
                checkpoint = read(file)
                load_parts(parts, checkpoint)
                run.load_state_dict(checkpoint["watcher"])
                take_steps(run, parts, range(CRASH, STEPS), fault)
            runs.append((run.actions, parts[0]))
    assert runs[0][0] == runs[1][0] and same(runs[0][1], runs[1][1])
    assert [a.action for a in runs[0][0]] == ["rollback"]


def test_without_snapshots_it_goes_back_to_the_checkpoint_and_says_so(tmp_path):
    parts, resumed = training(0), training(0)
    with sg.watch(parts[0], parts[1], runs=tmp_path) as run:
        file = take_steps(run, parts, range(CRASH), {}, save_at=CRASH, snapshots=False)
        whole = len(io.BytesIO(file).getvalue())
        take_steps(run, parts, range(0), {})
    with sg.watch(resumed[0], resumed[1], runs=tmp_path) as run:
        checkpoint = read(file)
        load_parts(resumed, checkpoint)
        short = run.load_state_dict(checkpoint["watcher"])
        assert any("the guard can go back to this one at most" in text for text in short)
        take_steps(run, resumed, range(CRASH, CRASH + 4), dict.fromkeys((57, 58, 59), poison))
        (back,) = (a for a in run.actions if a.action == "rollback")
    assert back.details["steps_back"] == 3 and whole < 120_000


def test_a_watcher_that_is_loaded_before_the_model_goes_back_to_the_loaded_weights(tmp_path):
    parts, resumed = training(0), training(5)
    with sg.watch(parts[0], parts[1], runs=tmp_path) as run:
        file = take_steps(run, parts, range(CRASH), {}, save_at=CRASH, snapshots=False)
    with sg.watch(resumed[0], resumed[1], runs=tmp_path) as run:
        checkpoint = read(file)
        run.load_state_dict(checkpoint["watcher"])
        load_parts(resumed, checkpoint)
        before = [p.clone() for p in resumed[0].parameters()]
        take_steps(run, resumed, range(CRASH, CRASH + 4), dict.fromkeys((58, 59, 60), poison))
        assert run.actions[-1].details["steps_back"] == 4
    assert all(map(torch.equal, before, resumed[0].parameters()))


def test_a_loader_that_has_a_state_goes_on_where_it_stood(tmp_path):
    parts = training(0)
    data = range(64)

    def loader():
        return ResumableLoader(
            torch.utils.data.DataLoader(data, batch_size=4, sampler=ResumableSampler(data))
        )

    first = loader()
    batches = iter(first)
    for _ in range(3):
        next(batches)
    with sg.watch(parts[0], parts[1], runs=tmp_path) as run:
        take_steps(run, parts, range(3), {})
        state = run.state_dict(data=first)
    after = [batch.tolist() for batch in batches]
    second, parts = loader(), training(0)
    with sg.watch(parts[0], parts[1], runs=tmp_path) as run:
        assert run.load_state_dict(state, data=second) == ()
    assert [batch.tolist() for batch in second] == after


def test_without_one_it_says_that_the_data_were_not_restored(tmp_path):
    parts = training(0)
    with sg.watch(parts[0], parts[1], runs=tmp_path) as run:
        take_steps(run, parts, range(3), {})
        state = run.state_dict()
    parts = training(0)
    run = sg.watch(parts[0], parts[1], runs=tmp_path)
    (short,) = run.load_state_dict(state)
    assert short.startswith("the position in the data was not restored") and "step 3" in short
    assert short in run.close().notes


def test_the_trace_begins_with_the_next_step_and_names_the_run_before(tmp_path):
    parts = training(0)
    with sg.watch(parts[0], parts[1], runs=tmp_path, name="first") as run:
        take_steps(run, parts, range(30), dict.fromkeys((20,), poison))
        state = run.state_dict()
    parts = training(0)
    with sg.watch(parts[0], parts[1], runs=tmp_path, name="second") as run:
        run.load_state_dict(state)
        take_steps(run, parts, range(30, 40), {})
        summary = run.close()
    assert (summary.steps, summary.skipped, len(summary.actions)) == (40, 1, 1)
    assert any(note.startswith("resumed at step 30 of ") and "first-1" in note for note in summary.notes)
    trace = sg.Run(summary.run_dir)
    assert trace.meta["resumed_from"] == {"run_dir": state["origin"]["run_dir"], "step": 30}
    assert trace.scalar("loss")[0][0] == 30


def test_random_numbers_go_on_or_stay_as_asked(tmp_path):
    parts = training(0)
    with sg.watch(parts[0], parts[1], runs=tmp_path) as run:
        state = run.state_dict()
    expected = torch.rand(1)
    for rng in (True, False):
        parts = training(1)
        with sg.watch(parts[0], parts[1], runs=tmp_path) as run:
            torch.manual_seed(7)
            run.load_state_dict(state, rng=rng)
            assert torch.equal(torch.rand(1), expected) == rng


def test_what_does_not_fit_is_refused_and_nothing_is_changed(tmp_path):
    parts = training(0)
    with sg.watch(parts[0], parts[1], runs=tmp_path) as run:
        take_steps(run, parts, range(3), {})
        state = run.state_dict()
        with pytest.raises(ValueError, match="before the first step, and 3 are over"):
            run.load_state_dict(state)
        with pytest.raises(TypeError, match="a list has none"):
            run.state_dict(data=[1])
    with pytest.raises(ValueError, match="take its state before it is closed"):
        run.state_dict()
    model = nn.Linear(2, 1)
    adam, sgd = torch.optim.Adam(model.parameters()), torch.optim.SGD(model.parameters(), lr=0.1)
    for optimizer, given, words in (
        (sgd, state, "the state is of Adam, and this run watches SGD"),
        (adam, state, "the state is of 6 parameters of Adam, and this run has 2"),
        (adam, {**state, "format": 99}, "in format 99"),
        (adam, {"model": {}}, "this is no state of a watcher"),
        (adam, None, "this is no state of a watcher"),
    ):
        generators = torch.get_rng_state()
        with sg.watch(model, optimizer, runs=tmp_path) as run:
            with pytest.raises(ValueError, match=words):
                run.load_state_dict(given)
            assert run.actions == [] and torch.equal(generators, torch.get_rng_state())


def test_a_remedy_that_was_in_force_is_in_force_again(tmp_path):
    steps, crash = 120, 112
    torch.manual_seed(0)
    x = torch.randn(steps, 32, 8)
    y = 2 * x.mean(2, keepdim=True)
    x[12:15] = NAN

    def make():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1))
        return model, torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)

    def train(run, parts, which):
        for i in which:
            parts[1].zero_grad()
            (parts[0](x[i]) - y[i]).square().mean().backward()
            parts[1].step()

    whole, resumed, file = make(), make(), io.BytesIO()
    with sg.watch(whole[0], whole[1], runs=tmp_path, repair="live") as run:
        train(run, whole, range(crash))
        watcher = run.state_dict()  # decides the trials that are under way
        torch.save({"watcher": watcher, "parts": [p.state_dict() for p in whole]}, file)
        train(run, whole, range(crash, steps))
    (remedy,) = watcher["repair"]["in_force"]
    with sg.watch(resumed[0], resumed[1], runs=tmp_path, repair="live") as run:
        checkpoint = read(file.getvalue())
        load_parts(resumed, checkpoint)
        short = run.load_state_dict(checkpoint["watcher"])
        assert any(text.startswith(f"{remedy['name']}: in force again") for text in short)
        train(run, resumed, range(crash, steps))
        assert run.state_dict()["repair"]["in_force"] == [remedy]
    assert same(whole[0], resumed[0])
