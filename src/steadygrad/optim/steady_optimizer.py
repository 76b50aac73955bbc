"""Steady: every layer turns by the same share of its weights, in the direction that suits what the layer does."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from steadygrad._check import count, fraction, number, positive
from steadygrad.optim._adam import adam_directions, check_betas, fresh_moments
from steadygrad.optim._norms import decay_, norms, on
from steadygrad.optim._step import Batch, Group, LayerwiseOptimizer, at_least_zero, refuse_complex_and_sharded
from steadygrad.optim.blocks import block_norms, parameter_blocks
from steadygrad.optim.muon import muon_momentum
from steadygrad.optim.orthogonal import orthogonalise_each
from steadygrad.optim.roles import ROLES, grouped, parameter_roles

NORM_DECAY = 0.95  # of the running gradient norm: 20 steps, as long as the momentum remembers


def hold_growth_(running: Sequence[Tensor], grads: Sequence[Tensor], max_growth: float) -> list[Tensor]:
    """Put the norms of the gradients into their running means, in place; return the gradients, held to them.

        h = g min(1, c n / ||g||)        n <- 0.95 n + 0.05 ||h||        n = ||g|| at the first that is not 0

    A direction that is made from a mean of gradients and brought to a fixed length afterwards would otherwise
    follow one gradient that is a thousand times the others for a hundred steps.
    """
    found, old = norms(grads), torch.stack(list(running))
    limit = max_growth * old
    started = old != 0
    scale = torch.where(started, (limit / found).clamp(max=1.0), 1.0)
    new = torch.where(started, torch.lerp(old, torch.minimum(found, limit), 1 - NORM_DECAY), found)
    torch._foreach_copy_(list(running), list(new.to(old.dtype).unbind()))
    return list(torch._foreach_mul(list(grads), list(scale.unbind())))


def turn_(param: Tensor, step: Tensor, rate: float | Tensor, blocks: int = 1, min_scale: float = 0.1) -> None:
    """Turn each block of a weight against a direction by a share of its length, in place.

        w <- (w - r s step / ||step||) / sqrt(1 + r^2)        s = max(||w||, min_scale sqrt(rows))

    The division takes back the growth that a step at right angles brings. A block whose direction is 0 stays.

    Args:
        param: (rows, ...), changed in place.
        step: of the same shape, of any length.
        rate: r, at least 0.
        blocks: blocks of equal size that stand in ``param``, one above the other.
        min_scale: a block is counted as at least so many times one with entries of variance 1 / fan-in.

    Source: Bernstein et al. (2020), Algorithm 1, https://arxiv.org/abs/2002.03432, for blocks and any direction
    """
    w, d = param.reshape(blocks, -1), step.reshape(blocks, -1)
    length = block_norms(step, blocks)
    rows = max(1.0, param.shape[0] / blocks)
    size = block_norms(param, blocks).clamp(min=min_scale * math.sqrt(rows))
    factor = torch.where(length == 0, 0.0, size / length) * rate
    shrink = torch.where(length == 0, 1.0, (1 + rate**2) ** -0.5)
    param.copy_(torch.addcmul(w, d, factor[:, None], value=-1).mul_(shrink[:, None]).reshape(param.shape))


class Steady(LayerwiseOptimizer):
    """Momentum that turns every layer by the same share of its weights in each step; `steady` makes its groups.

        r = min(lr, max_ratio)        w <- (1 - r lambda) w
        w <- (w - r s d / ||d||) / sqrt(1 + r^2)        s = max(||w||, min_scale sqrt(rows))

    for every weight, with the direction d by the ``role`` of its group: "hidden" orthogonalise(mu B + (1 - mu) h),
    Muon's (convolutions as (out, everything else), each of ``blocks`` for itself); "output" and "tied"
    m_hat / (sqrt(v_hat) + eps), Adam's; "embedding" the same row by row, for the rows that have a gradient.
    "vector" (biases, gains) takes Adam's step at the rate r max(RMS(w), min_scale). None is "hidden" from two
    dimensions on, else "vector". h is the gradient, held to ``max_growth`` times the running mean of its norm.

    When to use it: through `steady`. By itself where the groups are known.

    Limits: every layer moves by r of its weights however small its gradient is, noise included: the learning rate
    must decay for the weights to come to rest. Weights grow or shrink where the loss asks for it, not by the noise
    of the steps. The Newton-Schulz steps need whole tensors.

    Values in use: lr 0.03 to 0.1 for runs of a hundred steps, Fromage's 0.01 for thousands, falling to 0; momentum
    0.95, betas (0.9, 0.95), Muon's; min_scale 0.1; max_growth 2. max_ratio 0.03: where the rate does not fall, plain
    nets end at three times the loss with 0.05 and blow up with 0.1 (``studies/LOG.md``).

    Cost: one buffer for hidden weights, two for the others, one number a tensor; 5 Newton-Schulz steps (15 matrix
    products) for a matrix, in bfloat16 on a GPU; equal shapes are done in one stack.

    Args:
        params: parameters or groups, as in torch.optim.
        lr: update ratio ||dw|| / ||w|| of a step, at least 0; a number or a tensor.
        weight_decay: lambda, decoupled, at least 0.
        role: one of the roles of `parameter_roles`, or None.
        blocks: of hidden weights: how many matrices stand in each, as `parameter_blocks` says.
        momentum: mu of hidden weights, 0 <= mu < 1.
        betas: of all others, each at least 0 and below 1.
        eps: of all others, > 0.
        max_ratio: no step is longer than this share of the weights, > 0; inf for no bound.
        max_growth: c, at least 1; inf for no bound.
        min_scale: small weights are counted as this share of weights of variance 1 / fan-in, at least 0.
        ns_steps: of Newton-Schulz, at least 1.
        maximize: climb instead of descend.

    A gradient of None leaves its parameter and state alone. A zero momentum gives no step. A nan or inf in a
    gradient reaches the weights and the state of its tensor, as in torch.optim: look before the step (the
    guard, GradScaler and `ClipStats.finite` do).

    Raises:
        ValueError: a setting out of its range, a vector as "hidden", ``blocks`` that do not divide the rows.
        TypeError: a sparse gradient (before anything is changed), a complex or sharded parameter.

    Example:
        >>> w = torch.nn.Parameter(torch.eye(4))
        >>> optimizer = Steady([w], lr=0.01)
        >>> w.grad = 1e9 * torch.randn(4, 4)
        >>> optimizer.step()
        >>> 0.009 < (w - torch.eye(4)).norm().item() / 2 < 0.011  # whatever the scale of the gradient
        True

    Source: directions: Jordan et al. (2024), https://kellerjordan.github.io/posts/muon/; the turn: Bernstein et al.
    (2020), Algorithm 1, https://arxiv.org/abs/2002.03432; the held gradient is a rule of the kind of AdaGC, Wang et al.
    (2025), https://arxiv.org/abs/2502.11034
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.01,
        weight_decay: float = 0.0,
        role: str | None = None,
        blocks: int = 1,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        max_ratio: float = 0.03,
        max_growth: float = 2.0,
        min_scale: float = 0.1,
        ns_steps: int = 5,
        maximize: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "role": role,
            "blocks": blocks,
            "momentum": momentum,
            "betas": betas,
            "eps": eps,
            "max_ratio": max_ratio,
            "max_growth": max_growth,
            "min_scale": min_scale,
            "ns_steps": ns_steps,
            "maximize": maximize,
        }
        super().__init__(params, defaults)

    def _check(self, group: Group) -> None:
        at_least_zero("weight_decay", group["weight_decay"])
        fraction("momentum", group["momentum"], one=False)
        check_betas(group["betas"])
        positive("eps", group["eps"], finite=True)
        positive("max_ratio", group["max_ratio"])
        if not group["max_growth"] >= 1:  # nan fails too
            raise ValueError(f"max_growth must be at least 1, got {group['max_growth']}")
        number("min_scale", group["min_scale"], least=0)
        count("ns_steps", group["ns_steps"])
        blocks = count("blocks", group["blocks"])
        refuse_complex_and_sharded(self, group["params"])
        if group["role"] not in (None, *ROLES):
            raise ValueError(f"role must be None or one of {', '.join(ROLES)}, got {group['role']!r}")
        for p in group["params"]:
            if not isinstance(p, Tensor):
                continue
            if group["role"] not in (None, "vector") and p.ndim < 2:
                raise ValueError(
                    f'role "{group["role"]}" needs two dimensions or more, got a parameter of shape '
                    f'{tuple(p.shape)}: put it into a group with role "vector"'
                )
            if self._role(p, group) == "hidden" and p.shape[0] % blocks:
                raise ValueError(
                    f"blocks must divide the rows of every weight, got {blocks} for one of shape {tuple(p.shape)}"
                )

    def _role(self, param: Tensor, group: Group) -> str:
        return group["role"] or ("hidden" if param.ndim > 1 else "vector")

    def _fresh(self, param: Tensor, group: Group) -> dict[str, Tensor]:
        by_momentum = self._role(param, group) == "hidden"
        moments = {"momentum_buffer": torch.zeros_like(param)} if by_momentum else fresh_moments(param)
        return {**moments, "grad_norm": param.new_zeros(())}

    def _update(self, batch: Batch, group: Group) -> None:
        held = hold_growth_(batch.state("grad_norm"), batch.grads, group["max_growth"])
        batch = Batch(batch.params, held, batch.states, batch.members)
        lr, most = on(group["lr"], held[0]), group["max_ratio"]
        rate = lr.clamp(max=most) if isinstance(lr, Tensor) else min(lr, most)
        decay_(batch.params, rate, group["weight_decay"])
        hidden, others = batch.split([self._role(p, group) == "hidden" for p in batch.params])
        if hidden.params:
            mean = muon_momentum(hidden.grads, hidden.state("momentum_buffer"), group["momentum"], True)
            steps = orthogonalise_each(mean, group["ns_steps"], blocks=group["blocks"])
            for p, step in zip(hidden.params, steps, strict=True):
                turn_(p, step, rate, group["blocks"], group["min_scale"])
        if others.params:
            steps = adam_directions(others, group["betas"], group["eps"])
            for p, step, grad in zip(others.params, steps, others.grads, strict=True):
                self._by_adam(p, step, grad, rate, group)

    def _by_adam(self, p: Tensor, step: Tensor, grad: Tensor, rate: float | Tensor, group: Group) -> None:
        role, least = self._role(p, group), group["min_scale"]
        if role == "vector":
            p.sub_(step * (rate * p.square().mean().sqrt().clamp(min=least)))
        elif role == "embedding":
            rows = math.prod(p.shape[:-1])
            seen = (grad.reshape(rows, -1) != 0).any(1, keepdim=True)
            # a row that is not in the batch has moments left, and would go on by full steps
            turn_(p, torch.where(seen, step.reshape(rows, -1), 0.0), rate, rows, least)
        else:
            turn_(p, step, rate, 1, least)


def steady(
    model: nn.Module,
    lr: float | Tensor = 0.01,
    *,
    weight_decay: float = 0.0,
    max_ratio: float = 0.03,
    outputs: Sequence[str] | None = None,
    embeddings: Sequence[str] = (),
    stacked: Mapping[str, int] | None = None,
) -> Steady:
    """The optimizer for a model as it is: each parameter in the group that suits it, the update ratio the same in all.

        ||dw|| / ||w|| = min(lr, max_ratio)        for every weight, in every step

    Hidden matrices and convolutions take an orthogonalised step, gates of recurrent layers, the queries, keys and
    values of attention and the groups of a convolution each for itself; embeddings one row by row, the output layer
    Adam's direction; biases and gains Adam's step. See `Steady` for the equations.

    When to use it: a model whose layers differ in scale or kind, or whose learning rate nobody has searched: the
    range of rates that train is wide, and too high a rate is held by ``max_ratio``. Where a tuned AdamW or Muon with
    a warm-up does well it gains nothing; ``studies/steady_optimizer`` has the numbers.

    Values in use: lr 0.03 to 0.1 for runs of a hundred steps, 0.01 for thousands, with a schedule that falls to 0; no
    warm-up.

    Cost: less memory than AdamW. On one CPU core 3 to 8 times the time of AdamW's step in nets of some ten thousand
    weights and 30 times with matrices 256 wide, of which `MuonAdamW` takes nine tenths.

    Args:
        model: its parameters with ``requires_grad``.
        lr: update ratio of a step, at least 0; a number or a tensor. Rates above ``max_ratio`` step by ``max_ratio``.
        weight_decay: decoupled, of all weights; vectors (biases, gains) have none.
        max_ratio: no step is longer than this share of the weights, > 0; inf for no bound.
        outputs: as in `parameter_roles`.
        embeddings: as in `parameter_roles`.
        stacked: as in `parameter_blocks`.

    Returns:
        An ordinary optimizer: schedules, GradScaler, checkpoints, closures and ``sg.watch`` take it as they take
        torch's. Its groups carry ``role`` and ``blocks``. On nan and inf it is as `Steady` says.

    Raises:
        ValueError: a name that the model does not have, a model without trained parameters.
        TypeError: a complex or sharded parameter.

    Example:
        >>> model = nn.Sequential(nn.Embedding(9, 4), nn.LSTM(4, 6, batch_first=True))
        >>> model.append(nn.Linear(6, 9))
        Sequential(...)
        >>> for group in steady(model, lr=0.02).param_groups:
        ...     print(group["role"], group["blocks"], group["param_names"])
        hidden 4 ['1.weight_ih_l0', '1.weight_hh_l0']
        embedding 1 ['0.weight']
        output 1 ['2.weight']
        vector 1 ['1.bias_ih_l0', '1.bias_hh_l0', '2.bias']

    Source: as of `Steady`: Jordan et al. (2024), https://kellerjordan.github.io/posts/muon/; Bernstein et al. (2020),
    https://arxiv.org/abs/2002.03432; You et al. (2020), https://arxiv.org/abs/1904.00962
    """
    blocks = parameter_blocks(model, stacked)
    groups: list[dict[str, Any]] = []
    for role, members in grouped(
        model, parameter_roles(model, outputs=outputs, embeddings=embeddings)
    ).items():
        by_blocks: dict[int, list[tuple[str, Tensor]]] = {}
        for name, p in members:
            by_blocks.setdefault(blocks[name] if role == "hidden" else 1, []).append((name, p))
        decay = 0.0 if role == "vector" else weight_decay
        groups += [
            {"params": of, "role": role, "blocks": k, "weight_decay": decay} for k, of in by_blocks.items()
        ]
    return Steady(groups, lr=lr, max_ratio=max_ratio)
