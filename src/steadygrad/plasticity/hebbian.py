"""Competitive Hebbian learning, layer by layer: weights from the data alone, before the training with labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from steadygrad import _check
from steadygrad._preserve import untouched
from steadygrad.plasticity._units import hidden_links


def soft_winner_update(weight: Tensor, x: Tensor, lr: float, temperature: float = 1.0) -> Tensor:
    """One step of soft winner-take-all: the units that answer most turn towards the input.

        u = W x,    y = softmax(u / temperature)
        dW_k = lr mean_x y_k (x - u_k w_k)

    The second term keeps the norm of each row: at rest it is 1.

    When to use it: in a rule of your own; `hebbian_pretrain_` runs it through a model.

    Values in use: temperature 1, lr 0.01 to 0.1.

    Cost: three products of the layer's size.

    Args:
        weight: (units, inputs).
        x: (N, inputs), of about norm 1 each.
        lr: at least 0.
        temperature: of the competition, above 0; near 0 the winner takes all.

    Returns dW. Inf or nan in x gives nan.

    Example:
        >>> w = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> soft_winner_update(w, torch.tensor([[0.75, 1.0]]), lr=1.0, temperature=0.001)  # the second unit wins
        tensor([[0.0000, 0.0000],
                [0.7500, 0.0000]])

    Source: Moraitis et al. (2022), https://arxiv.org/abs/2107.05747
    """
    _check.number("lr", lr, 0.0)
    _check.positive("temperature", temperature)
    if x.shape[0] == 0:
        return torch.zeros_like(weight)
    u = x @ weight.T
    y = (u / temperature).softmax(1)
    return lr * (y.T @ x - (y * u).sum(0)[:, None] * weight) / x.shape[0]


@torch.no_grad()
def hebbian_pretrain_(
    model: nn.Module,
    batches: Callable[[], Iterable[Any]],
    *,
    epochs: int = 1,
    lr: float = 0.1,
    temperature: float = 0.1,
) -> dict[str, float]:
    """Train the hidden layers of an ordinary model without labels, one after the other, by soft winner-take-all.

    Each layer sees what the layers before it, already trained, make of the data; its inputs are scaled
    to norm 1 and its rows too. At the end each unit's weight has the norm it had. Biases and the last layer stay.

    When to use it: few labels and much data; then train the model as usual. A first layer finds prototypes of
    the data in one pass.

    Limits: greedy, and blind to the task: with enough labels plain training is as good. Linear layers and 2d
    convolutions of a plain net only.

    Values in use: one or a few epochs, lr 0.1, temperature 0.1 (ours).

    Cost: for each layer a forward pass and three products of the layer's size a batch.

    Args:
        model: in training mode; changed in place.
        batches: ``batches()`` starts over and gives the inputs of the model, batch by batch, for ``model(x)``.
        epochs: passes over the batches for each layer, at least 1.
        lr: step of the rule, above 0; falls to 0 on a line over the batches of a layer.
        temperature: of the competition, above 0.

    Returns layer -> mean square of the change of its unit rows. A batch whose update is not finite is skipped.

    Buffers, modes, hooks and random streams of the model are as before.

    Raises RuntimeError in evaluation mode, ValueError if there is no batch or no plain hidden layer; nothing
    is changed then.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> data = torch.randn(64, 4)
        >>> list(hebbian_pretrain_(model, lambda: data.split(16)))
        ['0']

    Source: Moraitis et al. (2022), https://arxiv.org/abs/2107.05747; layer by layer: Journe et al. (2023),
    https://arxiv.org/abs/2209.11883
    """
    _check.training_mode(model, "hebbian_pretrain_")
    _check.count("epochs", epochs)
    _check.positive("lr", lr, finite=True)
    _check.positive("temperature", temperature, finite=True)
    first = next(iter(batches()), None)
    if first is None:
        raise ValueError("batches() gave no batch")
    found, _ = hidden_links(model, first)
    layers = {link.name: link.layer for link in found if _is_known(link.layer)}
    if not layers:
        raise ValueError("none of the plain hidden layers is a linear layer or an ordinary 2d convolution")
    return {
        name: _train_layer(model, layer, batches, epochs, lr, temperature) for name, layer in layers.items()
    }


def _is_known(layer: nn.Module) -> bool:
    if isinstance(layer, nn.Conv2d):
        return layer.groups == 1 and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return isinstance(layer, nn.Linear)


def _train_layer(
    model: nn.Module,
    layer: nn.Module,
    batches: Callable[[], Iterable[Any]],
    epochs: int,
    lr: float,
    temperature: float,
) -> float:
    assert isinstance(layer, (nn.Linear, nn.Conv2d))
    weight = layer.weight.detach().flatten(1)
    rows = F.normalize(weight.to(torch.promote_types(weight.dtype, torch.float32)))
    start, seen = rows.clone(), []
    handle = layer.register_forward_pre_hook(lambda _module, args: seen.append(args[0].detach()))
    total = epochs * sum(1 for _ in batches())
    step = 0
    try:
        for _ in range(epochs):
            for batch in batches():
                seen.clear()
                with untouched(model):
                    model(batch)
                x = F.normalize(_patches(layer, seen[0]).to(rows))
                change = soft_winner_update(rows, x, lr * (1 - step / total), temperature)
                step += 1
                if change.isfinite().all():  # host sync
                    rows += change
    finally:
        handle.remove()
    layer.weight.copy_((F.normalize(rows) * weight.norm(dim=1, keepdim=True)).view_as(layer.weight))
    return (rows - start).square().mean().item()


def _patches(layer: nn.Module, x: Tensor) -> Tensor:
    """What each unit sees at each place, (N, inputs)."""
    if isinstance(layer, nn.Linear):
        return x.reshape(-1, layer.in_features)
    assert isinstance(layer, nn.Conv2d) and isinstance(layer.padding, tuple)
    unfolded = F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    return unfolded.movedim(1, 2).reshape(-1, unfolded.shape[1])
