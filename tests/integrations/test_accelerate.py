"""With Accelerate ``sg.watch`` works as it is: before ``prepare`` or after it, and in its checkpoints."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

import steadygrad as sg

accelerate = pytest.importorskip("accelerate")

NAN = float("nan")
X = torch.randn(48, 8, 4, generator=torch.Generator().manual_seed(2))


def make(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.1), nn.Tanh(), nn.Linear(8, 1))
    return model, torch.optim.Adam(model.parameters(), lr=0.01)


def train(accelerator, model, optimizer, steps, bad=()):
    for i in steps:
        with accelerator.accumulate(model):
            loss = (model(X[i]) - X[i].mean(1, keepdim=True)).square().mean()
            accelerator.backward(loss * NAN if i in bad else loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
            optimizer.zero_grad()


@pytest.mark.parametrize("when", ["before", "after"])
def test_each_real_step_is_seen_once_raw_and_the_bad_one_is_skipped(when, tmp_path):
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=4)
    model, optimizer = make()
    raw, wrapped = optimizer, accelerator.prepare(model, optimizer)
    given = raw if when == "before" else wrapped[1]
    with sg.watch(model, given, runs=tmp_path) as run:
        train(accelerator, *wrapped, range(40), bad=(21,))
        summary = run.close()
    assert (summary.steps, summary.skipped) == (10, 1)
    assert [a.step for a in summary.actions] == [5]
    assert all(p.isfinite().all() for p in model.parameters())
    trace = sg.Run(summary.run_dir)
    raw_norms, clipped = (trace.scalar(key)[1].tolist() for key in ("grad_norm", "clipped_grad_norm"))
    assert all(b <= 0.1 + 1e-5 for b in clipped[:5]) and any(a > 0.11 for a in raw_norms[:5])


def test_healthy_steps_are_bit_identical(tmp_path):
    models = []
    for watched in (False, True):
        accelerator = accelerate.Accelerator(cpu=True)
        model, optimizer = accelerator.prepare(*make())
        run = sg.watch(model, optimizer, runs=tmp_path) if watched else None
        train(accelerator, model, optimizer, range(20))
        if run is not None:
            run.close()
        models.append(model)
    assert all(map(torch.equal, models[0].state_dict().values(), models[1].state_dict().values()))


def test_the_watcher_is_in_the_checkpoint(tmp_path):
    """``register_for_checkpointing`` takes it; Accelerate puts the generators back itself."""
    bad, ends = (5, 30, 31, 32), []
    for crash in (None, 24):
        accelerator = accelerate.Accelerator(cpu=True)
        model, optimizer = accelerator.prepare(*make(seed=7 if crash else 0))
        with sg.watch(model, optimizer, runs=tmp_path) as run:
            accelerator.register_for_checkpointing(run)
            if crash is None:
                train(accelerator, model, optimizer, range(24), bad)
                accelerator.save_state(tmp_path / "state")
            else:
                accelerator.load_state(tmp_path / "state")
            train(accelerator, model, optimizer, range(24, 48), bad)
            ends.append((run.actions, model.state_dict()))
    assert ends[0][0] == ends[1][0] and len(ends[0][0]) == 5
    assert all(map(torch.equal, ends[0][1].values(), ends[1][1].values()))


def test_the_snippet_of_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "loops.md").read_text()
    (code,) = (c for c in re.findall(r"```py\n(.*?)```", page, re.S) if "accelerate.Accelerator(" in c)
    names = {"__name__": "__main__"}
    exec(compile(code, "loops.md", "exec"), names)
    assert names["run"].close().steps == 20
