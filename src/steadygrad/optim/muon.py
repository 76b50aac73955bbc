"""Muon for the weights and AdamW for the rest, as one optimizer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from steadygrad._check import count, fraction, positive
from steadygrad.optim._adam import adam_directions, check_betas, fresh_moments
from steadygrad.optim._norms import decay_, on, scale_
from steadygrad.optim._step import Batch, Group, LayerwiseOptimizer, at_least_zero, refuse_complex_and_sharded
from steadygrad.optim.orthogonal import JORDAN, orthogonalise_each
from steadygrad.optim.roles import grouped, parameter_roles


def muon_momentum(
    grads: Sequence[Tensor], buffers: Sequence[Tensor], momentum: float, nesterov: bool
) -> list[Tensor]:
    """Put the gradients into the buffers, in place; return new tensors with what is to be orthogonalised.

        B <- mu B + (1 - mu) G        mu B + (1 - mu) G again if nesterov, else B

    Source: Jordan et al. (2024), https://kellerjordan.github.io/posts/muon/
    """
    torch._foreach_lerp_(list(buffers), list(grads), 1 - momentum)
    return list(torch._foreach_lerp(list(grads), list(buffers), momentum)) if nesterov else list(buffers)


def shape_factor(shape: torch.Size, adjust_lr_fn: str | None) -> float:
    """How much longer the step of a weight (rows, columns) is made for its shape, as in torch.optim.Muon.

    Example:
        >>> shape_factor(torch.Size([400, 100]), "original"), shape_factor(torch.Size([400, 100]), "match_rms_adamw")
        (2.0, 4.0)

    Source: "original" Jordan et al. (2024), https://kellerjordan.github.io/posts/muon/; "match_rms_adamw" Liu et
    al. (2025), https://arxiv.org/abs/2502.16982
    """
    rows, columns = shape[0], math.prod(shape[1:])
    if adjust_lr_fn == "match_rms_adamw":
        return 0.2 * math.sqrt(max(rows, columns))  # RMS of the step is 0.2, about that of AdamW
    return math.sqrt(max(1.0, rows / columns))


class MuonAdamW(LayerwiseOptimizer):
    """Muon for hidden weights and AdamW for all else, as one optimizer with one state and one schedule.

        Muon     B <- mu B + (1 - mu) G        w <- (1 - lr lambda) w - lr s orthogonalise(mu B + (1 - mu) G)
        AdamW    w <- (1 - lr lambda) w - lr m_hat / (sqrt(v_hat) + eps)

    where s is 0.2 sqrt(max(rows, columns)) ("match_rms_adamw") or sqrt(max(1, rows / columns)) ("original").

    When to use it: transformers and convolutional nets that AdamW trains; every hidden weight moves by the same
    RMS along all its directions, whatever the scale of its gradient. `muon_groups` makes the groups. For 2-D weights
    alone torch.optim.Muon does; it refuses convolutions, is a second optimizer beside AdamW for the loop, the
    schedule and the checkpoint, and its step shrinks where ||G|| is below 1e-7 or beyond 1e19.

    Values in use: AdamW's lr with "match_rms_adamw", momentum 0.95, nesterov, weight_decay 0.1 (Moonlight);
    lr 0.02 with "original" and AdamW at 3e-4 (Jordan). betas (0.9, 0.95), eps 1e-8.

    Cost: one buffer for Muon, two for AdamW; 5 Newton-Schulz steps (15 matrix products) for a matrix, in
    bfloat16 on a GPU; equal shapes are done in one stack.

    Args:
        params: parameters or groups, as in torch.optim; each group may have its ``algorithm``.
        lr: at least 0; a number or a tensor.
        weight_decay: lambda, decoupled, at least 0.
        algorithm: "muon" or "adamw"; None takes Muon from two dimensions on, else AdamW.
        momentum: mu of Muon, 0 <= mu < 1.
        nesterov: of Muon.
        ns_coefficients: (a, b, c) of Newton-Schulz.
        ns_steps: of Newton-Schulz, at least 1.
        adjust_lr_fn: "match_rms_adamw" (one lr for both algorithms) or "original", as in torch.optim.Muon.
        betas: of AdamW, each at least 0 and below 1.
        eps: of AdamW, > 0.
        maximize: climb instead of descend.

    A gradient of None leaves its parameter and state alone. A zero momentum gives no step. A nan or inf in a
    gradient reaches the weights and the state of its tensor, as in torch.optim: look before the step (the
    guard, GradScaler and `ClipStats.finite` do).

    Raises:
        ValueError: Muon for a tensor of fewer than two dimensions.
        TypeError: a sparse gradient (before anything is changed), a complex parameter.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8, 2))
        >>> optimizer = MuonAdamW(muon_groups(model, lr=1e-3))
        >>> model(torch.randn(2, 3, 3, 3)).sum().backward()
        >>> optimizer.step()
        >>> sorted(optimizer.state[model[0].weight]), sorted(optimizer.state[model[2].weight])
        (['momentum_buffer', 'step'], ['exp_avg', 'exp_avg_sq', 'step'])

    Source: Jordan et al. (2024), https://kellerjordan.github.io/posts/muon/; Liu et al. (2025), section 2,
    https://arxiv.org/abs/2502.16982
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        weight_decay: float = 0.1,
        algorithm: str | None = None,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[float, float, float] = JORDAN,
        ns_steps: int = 5,
        adjust_lr_fn: str | None = "match_rms_adamw",
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        maximize: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "algorithm": algorithm,
            "momentum": momentum,
            "nesterov": nesterov,
            "ns_coefficients": ns_coefficients,
            "ns_steps": ns_steps,
            "adjust_lr_fn": adjust_lr_fn,
            "betas": betas,
            "eps": eps,
            "maximize": maximize,
        }
        super().__init__(params, defaults)

    def _check(self, group: Group) -> None:
        at_least_zero("weight_decay", group["weight_decay"])
        fraction("momentum", group["momentum"], one=False)
        count("ns_steps", group["ns_steps"], least=1)
        check_betas(group["betas"])
        positive("eps", group["eps"], finite=True)
        refuse_complex_and_sharded(self, group["params"])
        if group["adjust_lr_fn"] not in (None, "original", "match_rms_adamw"):
            raise ValueError(
                f'adjust_lr_fn must be "original" or "match_rms_adamw", got {group["adjust_lr_fn"]!r}'
            )
        if group["algorithm"] not in (None, "muon", "adamw"):
            raise ValueError(f'algorithm must be "muon", "adamw" or None, got {group["algorithm"]!r}')
        for p in group["params"]:
            if group["algorithm"] == "muon" and isinstance(p, Tensor) and p.ndim < 2:
                raise ValueError(
                    f"Muon needs two dimensions or more, got a parameter of shape {tuple(p.shape)}: "
                    'put it into a group with algorithm="adamw", as muon_groups does'
                )

    def _by_muon(self, param: Tensor, group: Group) -> bool:
        return group["algorithm"] == "muon" or group["algorithm"] is None and param.ndim > 1

    def _fresh(self, param: Tensor, group: Group) -> dict[str, Tensor]:
        return (
            {"momentum_buffer": torch.zeros_like(param)}
            if self._by_muon(param, group)
            else fresh_moments(param)
        )

    def _update(self, batch: Batch, group: Group) -> None:
        decay_(batch.params, group["lr"], group["weight_decay"])
        muon, adamw = batch.split([self._by_muon(p, group) for p in batch.params])
        if muon.params:
            directions = muon_momentum(
                muon.grads, muon.state("momentum_buffer"), group["momentum"], group["nesterov"]
            )
            steps = orthogonalise_each(directions, group["ns_steps"], group["ns_coefficients"])
            torch._foreach_mul_(steps, [shape_factor(p.shape, group["adjust_lr_fn"]) for p in muon.params])
            scale_(steps, on(group["lr"], steps[0]))
            torch._foreach_sub_(muon.params, steps)
        if adamw.params:
            steps = adam_directions(adamw, group["betas"], group["eps"])
            scale_(steps, on(group["lr"], steps[0]))
            torch._foreach_sub_(adamw.params, steps)


def muon_groups(
    model: nn.Module,
    lr: float | Tensor = 1e-3,
    weight_decay: float = 0.1,
    *,
    adamw_lr: float | Tensor | None = None,
    outputs: Sequence[str] | None = None,
    embeddings: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """The groups that `MuonAdamW` wants, as its authors advise: hidden weights to Muon, all else to AdamW.

    Args:
        model: its parameters with ``requires_grad``.
        lr: of the hidden weights.
        weight_decay: of all weights; vectors (biases, gains) have none.
        adamw_lr: of embeddings, output layer and vectors; None for ``lr``, which "match_rms_adamw" allows.
        outputs: as in `parameter_roles`.
        embeddings: as in `parameter_roles`.

    Example:
        >>> model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 9))
        >>> for group in muon_groups(model):
        ...     print(group["algorithm"], group["weight_decay"], [name for name, _ in group["params"]])
        muon 0.1 ['1.weight']
        adamw 0.1 ['0.weight', '3.weight']
        adamw 0.0 ['1.bias', '3.bias']

    Source: Jordan et al. (2024), https://kellerjordan.github.io/posts/muon/
    """
    found = grouped(model, parameter_roles(model, outputs=outputs, embeddings=embeddings))
    other = lr if adamw_lr is None else adamw_lr
    weights = [member for role in ("embedding", "tied", "output") for member in found.get(role, [])]
    groups = [
        {"params": found.get("hidden", []), "algorithm": "muon", "lr": lr, "weight_decay": weight_decay},
        {"params": weights, "algorithm": "adamw", "lr": other, "weight_decay": weight_decay},
        {"params": found.get("vector", []), "algorithm": "adamw", "lr": other, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
