"""The table of the conformance suite: one line for each layer. A new layer joins the suite by a line here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from steadygrad.nn import norm


@dataclass(frozen=True)
class Case:
    name: str
    make: Callable[..., nn.Module]  # with device and dtype
    shape: tuple[int, ...]  # of one input
    batch_dim: int = 0
    per_example: bool = True  # no example of a batch sees another
    learns: bool = False  # has statistics that training changes from the batch
    reparametrises: bool = False  # torch can neither pickle it nor build it on the meta device
    train_is_eval: bool = True
    hides_inf: bool = False  # tanh(inf) = 1
    compiles: bool = True  # into one graph
    by_neighbours: tuple[str, ...] = ()  # buffers that move only beside another layer of the kind

    def build(self, seed: int = 0, **like) -> nn.Module:
        """The layer in training mode, its parameters all drawn at random so that none is at a special value."""
        torch.manual_seed(seed)
        module = self.make(**like)
        with torch.no_grad():
            for name, p in module.named_parameters():
                if "norm" in name or name.rpartition(".")[2] in ("gain", "gamma", "bias", "alpha"):
                    p.add_(0.1 * torch.randn(p.shape).to(p))
        return module

    def input(self, seed: int = 1, dtype: torch.dtype = torch.float32, batch: int | None = None) -> Tensor:
        shape = list(self.shape)
        if batch is not None:
            shape[self.batch_dim] = batch
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def output(result) -> Tensor:
    """The first tensor of what a layer returns."""
    return result if isinstance(result, Tensor) else output(result[0])


def both_ways(kind: type[nn.Module], **more):
    return lambda **like: kind(3, 4, bidirectional=True, **more, **like)


# past their warm-up, so that r and d are at work
RENORM = {"warmup_steps": 0, "r_steps": 2, "d_steps": 2, "momentum": 0.3}

CASES = (
    Case("layer_norm_lstm_cell", lambda **like: norm.LayerNormLSTMCell(3, 4, **like), (5, 3)),
    Case("layer_norm_gru_cell", lambda **like: norm.LayerNormGRUCell(3, 4, **like), (5, 3)),
    Case("layer_norm_lstm", both_ways(norm.LayerNormLSTM), (2, 5, 3), batch_dim=1),
    Case("layer_norm_gru", both_ways(norm.LayerNormGRU), (2, 5, 3), batch_dim=1),
    Case(
        "batch_norm_lstm",
        lambda **like: norm.BatchNormLSTM(3, 4, max_length=2, **like),
        (3, 5, 3),
        batch_dim=1,
        per_example=False,
        learns=True,
        train_is_eval=False,
    ),
    *(
        Case(
            f"batch_renorm_{dims}",
            lambda kind=kind, **like: kind(3, **RENORM, **like),
            (5, 3, *[2] * spatial),
            per_example=False,
            learns=True,
            train_is_eval=False,
        )
        for dims, kind, spatial in (
            ("1d", norm.BatchRenorm1d, 0),
            ("1d_long", norm.BatchRenorm1d, 1),
            ("2d", norm.BatchRenorm2d, 2),
            ("3d", norm.BatchRenorm3d, 3),
        )
    ),
    Case(
        "switchable_norm",
        lambda **like: norm.SwitchableNorm2d(3, **like),
        (5, 3, 2, 2),
        per_example=False,
        learns=True,
        train_is_eval=False,
    ),
    *(
        Case(
            f"adaptive_norm_{start}",
            lambda start=start, **like: norm.AdaptiveNorm(
                3, start=start, channel_last=start != "batch", rate=0.05, **like
            ),
            (5, 4, 3) if start != "batch" else (5, 3, 4),
            per_example=False,
            learns=True,
            train_is_eval=False,
            compiles=False,
            by_neighbours=("gain",),
        )
        for start in ("batch", "layer", "rms")
    ),
    Case("dyt", lambda **like: norm.DyT(3, **like), (5, 2, 3), hides_inf=True),
    Case(
        "filter_response_norm", lambda **like: norm.FilterResponseNorm(3, learn_eps=True, **like), (5, 3, 4)
    ),
    Case(
        "weight_standardisation_linear",
        lambda **like: norm.weight_standardisation(nn.Linear(3, 4, **like), gamma=1.7),
        (5, 3),
        reparametrises=True,
    ),
    Case(
        "weight_standardisation_conv",
        lambda **like: norm.weight_standardisation(nn.Conv2d(3, 4, 2, **like)),
        (5, 3, 4, 4),
        reparametrises=True,
    ),
    Case(
        "sigma_reparam_linear",
        lambda **like: norm.sigma_reparam(nn.Linear(3, 4, **like)),
        (5, 3),
        reparametrises=True,
        train_is_eval=False,  # up to the power iteration
    ),
    Case(
        "sigma_reparam_conv",
        lambda **like: norm.sigma_reparam(nn.Conv1d(3, 4, 2, **like), keep_function=True),
        (5, 3, 4),
        reparametrises=True,
        train_is_eval=False,
    ),
)
