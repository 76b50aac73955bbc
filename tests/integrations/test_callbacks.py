"""The callbacks for the loops of others watch every step, repair a run that blows up, and give all back at its end.

Integration tests: a framework that is not installed skips its test; `make test-all` installs them.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import steadygrad as sg
from steadygrad.integrations.callbacks import huggingface, lightning
from steadygrad.integrations.callbacks.watching import Watching

STEPS = 280
BAD = (37, 38, 39)
TRIVIAL = 0.5


def data():
    torch.manual_seed(0)
    x = torch.randn(STEPS * 32, 8)
    y = 2 * x.mean(1, keepdim=True)
    for i in BAD:
        x[i * 32 : i * 32 + 32] = float("nan")
    return x, y


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1))

    def forward(self, x, labels=None):
        out = self.body(x)
        return {"loss": F.mse_loss(out, labels), "logits": out}


def check(callback, model, optimizer):
    x, y = data()
    summary = callback.run.close()
    assert summary.steps == STEPS
    assert any(a.action == "remedy" and "stays in force" in a.reason for a in summary.actions)
    with torch.no_grad():
        good = slice(-512, None)
        assert F.mse_loss(model.body(x[good]), y[good]) < 0.2 * TRIVIAL
    sg.watch(model, optimizer, runs=callback.run.run_dir.parent).close()  # nobody watches it any more


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # Lightning's own
def test_lightning(tmp_path):
    pl = pytest.importorskip("lightning.pytorch")

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.body = Net().body

        def training_step(self, batch, index):
            return F.mse_loss(self.body(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.3, momentum=0.9)

    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*data()), batch_size=32)
    callback = lightning.SteadyCallback(runs=str(tmp_path))
    module = Module()
    trainer = pl.Trainer(
        max_epochs=1, callbacks=[callback], accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, loader)
    check(callback, module, trainer.optimizers[0])


def test_hugging_face(tmp_path):
    transformers = pytest.importorskip("transformers")
    x, y = data()
    rows = [{"x": a, "labels": b} for a, b in zip(x, y, strict=True)]
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    constant = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path / "out"), per_device_train_batch_size=32, num_train_epochs=1, report_to=[],
        save_strategy="no", use_cpu=True, max_grad_norm=0.0, disable_tqdm=True, logging_strategy="no",
        train_sampling_strategy="sequential",
    )  # fmt: skip
    callback = huggingface.SteadyCallback(runs=str(tmp_path / "runs"))
    trainer = transformers.Trainer(
        model, arguments, train_dataset=rows, optimizers=(optimizer, constant), callbacks=[callback]
    )
    trainer.train()
    check(callback, model, optimizer)


def test_without_the_framework_it_says_what_to_install():
    for module, package in ((lightning, "lightning"), (huggingface, "transformers")):
        if module.Callback is object:
            with pytest.raises(ImportError, match=f"pip install '?{package}"):
                module.SteadyCallback()


def test_one_training_after_the_other(tmp_path):
    class Silent(Watching):
        def say(self, text):
            pass

    watching = Silent(runs=str(tmp_path), guard="warn")
    model = nn.Linear(2, 1)
    for _ in range(2):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        watching.begin(model, [optimizer])
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
    watching.end(ValueError("it failed"))
    watching.end()
    assert watching.run is not None and watching.run.close().steps == 1
    assert len(list(tmp_path.iterdir())) == 2
