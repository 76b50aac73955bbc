"""In Lightning: state in the trainer's checkpoints, no bad checkpoint, numbers in its logger, clear refusals."""

import logging
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import steadygrad as sg
from steadygrad.integrations.callbacks import lightning as steady
from steadygrad.schedule import ResumableLoader, ResumableSampler

pl = pytest.importorskip("lightning.pytorch")
from lightning.pytorch.callbacks import ModelCheckpoint  # noqa: E402
from lightning.pytorch.loggers import CSVLogger  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),  # Lightning's own
    pytest.mark.filterwarnings("ignore::lightning.pytorch.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:.*num_workers:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*exists and is not empty:UserWarning"),
]

STEPS, EPOCH, CRASH, BATCH = 45, 10, 27, 8
NAN = float("nan")
SILENT = {"accelerator": "cpu", "enable_model_summary": False, "enable_progress_bar": False}


class Data(torch.utils.data.Dataset):
    """Rows of which some are bad, in the pass over the data with this number."""

    def __init__(self):
        generator = torch.Generator().manual_seed(2)
        self.x = torch.randn(EPOCH * BATCH, 4, generator=generator)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i], self.x[i].mean(0, keepdim=True)


class Module(pl.LightningModule):
    def __init__(self, bad=(), crash=None):
        super().__init__()
        self.bad, self.crash = bad, crash
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.1), nn.Tanh(), nn.Linear(8, 1))

    def training_step(self, batch, index):
        if self.global_step == self.crash:
            raise RuntimeError("the machine went away")
        loss = F.mse_loss(self.net(batch[0]), batch[1])
        return loss * NAN if self.global_step in self.bad else loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


class Spoil(pl.Callback):
    """A weight is made NaN after a step, behind everybody's back."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, pl_module, *args):
        if trainer.global_step == self.step:
            with torch.no_grad():
                pl_module.net[0].weight[0, 0] = NAN


def fit(module, *callbacks, steps=STEPS, ckpt=None, loader=None, seed=1, **more):
    more = {
        "logger": False,
        "enable_checkpointing": any(isinstance(c, ModelCheckpoint) for c in callbacks),
    } | more
    trainer = pl.Trainer(max_steps=steps, max_epochs=-1, callbacks=list(callbacks), **SILENT, **more)
    if loader is None:
        data = Data()
        loader = ResumableLoader(
            torch.utils.data.DataLoader(data, batch_size=BATCH, sampler=ResumableSampler(data))
        )
    torch.manual_seed(seed)
    trainer.fit(module, loader, ckpt_path=ckpt)
    return trainer


def seeded(**how):
    torch.manual_seed(0)
    return Module(**how)


def test_a_crashed_run_goes_on_bit_for_bit(tmp_path):
    bad, modules, callbacks = (12, 30, 31, 32), [], []
    for crash, ckpt, seed in ((None, None, 1), (CRASH, None, 1), (None, "epoch=2-step=27.ckpt", 5)):
        folder = tmp_path / ("whole" if not callbacks else "crashed")
        saving = ModelCheckpoint(every_n_train_steps=9, save_top_k=-1, dirpath=folder)
        modules.append(seeded(bad=bad, crash=crash))
        callbacks.append(steady.SteadyCallback(runs=str(tmp_path)))
        how = {"ckpt": ckpt and folder / ckpt, "seed": seed}
        if crash is None:
            fit(modules[-1], callbacks[-1], saving, **how)
        else:
            with pytest.raises(RuntimeError, match="went away"):
                fit(modules[-1], callbacks[-1], saving, **how)
    whole, resumed = (callback.run.close() for callback in callbacks[::2])
    assert whole.actions == resumed.actions
    assert [a.action for a in whole.actions[:5]] == ["skip"] * 4 + ["rollback"]
    assert all(map(torch.equal, modules[0].state_dict().values(), modules[2].state_dict().values()))
    assert [note.partition(" of ")[0] for note in resumed.notes if "resumed" in note] == [
        "resumed at step 27"
    ]
    assert not any("position in the data" in note for note in resumed.notes)


def test_a_healthy_run_is_bit_identical_and_every_step_and_tensor_is_seen(tmp_path):
    plain, watched, callback = seeded(), seeded(), steady.SteadyCallback(runs=str(tmp_path))
    fit(plain, steps=100, gradient_clip_val=0.05)
    fit(watched, callback, steps=100, gradient_clip_val=0.05)
    assert all(map(torch.equal, plain.state_dict().values(), watched.state_dict().values()))
    run = sg.Run(callback.run.run_dir)
    assert callback.run.close().steps == 100 and len(run.scalar("grad_norm")[0]) == 100
    assert [p.name for p in run.params] == [name for name, _ in watched.named_parameters()]
    assert max(run.scalar("clipped_grad_norm")[1]) < 0.051 < max(run.scalar("grad_norm")[1])


def test_a_checkpoint_that_is_saved_after_the_training_has_the_state_too(tmp_path):
    callback = steady.SteadyCallback(runs=str(tmp_path))
    fit(seeded(bad=(3,)), callback, steps=EPOCH).save_checkpoint(tmp_path / "end.ckpt")
    fit(seeded(), callback, steps=EPOCH + 2, ckpt=tmp_path / "end.ckpt")
    assert (callback.run.close().steps, callback.run.close().skipped) == (EPOCH + 2, 1)
    fit(seeded(), steps=EPOCH).save_checkpoint(tmp_path / "without.ckpt")
    fit(seeded(), callback, steps=EPOCH + 2, ckpt=tmp_path / "without.ckpt")
    assert (
        "the checkpoint holds no state of steadygrad: its history begins anew" in callback.run.close().notes
    )


def test_a_loader_without_a_place_is_told_of(tmp_path):
    data, saving = Data(), ModelCheckpoint(every_n_train_steps=4, save_top_k=-1, dirpath=tmp_path / "saved")
    loader = torch.utils.data.DataLoader(data, batch_size=BATCH)
    fit(seeded(), steady.SteadyCallback(runs=str(tmp_path)), saving, steps=4, loader=loader)
    callback = steady.SteadyCallback(runs=str(tmp_path))
    fit(seeded(), callback, saving, steps=6, loader=loader, ckpt=tmp_path / "saved" / "epoch=0-step=4.ckpt")
    assert any("within an epoch" in note and "ResumableLoader" in note for note in callback.run.close().notes)


def test_a_bad_state_is_not_saved_and_rotates_no_good_one_away(tmp_path, caplog):
    """Without the callback the same run keeps nothing but bad checkpoints."""
    kept = {}
    for guarded in (False, True):
        folder = tmp_path / str(guarded)
        saving = ModelCheckpoint(every_n_train_steps=2, save_top_k=1, save_last=True, dirpath=folder)
        callbacks = [Spoil(6), saving, *([steady.SteadyCallback(runs=str(tmp_path))] if guarded else [])]
        fit(seeded(), *callbacks, steps=6)
        kept[guarded] = [sg.is_healthy(torch.load(path)["state_dict"]) for path in sorted(folder.iterdir())]
    assert not any(kept[False]) and len(kept[False]) == 2
    assert all(kept[True]) and len(kept[True]) == 2
    assert any("the checkpoint is not saved" in m and "net.0.weight not finite" in m for m in caplog.messages)
    assert not [name for name in vars(saving) if name in steady.SAVES]  # nothing of ours stays


def test_a_watching_callback_only_says_so(tmp_path, caplog):
    saving = ModelCheckpoint(every_n_train_steps=2, save_top_k=1, dirpath=tmp_path / "saved")
    fit(seeded(), Spoil(2), saving, steady.SteadyCallback(runs=str(tmp_path), guard="warn"), steps=4)
    assert [path.name for path in (tmp_path / "saved").iterdir()] == ["epoch=0-step=4.ckpt"]
    assert any("a checkpoint is saved that is not healthy" in message for message in caplog.messages)


def test_numbers_go_to_the_trainers_logger_its_bar_and_a_sink(tmp_path, caplog):
    class Sink:
        def __init__(self):
            self.rows, self.events = [], []

        def write(self, scalars, step):
            self.rows.append(step)

        def event(self, event):
            self.events.append(event.name)

        def artifact(self, path): ...
        def close(self): ...

    sink, logger = Sink(), CSVLogger(tmp_path, name="logs")
    callback = steady.SteadyCallback(runs=str(tmp_path), sink=sink)
    with caplog.at_level(logging.WARNING):
        trainer = fit(seeded(bad=(3,)), callback, steps=6, logger=logger, log_every_n_steps=1)
    rows = (tmp_path / "logs" / "version_0" / "metrics.csv").read_text().splitlines()
    assert "steadygrad/grad_norm" in rows[0] and len(rows) == 1 + 6
    assert {"steadygrad/grad_norm", "steadygrad/skipped"} <= set(trainer.progress_bar_metrics)
    assert trainer.callback_metrics["steadygrad/skipped"] == 1
    assert any(m.startswith("steadygrad: step 3: skip") and "recorded in" in m for m in caplog.messages)
    assert sink.rows == list(range(6)) and "skip" in sink.events


def test_a_trainer_of_another_major_version_is_refused(tmp_path, monkeypatch):
    import lightning

    callback = steady.SteadyCallback(runs=str(tmp_path))
    monkeypatch.setattr(lightning, "__version__", "3.1.0")
    words = r"written for lightning 2.x, and .* is of lightning 3.1.0"
    with pytest.raises(ImportError, match=words):
        steady.SteadyCallback()
    with pytest.raises(ImportError, match=words):
        fit(seeded(), callback, steps=1)
    assert callback.run is None and not list(tmp_path.iterdir())


def test_two_on_one_optimizer_are_refused_by_name(tmp_path):
    class Watched(Module):
        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            self.watcher = sg.watch(self, optimizer, runs=tmp_path, name="first")
            return optimizer

    module, callback = Watched(), steady.SteadyCallback(runs=str(tmp_path), name="second")
    words = r"Adam is watched already by sg.watch, run first-1, and SteadyCallback \(lightning\), run second-1 cannot"
    with pytest.raises(ValueError, match=words):
        fit(module, callback, steps=1)
    module.watcher.close()


@pytest.mark.filterwarnings("ignore::UserWarning")  # the framework's own: no accelerator, no TensorBoard
def test_the_snippet_of_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "loops.md").read_text()
    (code,) = (c for c in re.findall(r"```py\n(.*?)```", page, re.S) if "LightningModule" in c)
    names = {"__name__": "__main__"}
    exec(compile(code, "loops.md", "exec"), names)
    assert names["steady"].run.close().steps > 0
