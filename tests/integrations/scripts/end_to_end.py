"""A ResNet on gratings or a GPT-2 on a language of its own, trained in a framework: `end_to_end.py KIND FRAMEWORK`.

Prints the loss of the first and of the last steps, and how many parameters there are.
"""

import os
import sys
import tempfile
import warnings

import torch
import torch.nn.functional as F
from torch import nn

warnings.filterwarnings("ignore")
KIND, FRAMEWORK = sys.argv[1], sys.argv[2]
STEPS, BATCH = 40, 16


class Block(nn.Module):
    """The basic block of a ResNet."""

    def __init__(self, inner, width, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inner, width, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.short = nn.Sequential()
        if stride > 1 or inner != width:
            self.short = nn.Sequential(nn.Conv2d(inner, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x):
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + self.short(x))


class ResNet18(nn.Module):
    """Stem, pooling, four stages of two blocks, as for ImageNet; an eighth as wide."""

    def __init__(self, classes=4, width=8):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 7, 2, 3, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.MaxPool2d(3, 2, 1),
        )
        widths = [width * 2**i for i in range(4)]
        blocks = [
            Block(widths[max(i - 1, 0)] if b == 0 else widths[i], widths[i], 2 if i and b == 0 else 1)
            for i in range(4)
            for b in range(2)
        ]
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(widths[-1], classes)

    def forward(self, x):
        return self.fc(self.blocks(self.stem(x)).mean((2, 3)))


class GPT2(nn.Module):
    """Learned positions, pre-norm blocks with causal attention, tied head: 2 layers of 48."""

    def __init__(self, vocabulary=32, length=32, width=48, depth=2):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        layer = nn.TransformerEncoderLayer(
            width, 4, 4 * width, 0.0, F.gelu, batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(layer, depth, nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, vocabulary, bias=False)
        nn.init.normal_(self.wte.weight, std=0.1)
        self.head.weight = self.wte.weight

    def forward(self, x):
        length = x.shape[1]
        mask = torch.triu(torch.full((length, length), float("-inf")), 1)
        hidden = self.wte(x) + self.wpe(torch.arange(length))
        return self.head(self.blocks(hidden, mask=mask, is_causal=True))


def gratings(count):
    """Images of stripes in four directions, with noise."""
    draw = torch.Generator().manual_seed(1)
    labels = torch.randint(0, 4, (count,), generator=draw)
    row, column = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    angle = labels * torch.pi / 4
    wave = torch.sin(0.5 * (row * angle.cos()[:, None, None] + column * angle.sin()[:, None, None]))
    return wave[:, None] + 0.5 * torch.randn(count, 3, 64, 64, generator=draw), labels


def sentences(count):
    """Each word follows from the last one, most of the time."""
    draw = torch.Generator().manual_seed(1)
    after = torch.randperm(32, generator=draw)
    words = [torch.randint(0, 32, (count,), generator=draw)]
    for _ in range(32):
        noise = torch.randint(0, 32, (count,), generator=draw)
        words.append(torch.where(torch.rand(count, generator=draw) < 0.9, after[words[-1]], noise))
    text = torch.stack(words, 1)
    return text[:, :-1], text[:, 1:]


def loss_of(model, x, y):
    return F.cross_entropy(model(x).flatten(0, -2), y.flatten())


torch.manual_seed(0)
model = ResNet18() if KIND == "resnet" else GPT2()
samples = STEPS * BATCH * int(os.environ.get("WORLD_SIZE", 1))
data = torch.utils.data.TensorDataset(*(gratings if KIND == "resnet" else sentences)(samples))
losses = []


def optimizer_of(params):
    if KIND == "resnet":
        return torch.optim.SGD(params, lr=0.05, momentum=0.9, weight_decay=1e-4)
    return torch.optim.AdamW(params, lr=1e-2)


def plain(model, optimizer, loader, *, scaler=None):
    for x, y in loader:
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=scaler is not None):
            loss = loss_of(model, x, y)
        if scaler is None:
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        else:
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
        losses.append(loss.item())


def loader_of(**more):
    return torch.utils.data.DataLoader(data, batch_size=BATCH, **more)


tensors = sum(p.requires_grad for p in model.parameters())
if FRAMEWORK == "plain":
    plain(model, optimizer_of(model.parameters()), loader_of())
elif FRAMEWORK == "compile":
    model = torch.compile(model, backend="aot_eager")
    plain(model, optimizer_of(model.parameters()), loader_of())
elif FRAMEWORK == "amp":
    plain(model, optimizer_of(model.parameters()), loader_of(), scaler=torch.amp.GradScaler("cpu"))
elif FRAMEWORK in ("ddp", "fsdp2"):
    import torch.distributed as dist

    dist.init_process_group("gloo")
    if FRAMEWORK == "ddp":
        model = nn.parallel.DistributedDataParallel(model)
    else:
        from torch.distributed.fsdp import fully_shard

        mesh = dist.init_device_mesh("cpu", (dist.get_world_size(),))
        fully_shard(model, mesh=mesh)
    sampler = torch.utils.data.DistributedSampler(data, shuffle=False)
    plain(model, optimizer_of(model.parameters()), loader_of(sampler=sampler))
    rank = dist.get_rank()
    dist.destroy_process_group()
    if rank:
        sys.exit()
elif FRAMEWORK == "accelerate":
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model, optimizer, loader = accelerator.prepare(model, optimizer_of(model.parameters()), loader_of())
    for x, y in loader:
        optimizer.zero_grad()
        loss = loss_of(model, x, y)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
elif FRAMEWORK == "lightning":
    import lightning as L

    class Module(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = model

        def training_step(self, batch, _):
            loss = loss_of(self.net, *batch)
            losses.append(loss.item())
            return loss

        def configure_optimizers(self):
            return optimizer_of(self.parameters())

    L.Trainer(
        max_epochs=1, accelerator="cpu", gradient_clip_val=1.0, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    ).fit(Module(), loader_of())  # fmt: skip
elif FRAMEWORK == "hf":
    from transformers import Trainer, TrainingArguments

    class WithLoss(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = model

        def forward(self, x, labels):
            loss = loss_of(self.net, x, labels)
            losses.append(loss.item())
            return {"loss": loss}

    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(), num_train_epochs=1, per_device_train_batch_size=BATCH, max_grad_norm=1.0,
        learning_rate=0.05 if KIND == "resnet" else 1e-2, report_to=[], save_strategy="no", use_cpu=True,
        disable_tqdm=True, logging_strategy="no", remove_unused_columns=False, lr_scheduler_type="constant",
    )  # fmt: skip
    rows = [{"x": x, "labels": y} for x, y in data]
    whole = WithLoss()
    Trainer(
        model=whole,
        args=arguments,
        train_dataset=rows,
        optimizers=(optimizer_of(whole.parameters()), None),
    ).train()
steps = len(losses)
print(f"LOSS first={sum(losses[:4]) / 4:.4f} last={sum(losses[-4:]) / 4:.4f}")
print(f"TRUTH steps={steps} tensors={tensors}", flush=True)
