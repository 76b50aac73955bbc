"""In Hugging Face's Trainer: state in its checkpoints, no bad checkpoint, numbers in its logs, clear refusals."""

import json
import logging
import re
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import steadygrad as sg
from steadygrad.integrations.callbacks import huggingface as steady

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

STEPS, CRASH, BATCH, EPOCH = 36, 22, 8, 10
NAN = float("nan")
X = torch.randn(EPOCH * BATCH, 4, generator=torch.Generator().manual_seed(2))
ROWS = [{"x": row, "labels": row.mean(0, keepdim=True)} for row in X]


class Net(nn.Module):
    """Its loss is NaN in some forward passes, and one of them fails."""

    def __init__(self, bad=(), crash=None, first=0):
        super().__init__()
        self.bad, self.crash, self.calls = bad, crash, first
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.1), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, x, labels=None):
        call, self.calls = self.calls, self.calls + 1
        if call == self.crash:
            raise RuntimeError("the machine went away")
        out = self.net(x)
        loss = F.mse_loss(out, labels)
        return {"loss": loss * NAN if call in self.bad else loss, "logits": out}


class Spoil(transformers.TrainerCallback):
    """A weight is made NaN after a step, behind everybody's back."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, model=None, **more):
        if state.global_step == self.step:
            with torch.no_grad():
                model.net[0].weight[0, 0] = NAN


class Reporter(transformers.TrainerCallback):
    """Like those of TensorBoard and W&B: before the user's callbacks."""

    def __init__(self):
        self.rows = []

    def on_log(self, args, state, control, logs=None, **more):
        self.rows.append(dict(logs))


def train(folder, model, *callbacks, steps=STEPS, resume=None, seed=1, **more):
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=BATCH, max_steps=steps, report_to=[], use_cpu=True,
        disable_tqdm=True, learning_rate=0.01, seed=seed, data_seed=3,
        **{"save_strategy": "no", "logging_strategy": "no"} | more,
    )  # fmt: skip
    trainer = transformers.Trainer(model, arguments, train_dataset=ROWS, callbacks=list(callbacks))
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def seeded(**how):
    torch.manual_seed(0)
    return Net(**how)


def test_a_crashed_run_goes_on_bit_for_bit(tmp_path):
    bad, saving = (9, 25, 26, 27), {"save_strategy": "steps", "save_steps": 11}
    whole, one = seeded(bad=bad), steady.SteadyCallback(runs=str(tmp_path))
    train(tmp_path / "whole", whole, one, **saving)
    crashed = steady.SteadyCallback(runs=str(tmp_path))
    with pytest.raises(RuntimeError, match="went away"):
        train(tmp_path / "crashed", seeded(bad=bad, crash=CRASH), crashed, **saving)
    crashed.close()
    resumed, two = Net(bad=bad, first=CRASH), steady.SteadyCallback(runs=str(tmp_path))
    last = str(tmp_path / "crashed" / f"checkpoint-{CRASH}")
    train(tmp_path / "crashed", resumed, two, resume=last, seed=1, **saving)
    assert one.run.close().actions == two.run.close().actions
    assert [a.action for a in one.run.close().actions[:5]] == ["skip"] * 4 + ["rollback"]
    assert all(map(torch.equal, whole.state_dict().values(), resumed.state_dict().values()))
    assert any(note.startswith(f"resumed at step {CRASH}") for note in two.run.close().notes)


def test_a_healthy_run_is_bit_identical_and_every_step_and_tensor_is_seen(tmp_path):
    plain, watched, callback = seeded(), seeded(), steady.SteadyCallback(runs=str(tmp_path / "runs"))
    train(tmp_path / "out", plain, steps=100, max_grad_norm=0.05)
    train(tmp_path / "out", watched, callback, steps=100, max_grad_norm=0.05)
    assert all(map(torch.equal, plain.state_dict().values(), watched.state_dict().values()))
    run = sg.Run(callback.run.run_dir)
    assert callback.run.close().steps == 100 and len(run.scalar("grad_norm")[0]) == 100
    assert {p.name for p in run.params} == {name for name, _ in watched.named_parameters()}
    assert max(run.scalar("clipped_grad_norm")[1]) < 0.051 < max(run.scalar("grad_norm")[1])


def test_a_checkpoint_from_before_the_callback_is_resumed_as_well(tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 3}
    train(tmp_path / "out", seeded(), steps=3, **saving)
    callback = steady.SteadyCallback(runs=str(tmp_path / "runs"))
    train(
        tmp_path / "out", seeded(), callback, steps=6, resume=str(tmp_path / "out" / "checkpoint-3"), **saving
    )
    state = json.loads((tmp_path / "out" / "checkpoint-6" / "trainer_state.json").read_text())
    assert state["stateful_callbacks"]["SteadyCallback"]["attributes"]["saved"]
    assert callback.run.close().steps == 3
    assert (
        "the checkpoint holds no state of steadygrad: its history begins anew" in callback.run.close().notes
    )


def test_the_trainers_own_way_of_restoring_callbacks(tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 4}
    train(
        tmp_path / "out",
        seeded(),
        steady.SteadyCallback(runs=str(tmp_path / "runs"), name="mine"),
        steps=4,
        **saving,
    )
    given = steady.SteadyCallback(runs=str(tmp_path / "elsewhere"))
    how = {"resume": str(tmp_path / "out" / "checkpoint-4"), "restore_callback_states_from_checkpoint": True}
    trainer = train(tmp_path / "out", seeded(), given, steps=6, **how)
    (callback,) = (c for c in trainer.callback_handler.callbacks if isinstance(c, steady.SteadyCallback))
    assert callback.run.run_dir.name == "mine-2" and callback.run.close().steps == 6


def test_a_bad_state_is_not_saved_and_rotates_no_good_one_away(tmp_path, caplog):
    """Without the callback the same run keeps nothing but bad checkpoints."""
    saving = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": 1}
    for guarded in (False, True):
        ours = [steady.SteadyCallback(runs=str(tmp_path / "runs"))] if guarded else []
        train(tmp_path / str(guarded), seeded(), *ours, Spoil(6), steps=6, **saving)
    names = [[path.name for path in (tmp_path / which).iterdir()] for which in ("False", "True")]
    assert names == [["checkpoint-6"], ["checkpoint-4"]]
    assert any("checkpoint is not saved" in m and "net.0.weight not finite" in m for m in caplog.messages)


def test_numbers_go_to_the_trainers_logs_and_to_those_who_report_them(tmp_path, caplog):
    callback, reporter = steady.SteadyCallback(runs=str(tmp_path / "runs")), Reporter()
    with caplog.at_level(logging.WARNING, logger="transformers"):
        transformers.utils.logging.enable_propagation()
        try:
            trainer = train(
                tmp_path / "out", seeded(bad=(3,)), reporter, callback, steps=6, logging_strategy="steps",
                logging_steps=2,
            )  # fmt: skip
        finally:
            transformers.utils.logging.disable_propagation()
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert [row["steadygrad/skipped"] for row in rows] == [0, 1, 1]
    assert [row["steadygrad/skipped"] for row in reporter.rows[:3]] == [0, 1, 1]
    assert any(m.startswith("steadygrad: step 3: skip") and "recorded in" in m for m in caplog.messages)


def test_another_major_version_is_refused(monkeypatch):
    monkeypatch.setattr(sys.modules["transformers"], "__version__", "6.0.1")
    with pytest.raises(ImportError, match=r"written for transformers 5.x, and .* is of transformers 6.0.1"):
        steady.SteadyCallback()


def test_two_on_one_optimizer_are_refused_by_name(tmp_path):
    first, second = (steady.SteadyCallback(runs=str(tmp_path), name=name) for name in ("first", "second"))
    words = r"AdamW is watched already by SteadyCallback \(huggingface\), run first-1, and SteadyCallback"
    with pytest.raises(ValueError, match=words):
        train(tmp_path / "out", seeded(), first, second, steps=1)
    first.close()
    model = seeded()
    sg.watch(model, torch.optim.SGD(model.parameters(), lr=0.1), runs=tmp_path).close()


@pytest.mark.filterwarnings("ignore::UserWarning")  # the framework's own: no accelerator, no TensorBoard
def test_the_snippet_of_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "loops.md").read_text()
    (code,) = (c for c in re.findall(r"```py\n(.*?)```", page, re.S) if "transformers.Trainer(" in c)
    names = {"__name__": "__main__"}
    exec(compile(code, "loops.md", "exec"), names)
    assert names["steady"].run.close().steps > 0
