"""The pre-training of an encoder of digits without their labels, five ways, each sound or with one thing wrong."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import steadygrad as sg
from studies.common import CLASSES, Digits, batches

FEATURES, DIMS, HIDDEN = 32, 32, 128  # of the encoder, of the embeddings, between
NOISE, TURN, ZOOM, SHIFT = 0.2, 0.3, 0.2, 0.25  # of the views: radians, share, half widths
LABELS, RIDGE = 600, 0.1  # of the linear probe


class Trainee(nn.Module):
    """Encoder, projector, predictor, and the loss of two views of a batch.

    Args:
        method: simclr, vicreg, barlow, simsiam or byol.
        sound: False: with the thing wrong that its papers say makes it collapse. May be changed in mid-run.
    """

    def __init__(self, method: str, sound: bool) -> None:
        super().__init__()
        self.method, self.sound = method, sound
        self.encoder = nn.Sequential(nn.Linear(64, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, FEATURES))
        projector = sg.selfsup.mlp_head(FEATURES, 64, DIMS, layers=3, last_norm=method == "simsiam")
        self.student = nn.Sequential(self.encoder, projector)
        self.predictor = sg.selfsup.mlp_head(DIMS, 64, DIMS)
        self.teacher = sg.selfsup.EMATeacher(self.student, momentum=0.9)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        z1, z2 = self.student(a), self.student(b)
        return getattr(self, self.method)(z1, z2, a, b)

    def simclr(self, z1: Tensor, z2: Tensor, *_: Tensor) -> Tensor:
        """Wrong: no negatives, the views are only pulled together."""
        if self.sound:
            return sg.selfsup.nt_xent(z1, z2, temperature=0.2)
        sg.selfsup.show(z1, z2)
        return 1 - F.cosine_similarity(z1, z2).mean()

    def vicreg(self, z1: Tensor, z2: Tensor, *_: Tensor) -> Tensor:
        """Wrong: no variance term."""
        return sg.selfsup.vicreg(z1, z2, variance=25.0 if self.sound else 0.0)

    def barlow(self, z1: Tensor, z2: Tensor, *_: Tensor) -> Tensor:
        """Wrong: no weight off the diagonal."""
        return sg.selfsup.barlow_twins(z1, z2, off_diagonal=0.02 if self.sound else 0.0)

    def simsiam(self, z1: Tensor, z2: Tensor, *_: Tensor) -> Tensor:
        """Wrong: no stop-gradient."""
        p1, p2 = self.predictor(z1), self.predictor(z2)
        if self.sound:
            return sg.selfsup.simsiam(p1, p2, z1, z2)
        sg.selfsup.show(z1, z2)
        return -(F.cosine_similarity(p1, z2).mean() + F.cosine_similarity(p2, z1).mean()) / 2

    def byol(self, z1: Tensor, z2: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Wrong: no predictor."""
        p1, p2 = (self.predictor(z1), self.predictor(z2)) if self.sound else (z1, z2)
        return sg.selfsup.byol(p1, p2, self.teacher(a), self.teacher(b))


def views(data: Digits, size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Two views of each batch of training digits: turned, zoomed, shifted, with noise."""
    generator = torch.Generator().manual_seed(seed)
    for index in batches(len(data.y), size, seed):
        both = seen_anew(torch.cat([data.x[index], data.x[index]]), generator)
        yield both[:size], both[size:]


def seen_anew(x: Tensor, generator: torch.Generator) -> Tensor:
    """Another view of each digit, (N, 64)."""
    n = len(x)
    turn, zoom, *shift = torch.rand(4, n, generator=generator) * 2 - 1
    angle, scale = TURN * turn, 1 + ZOOM * zoom
    cos, sin = angle.cos() * scale, angle.sin() * scale
    rows = [torch.stack([cos, -sin, SHIFT * shift[0]], 1), torch.stack([sin, cos, SHIFT * shift[1]], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), [n, 1, 8, 8], align_corners=False)
    pictures = F.grid_sample(x.view(n, 1, 8, 8), grid, padding_mode="border", align_corners=False)
    return pictures.view(n, 64) + NOISE * torch.randn(n, 64, generator=generator)


@torch.no_grad()
def linear_probe(encoder: nn.Module, data: Digits) -> float:
    """Accuracy of a ridge classifier on the encoder's output at unit length: 600 labels, tested on the other digits."""
    x, y = torch.cat([data.x, data.x_test]), torch.cat([data.y, data.y_test])
    features = F.normalize(encoder(x), dim=1)
    features = features - features[:LABELS].mean(0)
    features = torch.cat([features, torch.ones(len(x), 1)], 1).double()
    known = features[:LABELS]
    ridge = known.T @ known + RIDGE * torch.eye(known.shape[1]).double()
    weights = torch.linalg.solve(ridge, known.T @ F.one_hot(y[:LABELS], CLASSES).double())
    return ((features[LABELS:] @ weights).argmax(1) == y[LABELS:]).double().mean().item()
