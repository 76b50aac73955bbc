"""Faults inside of networks: layers, attention, recurrences, flows."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.planted_cases.training import Training, adam, labels, mlp, mse, planted, regression, sgd


class Share(nn.Module):
    """Values as shares of their sum."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x)
        total = x.sum(1, keepdim=True)
        return x / total  # PLANTED zero_by_zero


@planted("div", kind="forward", module="1", b8=True)
def zero_by_zero() -> Training:
    model = nn.Sequential(nn.Linear(4, 3), Share(), nn.Linear(3, 1))
    return Training(model, mse, regression(), sgd(model))


class Rate(nn.Module):
    """An exponential link."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        eta = self.fc(x) * 40
        return torch.exp(eta)  # PLANTED exp_overflow


@planted("exp", kind="forward", module="rate", b8=True)
def exp_overflow() -> Training:
    model = nn.Sequential()
    model.add_module("rate", Rate())
    model.add_module("head", nn.Linear(1, 1))
    data = regression()
    data[1][0][5] *= 100
    return Training(model, mse, data, sgd(model, 1e-9))


class Standardise(nn.Module):
    """The batch by its variance, without an epsilon."""

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(0)
        return centred / x.var(0)  # PLANTED constant_batch


@planted("div", kind="forward", module="0", b8=True)
def constant_batch() -> Training:
    model = nn.Sequential(Standardise(), *mlp())
    data = regression()
    data[1] = (torch.full((16, 4), 0.5), data[1][1])
    return Training(model, mse, data, sgd(model))


class HandNorm(nn.Module):
    """Batch norm by hand."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        spread = x.std(dim=0)  # PLANTED batch_norm_of_one
        return self.gain * (x - x.mean(0)) / (spread + 1e-5)


@planted("std", kind="forward", module="1", b8=True)
def batch_norm_of_one() -> Training:
    model = nn.Sequential(nn.Linear(4, 8), HandNorm(8), nn.Linear(8, 1))
    data = regression()
    data[2] = (data[2][0][:1], data[2][1][:1])
    return Training(model, mse, data, sgd(model))


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)

    def forward(self, x: Tensor, pad: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        scores = q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])
        scores = scores.masked_fill(pad[:, None, :], float("-inf"))
        weights = scores.softmax(-1)  # PLANTED row_masked_throughout
        return weights @ v


class Reader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8, padding_idx=0)
        self.attend = Attention(8)
        self.head = nn.Linear(8, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.attend(self.embed(tokens), tokens == 0).mean(1))


def tokens_and_labels(empty: int) -> list[tuple[Tensor, Tensor]]:
    made = torch.Generator().manual_seed(3)
    data = [
        (torch.randint(1, 20, (8, 6), generator=made), torch.randint(0, 3, (8,), generator=made))
        for _ in range(3)
    ]
    data[1][0][empty] = 0
    return data


def classify(model: nn.Module, batch: Any) -> Tensor:
    x, y = batch
    return F.cross_entropy(model(x), y)


@planted("softmax", kind="forward", module="attend")
def row_masked_throughout() -> Training:
    model = Reader()
    return Training(model, classify, tokens_and_labels(3), adam(model))


class Encoder(nn.Module):
    """torch's own layers; the mask is the caller's."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.1)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.gate = nn.Linear(8, 1)
        self.head = nn.Linear(8, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.encoder(self.embed(tokens))
        keep = (tokens != 0).unsqueeze(-1)
        weight = torch.exp(self.gate(h)) * keep
        pooled = (weight * h).sum(1) / weight.sum(1)  # PLANTED transformer_pooling
        return self.head(pooled)


@planted("div", kind="forward", module="")
def transformer_pooling() -> Training:
    model = Encoder()
    return Training(model, classify, tokens_and_labels(6), adam(model))


class Instance(nn.Module):
    """Feature maps by their largest value."""

    def forward(self, x: Tensor) -> Tensor:
        top = x.amax((2, 3), keepdim=True)
        return x / top  # PLANTED dead_feature_map


@planted("div", kind="forward", module="features.2")
def dead_feature_map() -> Training:
    """A convolutional net in which a channel is dead on an image of zeros."""
    model = nn.Sequential()
    model.add_module("features", nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), Instance(), nn.Flatten()))
    model.add_module("head", nn.Linear(4 * 36, 3))
    nn.init.constant_(model.features[0].bias, -0.05)
    made = torch.Generator().manual_seed(4)
    data = [
        (torch.rand(8, 1, 8, 8, generator=made), torch.randint(0, 3, (8,), generator=made)) for _ in range(3)
    ]
    for x, _ in data[:2]:
        x[:] = x.clamp(0.4) + 5  # every channel with a positive sum of weights is alive
    nn.init.uniform_(model.features[0].weight, 0.0, 0.3)
    data[2][0][5] = 0
    return Training(model, classify, data, adam(model))


class ExponentialLSTM(nn.Module):
    """A cell with an exponential input gate and no stabiliser, unrolled by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.gates = nn.Linear(4 + 8, 4 * 8)
        self.head = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = c = torch.zeros(len(x), 8)
        for t in range(x.shape[1]):
            i, f, o, z = self.gates(torch.cat([x[:, t], h], 1)).chunk(4, 1)
            opened = torch.exp(i)  # PLANTED lstm_exponential_gate
            c = torch.sigmoid(f) * c + opened * torch.tanh(z)
            h = torch.sigmoid(o) * torch.tanh(c)
        return self.head(h)


@planted("exp", kind="backward", module="")
def lstm_exponential_gate() -> Training:
    """The tanh after it hides the infinity from the loss, not from the gradient."""
    model = ExponentialLSTM()
    made = torch.Generator().manual_seed(5)
    data = [(torch.randn(8, 12, 4, generator=made), torch.randn(8, 1, generator=made)) for _ in range(3)]
    data[1][0][2, 7] = 600.0
    return Training(model, mse, data, adam(model))


class VAE(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enc = nn.Linear(4, 4)
        self.dec = nn.Linear(2, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mu, logvar = self.enc(x).chunk(2, 1)
        std = torch.exp(logvar)  # PLANTED vae_logvar
        return self.dec(mu + std * torch.randn_like(std)), mu, logvar


@planted("exp", kind="forward", module="")
def vae_logvar() -> Training:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        x, _ = batch
        out, mu, logvar = model(x)
        kl = -0.5 * (1 + logvar - mu.square() - (2 * logvar).clamp(max=80).exp()).sum(1).mean()
        return (out - x).square().mean() + kl

    model = VAE()
    nn.init.constant_(model.enc.weight, 0.1)
    data = regression()
    data[1][0][9] = 400.0
    return Training(model, loss, data, sgd(model, 1e-5))


class Flow(nn.Module):
    """A linear flow whose matrix has become singular."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[1.0, 2.0], [2.0, 4.0]]))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logdet = torch.linalg.det(self.weight).abs().log()  # PLANTED singular_flow
        return x @ self.weight.T, logdet


@planted("log", kind="forward", module="")
def singular_flow() -> Training:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        z, logdet = model(batch[0][:, :2])
        return 0.5 * z.square().sum(1).mean() - logdet

    model = Flow()
    return Training(model, loss, regression(), sgd(model))


class Clip(nn.Module):
    """Logits with a learned temperature, as contrastive models have it, unbounded."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp(outputs=8)
        self.logit_scale = nn.Parameter(torch.tensor(95.0))

    def forward(self, x: Tensor) -> Tensor:
        z = F.normalize(self.body(x), dim=1)
        return z @ z.T * self.logit_scale.exp()  # PLANTED infinite_logits


@planted("exp", kind="forward", module="")
def infinite_logits() -> Training:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        logits = model(batch[0])
        return F.nll_loss(F.log_softmax(logits, 1), torch.arange(len(logits)))

    model = Clip()
    return Training(model, loss, regression(), sgd(model))


class Round(torch.autograd.Function):
    """A rounding whose hand-written backward divides by the input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.round()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad * x.round() / x  # PLANTED custom_backward


class Quantised(nn.Module):
    """Rounded values, some of them pruned to 0."""

    def forward(self, x: Tensor) -> Tensor:
        keep = torch.arange(x.shape[1]) % 3 != 0
        out: Tensor = Round.apply(x * keep * 4)
        return out


@planted("div", kind="backward", module="1")
def custom_backward() -> Training:
    model = nn.Sequential(nn.Linear(4, 8), Quantised(), nn.Linear(8, 3))
    return Training(model, classify, labels(), sgd(model))
